"""What a user names as `my_package.my_module:name`: a task to train, or a model to export."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def import_by_name(what: str, name: str) -> tuple[ModuleType, Any]:
    """The module, and what it has under the name behind the colon; None if it has nothing.

    A module is looked for where python is run, as by `python -m`, then among what is installed. Raises ValueError that
    says what is missing; what the module's own code raises comes through.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # an installed command has its own folder there instead
    try:
        if not all(part.isidentifier() for part in module_name.split(".")):
            raise ModuleNotFoundError(name=module_name)
        module = import_module(module_name)
    except ModuleNotFoundError as exc:
        if not f"{module_name}.".startswith(f"{exc.name}."):
            raise  # it is there, and what it imports isn't
        raise ValueError(
            f"{what} is {name!r}; there is no module {module_name!r}, neither in {here} nor among what is installed"
        ) from exc
    return module, getattr(module, attribute, None)
