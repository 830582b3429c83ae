"""The tasks on which a DNC is trained, by name."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnc_serve.model.tasks.task import Task

TASKS = {
    "copy": "Copy",
    "repeat_copy": "RepeatCopy",
    "recall": "Recall",
    "graph": "Graph",
    "adding": "Adding",
    "argmax": "Argmax",
}


def task_class(name: str) -> "type[Task]":
    """The class of a task, imported when asked for: some of these modules are commands too.

    Raises ValueError for an unknown name.
    """
    name = name.replace("-", "_")
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; expected one of {', '.join(TASKS)}")
    found: type[Task] = getattr(import_module(f"dnc_serve.model.tasks.{name}"), TASKS[name])
    return found
