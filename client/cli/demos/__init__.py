"""The demos, each a module with `HELP`, `Options`, `configure(group)` and `run(options)`."""


class DemoFailed(Exception):
    """A demo can't go on; the message says why, and what to do."""
