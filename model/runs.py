"""A training's folder: what was run, how it went, where it stands, and the weights."""

import csv
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import torch

from dnc_serve.model.recipe import Recipe
from dnc_serve.model.start import new_model
from dnc_serve.model.tasks import Task, address_of, task_class
from dnc_serve.model.train import NotFiniteError, Progress, Training
from dnc_serve.model.weights import TRAINING_FILE, load_weights, save_weights

METRICS_FILE = "metrics.csv"
CHECKPOINT_FILE = "checkpoint.pt"
CARD_FILE = "CARD.md"
FLUSH_EVERY_S = 5.0  # so that who follows metrics.csv sees it grow
COLUMNS = [*(field.name for field in fields(Progress)), "timesteps_per_s"]


@dataclass(frozen=True)
class Plan:
    """What a run trains and how: enough to do it again."""

    task: Task
    recipe: Recipe
    command: Sequence[str]

    @property
    def parameters(self) -> dict[str, Any]:
        """All that it says, by one name each, for a table of runs."""
        recipe = self.recipe.to_dict()
        model = {f"model.{name}": value for name, value in recipe.pop("model").items()}
        options = {f"task.{name}": value for name, value in asdict(self.task).items()}
        return {"task": self.task.argument, **recipe, **model, **options}

    def write(self, folder: Path, **facts: Any) -> None:
        """Writes `training.json`; `facts` are further plain values for the reader."""
        values = {
            "task": address_of(type(self.task)),
            "task_options": asdict(self.task),
            "recipe": self.recipe.to_dict(),
            "command": shlex.join(self.command),
            "torch": torch.__version__,
            **facts,
        }
        write_whole(folder / TRAINING_FILE, (json.dumps(values, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: str | Path) -> "Plan":
        """From a run's folder, or a bundled model's. Raises FileNotFoundError, or ValueError for a damaged file."""
        path = Path(folder) / TRAINING_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} doesn't exist; expected the folder of a training run")
        try:
            values = json.loads(path.read_text())
            task = task_class(values["task"]).from_options(values["task_options"])
            return cls(task, Recipe.from_dict(values["recipe"]), shlex.split(values["command"]))
        except (KeyError, TypeError, json.JSONDecodeError) as exc:
            raise ValueError(f"{path} isn't a training run's description: {exc!r}") from exc


class Run:
    """An open run folder; close it, or use it as a context.

    `metrics.csv` has a line for each iteration; a checkpoint flushes it first, so that it reaches at least as far.
    """

    def __init__(self, folder: str | Path, plan: Plan, training: Training) -> None:
        self.folder, self.plan, self.training = Path(folder), plan, training
        self._metrics: IO[str] = (self.folder / METRICS_FILE).open("a", newline="")
        self._writer = csv.writer(self._metrics)
        self._flushed = time.monotonic()

    @classmethod
    def create(
        cls, folder: str | Path, plan: Plan, *, weights: str | Path | None = None, **training_options: Any
    ) -> "Run":
        """Starts a run in a folder that must not hold one yet, from the weights in another folder if one is given.

        `training_options` as `begin`'s. Raises FileExistsError, and as `load_weights`.
        """
        folder = Path(folder)
        if (folder / TRAINING_FILE).exists():
            raise FileExistsError(f"{folder} holds a training run already; resume it, or name another folder")
        training = begin(plan, **training_options)
        if weights is not None:
            if plan.task.servable(training.model) is not training.model:
                raise ValueError(f"a run of {plan.task.name} can't start from weights: they are those of its own scale")
            load_weights(training.model, weights)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / METRICS_FILE).open("w", newline="") as metrics:
            csv.writer(metrics).writerow(COLUMNS)
        plan.write(folder)
        run = cls(folder, plan, training)
        run.checkpoint()
        return run

    @classmethod
    def resume(cls, folder: str | Path, plan: Plan | None = None, **training_options: Any) -> "Run":
        """Goes on from the last checkpoint, and forgets the metrics of iterations after it.

        `plan` is the folder's, unless its data have moved. Raises FileNotFoundError or ValueError if there is none.
        """
        folder = Path(folder)
        plan = plan or Plan.read(folder)
        path = folder / CHECKPOINT_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} doesn't exist; expected a run's checkpoint")
        training = begin(plan, **training_options)
        training.load_state_dict(torch.load(path, map_location=training.device, weights_only=True))
        with (folder / METRICS_FILE).open(newline="") as metrics:
            kept = [row for row in csv.DictReader(metrics) if int(row["iteration"]) < training.iteration]
        lines = [",".join(COLUMNS), *(",".join(row[column] for column in COLUMNS) for row in kept)]
        write_whole(folder / METRICS_FILE, ("\r\n".join(lines) + "\r\n").encode())
        return cls(folder, plan, training)

    def train(self, each: Callable[[Progress], None], *, checkpoint_every: int, stop: object = False) -> bool:
        """Trains to the end, or until `stop` is true after an iteration; says whether it is the end.

        `each` is called after every iteration. A checkpoint is left in either case; a NotFiniteError leaves the one
        before it.
        """
        try:
            for progress in self.training.iterate():
                self.record(progress)
                each(progress)
                if stop:
                    break
                if self.training.iteration % checkpoint_every == 0:
                    self.checkpoint()
        except NotFiniteError:
            self._metrics.flush()
            raise
        self.checkpoint()
        finished = self.training.iteration == self.plan.recipe.iterations
        if finished:
            self._write_card()
        return finished

    def record(self, progress: Progress) -> None:
        """Adds an iteration to the metrics, which a reader sees some seconds later."""
        self._writer.writerow([*asdict(progress).values(), progress.timesteps_per_s])
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._metrics.flush()
            self._flushed = time.monotonic()

    def _write_card(self) -> None:
        task = self.plan.task
        card = task.card(task.servable(self.training.model), shlex.join(self.plan.command))
        if card is not None:
            write_whole(self.folder / CARD_FILE, card.encode())

    def checkpoint(self) -> None:
        """Saves all that the next iteration depends on, and the weights as they are, each file as a whole."""
        self._metrics.flush()
        beside = self.folder / f".{CHECKPOINT_FILE}.{os.getpid()}"
        torch.save(self.training.state_dict(), beside)
        beside.replace(self.folder / CHECKPOINT_FILE)
        save_weights(self.plan.task.servable(self.training.model), self.folder)

    def close(self) -> None:
        """Closes the metrics; nothing is saved."""
        self._metrics.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def begin(plan: Plan, device: torch.device | str = "cpu", compiled: bool = False) -> Training:
    """A training at its first iteration; the global random state, which dropout uses, is seeded too."""
    model = new_model(plan.task, plan.recipe, device)
    torch.manual_seed(plan.recipe.seed)
    return Training(plan.task, model, plan.recipe, compiled=compiled)


def new_folder(name: str) -> Path:
    """A name under `runs/` for a training that begins now."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def read_metrics(folder: str | Path) -> list[Mapping[str, float]]:
    """The iterations of a run, oldest first, by the columns of `metrics.csv`."""
    with (Path(folder) / METRICS_FILE).open(newline="") as metrics:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(metrics)]


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file as a whole, so that an interrupted write leaves the old one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
