"""How callers come in: the streaming endpoint, TorchServe's own, and the operations that both do."""
