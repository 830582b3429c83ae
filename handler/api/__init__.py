"""How callers come in: the streaming door, TorchServe's own, and the operations that both do."""
