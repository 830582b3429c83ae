"""`dnc serve` as a process above a worker: what is the same whether TorchServe starts that worker or it does itself."""
