"""What TorchServe imports from an archive: a file of a name that nothing else has, and nothing in it but the way on.

It is a function because TorchServe refuses a module that only imports a class; and it imports when called because
TorchServe hides the cause of an import that fails while this file is loaded.
"""


def handle(data, context):  # type: ignore[no-untyped-def]
    """Called once with `data=None` when the worker starts, then with a list of rows."""
    from dnc_serve.handler.torchserve.worker import handle as handle_rows

    return handle_rows(data, context)
