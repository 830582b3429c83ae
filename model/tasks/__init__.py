"""The tasks on which a DNC is trained: those of ours by name, yours by module and class, and data by its file."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from dnc_serve.model.by_name import import_by_name
from dnc_serve.model.recipe import Recipe, Start
from dnc_serve.model.tasks.task import TASKS, Batch, Task, address_of, option

__all__ = ["TASKS", "Batch", "Recipe", "Start", "Task", "address_of", "make_task", "option", "task_class"]

EXPECTED = f"one of {', '.join(TASKS)}, a class as my_package.my_tasks:MyTask, or data: an .npz, a .csv or their folder"


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task that `dnc train` was asked for: a name of ours, `module:Class`, or the path of data.

    Raises ValueError for what is none of these, and for an option that the task hasn't, or of the wrong kind.
    """
    if name.replace("-", "_") not in TASKS:
        path = Path(name)
        if path.suffix.lower() in (".npz", ".csv") or path.is_dir():
            from dnc_serve.model.tasks.data import DataTask

            return DataTask.from_source(path, options)
    return task_class(name).from_options(options)


def task_class(name: str) -> type[Task]:
    """The class of a task, imported when asked for: some of our modules are commands too, and yours may be anywhere.

    A module is looked for where python is run, as by `python -m`, then among what is installed. Raises ValueError that
    says what is missing.
    """
    if ":" in name:
        return _imported(name)
    key = name.replace("-", "_")
    if key not in TASKS:
        raise ValueError(f"task is {name!r}; expected {EXPECTED}")
    found: type[Task] = getattr(import_module(f"dnc_serve.model.tasks.{key}"), TASKS[key])
    return found


def _imported(name: str) -> type[Task]:
    module, found = import_by_name("task", name)
    module_name, _, class_name = name.partition(":")
    if isinstance(found, type) and issubclass(found, Task):
        lacking = [attribute for attribute in ("name", "recipe") if not hasattr(found, attribute)]
        if lacking:
            raise ValueError(f"task {name} lacks the class attribute {', '.join(lacking)}; expected one as Copy's")
        return found
    tasks = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Task)]
    has = f"; it has {', '.join(tasks)}" if (tasks := [key for key in tasks if key != "Task"]) else ""
    what = f"has no {class_name!r}" if found is None else f"has {class_name!r}, a {type(found).__name__}"
    raise ValueError(f"task is {name!r}; {module_name} {what}; expected a subclass of dnc_serve.model.tasks.Task{has}")
