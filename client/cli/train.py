"""`dnc train`: train a model on a task or on data, go on with an interrupted run, examine or plot finished ones."""

import argparse
import shlex
import sys
from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnc_serve.client.cli.files import made_folder, reason, replacing
from dnc_serve.client.cli.parser import filled, path

if TYPE_CHECKING:
    from dnc_serve.model.pictures import Gallery
    from dnc_serve.model.recipe import Recipe
    from dnc_serve.model.runs import Plan, Run
    from dnc_serve.model.tasks import Task

HELP = "train a model on a task, or on your data"

TASK_NAMES = (
    "copy",
    "repeat_copy",
    "recall",
    "graph",
    "adding",
    "argmax",
    "priority_sort",
    "traversal",
    "shortest_path",
    "family_tree",
    "babi",
)
TRAINING: dict[str, tuple[type, str]] = {
    "iterations": (int, "batches to train on"),
    "batch_size": (int, "sequences in a batch"),
    "optimizer": (str, "adam, rmsprop, sgd, adamax, adagrad or adadelta"),
    "lr": (float, "learning rate at the start"),
    "final_lr": (float, "learning rate at the end, to which it falls exponentially"),
    "max_grad_norm": (float, "longest gradient; longer ones are shortened to it"),
    "carry": (float, "share of batches that start from where the previous batch left the controller"),
    "broken_off": (float, "share of those in which it was left at a random timestep"),
    "curriculum_increment": (int, "how much longer episodes get each time"),
    "curriculum_every": (int, "iterations between two such times"),
    "seed": (int, "of weights and data"),
}
MODEL: dict[str, tuple[type, str]] = {
    "rnn_type": (str, "lstm, gru or rnn"),
    "hidden_size": (int, "the controller's hidden size"),
    "num_layers": (int, "layers, each of which accesses the memory"),
    "num_hidden_layers": (int, "hidden layers of each layer's controller"),
    "dropout": (float, "between the controller's hidden layers"),
    "nr_cells": (int, "memory slots"),
    "cell_size": (int, "numbers in a memory slot"),
    "read_heads": (int, "read heads"),
    "write_heads": (int, "write heads"),
    "memory": (str, "dense, sparse, or sparse_links"),
    "sparse_reads": (int, "slots that a head of a sparse memory reads"),
    "temporal_reads": (int, "links of a slot, of sparse_links"),
}
COLUMNS = ("inputs", "outputs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; those left out keep the values of the task's recipe."""
    parser.add_argument(
        "task",
        type=filled,
        metavar="TASK",
        help=f"{', '.join(TASK_NAMES)}; a class of yours as my_package.my_tasks:MyTask; or data: an .npz with x and y, "
        "a .csv, or a folder with a .csv for each sequence",
    )
    parser.add_argument("-o", "--output", type=path, metavar="RUN", help="the run's folder (default runs/TASK-TIME)")
    parser.add_argument("--resume", type=path, metavar="RUN", help="go on with the run in this folder")
    parser.add_argument(
        "--start-from",
        metavar="MODEL",
        help="begin with the weights of a run, or of a bundled model by its name: for harder episodes, or more slots",
    )
    parser.add_argument(
        "--evaluate",
        metavar="MODEL",
        help="train nothing; examine a run, or a bundled model by its name, and print the figures of its card",
    )
    parser.add_argument(
        "--plot",
        nargs="+",
        metavar=("PICTURE", "RUN"),
        help="train nothing; write a picture (PNG or SVG) of these runs' losses",
    )
    parser.add_argument(
        "--episodes", type=int, default=1000, metavar="N", help="of each exam (default 1000); data are examined whole"
    )
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="N", help="iterations (default 500)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default cpu)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch on the CPU (default 1)")
    parser.add_argument("--compile", action="store_true", help="compile the step with torch.compile first")
    for title, flags in (("how to train", TRAINING), ("the model", MODEL)):
        group = parser.add_argument_group(title)
        for name, (kind, help) in flags.items():
            group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, metavar=kind.__name__, help=help)
    group = parser.add_argument_group("the task")
    group.add_argument(
        "--task-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as max_length=30; a wrong name lists the right ones",
    )
    group.add_argument(
        "--data",
        type=path,
        metavar="PATH",
        help="babi: the folder or tar of its stories; traversal, shortest_path: the underground's folder, for an exam",
    )
    for name, prefix in (("inputs", "x_"), ("outputs", "y_")):
        group.add_argument(
            f"--{name}",
            type=filled,
            metavar="A,B",
            help=f"columns of CSV data (default: all that begin with {prefix})",
        )
    group = parser.add_argument_group("pictures of the memory, and curves")
    group.add_argument("--pictures-every", type=int, default=500, metavar="N", help="iterations (default 500)")
    group.add_argument("--visdom", metavar="URL", help="show them in a Visdom server, such as http://localhost:8097")
    group.add_argument(
        "--log", choices=("mlflow",), help="keep them, curves and parameters as a run of MLflow (MLFLOW_TRACKING_URI)"
    )
    group.add_argument("--tensorboard", type=path, metavar="DIR", help="write them, and curves, for TensorBoard")
    group.add_argument("--png", type=path, metavar="DIR", help="write them as PNG files")


def run(args: argparse.Namespace) -> int:
    """Trains or examines; exit code 2 for wrong values, 1 for a run that failed or was interrupted."""
    import torch

    from dnc_serve.model.device import check_device, keep_freed_memory
    from dnc_serve.model.train import NotFiniteError

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    try:
        check_device(args.device)
        if args.plot:
            return _plot(args.plot)
        return _evaluate(args) if args.evaluate else _train(args)
    except (ValueError, TypeError, FileExistsError, FileNotFoundError) as exc:
        print(f"dnc train: {reason(exc)}", file=sys.stderr)
        return 2
    except (NotFiniteError, ModuleNotFoundError, OSError) as exc:
        print(f"dnc train: {reason(exc)}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace) -> int:
    from dnc_serve.model.interrupt import Interrupt
    from dnc_serve.model.pictures import heatmaps
    from dnc_serve.model.progress import ProgressBar
    from dnc_serve.model.runs import CARD_FILE
    from dnc_serve.model.train import wrong_share

    if args.checkpoint_every < 1 or args.pictures_every < 1:
        raise ValueError("--checkpoint-every and --pictures-every are expected to be at least 1")
    last: deque[Any] = deque(maxlen=100)
    with ExitStack() as open_things:
        for folder in filter(None, (args.png, args.tensorboard)):  # told now, not after hours
            open_things.enter_context(made_folder(folder))
        galleries = [open_things.enter_context(gallery) for gallery in _galleries(args)]
        run = open_things.enter_context(_open_run(args))
        interrupt = open_things.enter_context(Interrupt())
        for gallery in galleries:
            gallery.begin(run.folder.name, run.plan.parameters)
        bar = open_things.enter_context(ProgressBar(run.training, run.plan.task.unit))

        def each(progress: Any) -> None:
            bar.show(progress)
            last.append(progress)
            for gallery in galleries:
                gallery.plot(progress.iteration, progress.scalars)
            batch = run.training.last_batch
            if galleries and batch is not None and progress.iteration % args.pictures_every == 0:
                pictures = heatmaps(run.training.model, batch.inputs)
                for gallery in galleries:
                    gallery.show(progress.iteration, pictures)

        finished = run.train(each, checkpoint_every=args.checkpoint_every, stop=interrupt)
    if last:
        loss = sum(progress.loss for progress in last) / len(last)
        wrong = f"{wrong_share(last):.4%} {run.plan.task.unit} wrong"
        print(f"{run.folder}: iteration {run.training.iteration}, loss {loss:.6f}, {wrong}")
    if not finished:
        again = shlex.join(["dnc", "train", run.plan.task.argument, "--resume", str(run.folder)])
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        return 1
    if (card := run.folder / CARD_FILE).exists():
        print(card)
    return 0


def _open_run(args: argparse.Namespace) -> "Run":
    from dnc_serve.model.runs import Plan, Run, new_folder
    from dnc_serve.model.tasks import make_task

    options = {"device": args.device, "compiled": args.compile}
    if args.resume is None:
        columns = {name: getattr(args, name) for name in COLUMNS if getattr(args, name) is not None}
        task = make_task(args.task, {**_task_options(args.task_option), **columns})
        if args.data is not None:
            task = _moved(task, args.data)
        plan = Plan(task, _recipe(args, task.recipe), ["dnc", *sys.argv[1:]])
        weights = None if args.start_from is None else _model_folder(args.start_from)
        return Run.create(args.output or new_folder(task.name), plan, weights=weights, **options)
    given = [name for name in (*TRAINING, *MODEL, *COLUMNS, "output", "start_from") if getattr(args, name) is not None]
    if given or args.task_option:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given) or "--task-option"
        raise ValueError(f"{names} can't be changed by --resume: a resumed run goes on as it was planned")
    return Run.resume(args.resume, _plan(args.resume, args, str(args.resume)), **options)


def _plan(folder: Path, args: argparse.Namespace, given: str) -> "Plan":
    """The run's plan, which must be one of the task that was named; data are taken from where they are now."""
    from dnc_serve.model.runs import Plan
    from dnc_serve.model.tasks.data import DataTask

    plan = Plan.read(folder)
    source = args.data
    if isinstance(plan.task, DataTask) and Path(args.task).exists():
        source = source or Path(args.task)
    elif plan.task.argument != args.task.replace("-", "_"):
        raise ValueError(f"{given} is a run of the task {plan.task.argument}; expected one of {args.task}")
    return plan if source is None else replace(plan, task=_moved(plan.task, source))


def _moved(task: "Task", source: Path) -> "Task":
    if not source.exists():
        raise FileNotFoundError(f"{source} doesn't exist; expected the data of the task {task.name}")
    return task.moved(source)


def _recipe(args: argparse.Namespace, recipe: "Recipe") -> "Recipe":
    changes = {name: getattr(args, name) for name in TRAINING if getattr(args, name) is not None}
    model = {name: getattr(args, name) for name in MODEL if getattr(args, name) is not None}
    return replace(recipe, **changes, model={**recipe.model, **model})


def _task_options(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs with values as whole numbers, numbers, true and false, or else text."""
    import json

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--task-option is {pair!r}; expected NAME=VALUE with a number, true, false or text")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = value
    return options


def _galleries(args: argparse.Namespace) -> "list[Gallery]":
    from urllib.parse import urlsplit

    from dnc_serve.model.pictures import MlflowGallery, PngGallery, TensorBoardGallery, VisdomGallery

    galleries: list[Gallery] = []
    if args.visdom:
        url = urlsplit(args.visdom)
        if not url.scheme or not url.hostname:
            raise ValueError(f"--visdom is {args.visdom!r}; expected a URL such as http://localhost:8097")
        galleries.append(VisdomGallery(f"{url.scheme}://{url.hostname}", url.port or 8097))
    if args.log:
        galleries.append(MlflowGallery())
    if args.tensorboard:
        galleries.append(TensorBoardGallery(args.tensorboard))
    if args.png:
        galleries.append(PngGallery(args.png))
    return galleries


def _evaluate(args: argparse.Namespace) -> int:
    from dnc_serve.model.evaluate import examined
    from dnc_serve.model.weights import load_model

    folder = _model_folder(args.evaluate)
    plan = _plan(folder, args, args.evaluate)
    model = load_model(folder, nr_cells=args.nr_cells, device=args.device)
    for figure in examined(plan.task, model, args.episodes):
        print(figure, flush=True)
    return 0


def _plot(names: list[str]) -> int:
    from dnc_serve.model.curves import plot_losses

    picture, *folders = names
    if not folders:
        raise ValueError("--plot names no run; expected a picture's name and at least one run's folder")
    with replacing(Path(picture)) as beside:
        plot_losses(folders, beside)
    print(picture)
    return 0


def _model_folder(name: str) -> Path:
    """A run's folder, or that of a bundled model."""
    from dnc_serve.model import pretrained

    return pretrained.path(name) if name in pretrained.NAMES and not Path(name).exists() else Path(name)
