"""The session engine: it owns states and steps them; it knows neither gRPC nor TorchServe."""
