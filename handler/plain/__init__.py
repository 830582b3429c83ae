"""The plain runtime: `dnc serve` starts the worker itself, and starts it again when it dies."""
