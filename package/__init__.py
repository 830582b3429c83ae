"""dnc-serve: sequence models that remember, served.

`dnc_serve.client` calls a server, `dnc_serve.model` is the library of models; `dnc_serve.handler`, the server, and
`dnc_serve.proto`, the contract between them, are used through the command `dnc serve`.
"""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("dnc-serve")
