"""TorchServe as a child: started, watched, stopped; and the worker that it starts."""
