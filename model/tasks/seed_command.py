"""The `dnc` package's training commands: its flags, with one dash or two, over this project's one training loop."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dnc_serve.model.device import keep_freed_memory
from dnc_serve.model.evaluate import FRESH, evaluate
from dnc_serve.model.interrupt import Interrupt
from dnc_serve.model.pictures import Gallery, PngGallery, TensorBoardGallery, VisdomGallery, heatmaps
from dnc_serve.model.progress import ProgressBar, say
from dnc_serve.model.recipe import OPTIMIZERS, PLAIN_START, Recipe
from dnc_serve.model.runs import Plan, Run, new_folder
from dnc_serve.model.tasks import task_class
from dnc_serve.model.train import NotFiniteError, Progress, wrong_share

COMMON: dict[str, tuple[Any, str]] = {
    "input_size": (6, "channels of an input, the end marker's included"),
    "rnn_type": ("lstm", "the controller's recurrent cells: lstm | gru | rnn"),
    "nhid": (64, "the controller's hidden size"),
    "dropout": (0.0, "dropout between the controller's hidden layers"),
    "memory_type": ("dnc", "kind of memory; only dnc, the dense one, is there"),
    "nlayer": (1, "layers, each of which accesses the memory"),
    "nhlayer": (2, "hidden layers of each layer's controller"),
    "lr": (1e-4, "learning rate"),
    "optim": ("adam", f"learning rule: {' | '.join(OPTIMIZERS)}"),
    "clip": (50.0, "longest gradient; longer ones are shortened to it"),
    "batch_size": (100, "sequences in a batch"),
    "mem_size": (20, "numbers in a memory slot"),
    "mem_slot": (16, "memory slots"),
    "read_heads": (4, "read heads"),
    "sparse_reads": (10, "of sparse memories; no effect on a dense one"),
    "temporal_reads": (2, "of sparse memories; no effect on a dense one"),
    "sequence_max_length": (4, "longest sequence"),
    "cuda": (-1, "number of the CUDA device, -1 for the CPU"),
    "iterations": (100_000, "batches to train on"),
    "summarize_freq": (100, "iterations between two summaries"),
    "check_freq": (100, "iterations between two checkpoints"),
}
CURRICULUM: dict[str, tuple[Any, str]] = {
    "curriculum_increment": (0, "how much longer sequences get each time"),
    "curriculum_freq": (1000, "iterations between two such times"),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "copy": {},
    "adding": {"sequence_max_length": 1000, "iterations": 2000},
    "argmax": {"nhid": 100, "iterations": 2000},
}
TASKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "copy": lambda args: {
        "bits": args.input_size - 1,
        "max_length": args.sequence_max_length,
        "short_share": 0.0,
        "seed_style": True,
    },
    "adding": lambda args: {"size": args.input_size, "max_length": args.sequence_max_length},
    "argmax": lambda args: {"size": args.input_size, "max_length": args.sequence_max_length},
}


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Trains the task `name` as the flags say, and returns the exit code: 2 for wrong values, 1 for a failed run."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(name)
    args = parser.parse_args(argv)
    command = ["python", "-m", f"dnc_serve.model.tasks.{name}", *argv]
    try:
        if args.memory_type != "dnc":
            raise ValueError(f"memory_type is {args.memory_type!r}; expected 'dnc': there are no sparse memories here")
        for flag in ("summarize_freq", "check_freq"):
            if getattr(args, flag) < 1:
                raise ValueError(f"{flag} is {getattr(args, flag)}; expected at least 1")
        plan = Plan(task_class(name).from_options(TASKS[name](args)), recipe_of(args), command)
        torch.set_num_threads(args.threads)
        keep_freed_memory()
        with ExitStack() as open_things:
            galleries = [open_things.enter_context(gallery) for gallery in open_galleries(args)]
            run = open_things.enter_context(Run.create(args.run or new_folder(name), plan, device=device_of(args.cuda)))
            return train(run, args, galleries)
    except (ValueError, TypeError) as exc:
        say(f"{parser.prog}: {exc}")
        return 2
    except (ModuleNotFoundError, NotFiniteError, OSError) as exc:
        say(f"{parser.prog}: {exc}")
        return 1


def make_parser(name: str) -> argparse.ArgumentParser:
    """The flags of the package's command for a task, and a few of our own."""
    parser = argparse.ArgumentParser(
        prog=f"python -m dnc_serve.model.tasks.{name}",
        description=f"Trains a Differentiable Neural Computer on the {name} task, with the flags of the dnc package.",
        allow_abbrev=False,
    )
    flags = {**COMMON, **(CURRICULUM if name == "copy" else {})}
    for flag, (default, help) in flags.items():
        default = DEFAULTS[name].get(flag, default)
        parser.add_argument(
            f"-{flag}", f"--{flag}", type=type(default), default=default, help=f"{help} (default {default})"
        )
    parser.add_argument("-visdom", "--visdom", action="store_true", help="show the memory in a Visdom server")
    own = parser.add_argument_group("beyond the dnc package's")
    own.add_argument("-visdom_server", "--visdom_server", default="http://localhost", help="where Visdom listens")
    own.add_argument("-visdom_port", "--visdom_port", type=int, default=8097, help="its port (default 8097)")
    own.add_argument("-tensorboard", "--tensorboard", metavar="DIR", help="write the memory as TensorBoard images")
    own.add_argument("-png", "--png", metavar="DIR", help="write the memory as PNG files")
    own.add_argument("-threads", "--threads", type=int, default=1, help="of torch on the CPU (default 1)")
    own.add_argument("-seed", "--seed", type=int, default=1, help="of weights and data (default 1)")
    own.add_argument("-run", "--run", metavar="DIR", help="the run's folder (default runs/ and the present time)")
    return parser


def recipe_of(args: argparse.Namespace) -> Recipe:
    """How the flags say to train: from a fresh model as it is, every sequence from a zero state."""
    return Recipe(
        model={
            "hidden_size": args.nhid,
            "rnn_type": args.rnn_type,
            "num_layers": args.nlayer,
            "num_hidden_layers": args.nhlayer,
            "dropout": args.dropout,
            "nr_cells": args.mem_slot,
            "cell_size": args.mem_size,
            "read_heads": args.read_heads,
        },
        start=PLAIN_START,
        iterations=args.iterations,
        batch_size=args.batch_size,
        optimizer=args.optim,
        lr=args.lr,
        max_grad_norm=args.clip,
        curriculum_increment=getattr(args, "curriculum_increment", 0),
        curriculum_every=getattr(args, "curriculum_freq", 1000),
        seed=args.seed,
    )


def device_of(cuda: int) -> torch.device:
    """The CUDA device of that number, or, with a word about it, the CPU."""
    if cuda < 0:
        return torch.device("cpu")
    if cuda < torch.cuda.device_count():
        return torch.device("cuda", cuda)
    say(f"CUDA device {cuda} isn't there (this machine has {torch.cuda.device_count()}); training on the CPU instead")
    return torch.device("cpu")


def open_galleries(args: argparse.Namespace) -> list[Gallery]:
    """Where the flags want the memory shown."""
    galleries: list[Gallery] = []
    if args.visdom:
        galleries.append(VisdomGallery(args.visdom_server, args.visdom_port))
    if args.tensorboard:
        galleries.append(TensorBoardGallery(args.tensorboard))
    if args.png:
        galleries.append(PngGallery(args.png))
    return galleries


def train(run: Run, args: argparse.Namespace, galleries: Sequence[Gallery]) -> int:
    """Trains to the end or the first interrupt, with a summary every `summarize_freq` iterations."""
    training, task = run.training, run.plan.task
    write = sys.stdout.write
    write(f"{training.model}\nTraining on {training.device}; the run's folder is {run.folder}\n")
    recent: list[Progress] = []

    def summarize(progress: Progress) -> None:
        recent.append(progress)
        bar.show(progress)
        for gallery in galleries:
            gallery.plot(progress.iteration, progress.scalars)
        if progress.iteration % args.summarize_freq:
            return
        loss = sum(item.loss for item in recent) / len(recent)
        wrong = f"{wrong_share(recent):.3%} {task.unit} wrong"
        bar.write(f"Iteration {progress.iteration}/{args.iterations}: mean loss {loss:.6f}, {wrong}")
        recent.clear()
        if galleries and training.last_batch is not None:
            pictures = heatmaps(training.model, training.last_batch.inputs)
            for gallery in galleries:
                gallery.show(progress.iteration, pictures)

    with Interrupt() as interrupt, ProgressBar(training, task.unit) as bar:
        finished = run.train(summarize, checkpoint_every=args.check_freq, stop=interrupt)
    if not finished:
        say(f"interrupted; go on with: dnc train {task.name} --resume {run.folder}")
        return 1
    write("Testing generalization\n")
    for figure in evaluate(task, training.model, episodes=100, starts=(FRESH,)):
        write(f"{figure}\n")
    return 0
