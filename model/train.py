"""The training loop: draw, unroll, lower the loss; the same for every task, and the same bits when resumed."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnc_serve.model.diagnosis import first_non_finite, first_non_finite_gradient
from dnc_serve.model.dnc import DNC
from dnc_serve.model.numerics import denormals_flushed
from dnc_serve.model.recipe import Recipe
from dnc_serve.model.state import DNCState
from dnc_serve.model.tasks.task import Batch, Task, random_int, random_share


class NotFiniteError(ArithmeticError):
    """A training stopped because a number is no longer finite; says at which iteration, and which tensor was first."""

    def __init__(self, iteration: int, where: str) -> None:
        super().__init__(f"iteration {iteration}: {where}")
        self.iteration, self.where = iteration, where


@dataclass(frozen=True)
class Progress:
    """One iteration, as metrics.csv has it."""

    iteration: int  # the first is 0
    timesteps: int  # T
    loss: float
    wrong: int  # units of the task that were wrong in this batch
    units: int  # units that could be wrong
    lr: float
    grad_norm: float  # before clipping
    seconds: float  # this iteration took

    @property
    def scalars(self) -> "dict[str, float]":
        """What curves are drawn of, by name."""
        return {
            "loss": self.loss,
            "wrong": wrong_share([self]),
            "learning rate": self.lr,
            "gradient norm": self.grad_norm,
            "timesteps per second": self.timesteps_per_s,
        }

    @property
    def timesteps_per_s(self) -> float:
        """Timesteps of one sequence each second, the whole batch side by side."""
        return self.timesteps / self.seconds if self.seconds > 0 else 0.0


def wrong_share(iterations: Iterable[Progress]) -> float:
    """Of all units that could be wrong in these iterations; 0 if nothing was due in any of them."""
    wrong, units = 0, 0
    for progress in iterations:
        wrong, units = wrong + progress.wrong, units + progress.units
    return wrong / units if units else 0.0


def make_optimizer(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """One of `recipe.OPTIMIZERS`; RMSprop with the momentum and epsilon of DeepMind's DNC."""
    parameters = model.parameters()
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr, momentum=0.9, eps=1e-10)
    kinds: dict[str, Any] = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "adamax": torch.optim.Adamax,
        "adagrad": torch.optim.Adagrad,
        "adadelta": torch.optim.Adadelta,
    }
    optimizer: torch.optim.Optimizer = kinds[name](parameters, lr=lr)
    return optimizer


class Training:
    """A model on its way down a task's loss.

    All that decides the next iteration is in `state_dict`, so that a resumed training goes on with equal bits (on the
    same processor, with the same number of threads).
    """

    def __init__(self, task: Task, model: DNC, recipe: Recipe, *, compiled: bool = False) -> None:
        self.task, self.model, self.recipe = task, model, recipe
        if recipe.curriculum_increment:
            task.lengthened(0)  # told now if it can't be
        self.iteration = 0
        self.device = next(model.parameters()).device
        self.optimizer = make_optimizer(recipe.optimizer, model, recipe.lr)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.last_batch: Batch | None = None
        self._carried: DNCState | None = None
        self._step = torch.compile(model.step) if compiled else model.step

    def iterate(self) -> Iterator[Progress]:
        """Runs the iterations that are left; a caller may stop after any of them."""
        self.model.train()
        while self.iteration < self.recipe.iterations:
            yield self.advance()

    @denormals_flushed()
    def advance(self) -> Progress:
        """One iteration. Raises NotFiniteError before it would touch the weights."""
        started = time.perf_counter()
        recipe, iteration = self.recipe, self.iteration
        lr = recipe.learning_rate(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        task = self.task
        if recipe.curriculum_increment:
            task = task.lengthened(recipe.curriculum_increment * (iteration // recipe.curriculum_every))
        batch = Batch(*(tensor.to(self.device) for tensor in task.draw(recipe.batch_size, self.generator)))
        start = self._start_state()
        outputs, states = self.unroll(batch.inputs, start)
        loss = task.loss(outputs, batch)
        if not torch.isfinite(loss):
            raise NotFiniteError(
                iteration, first_non_finite(self.model, batch.inputs, start) or "the loss is not finite"
            )

        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        if not torch.isfinite(norm):
            raise NotFiniteError(iteration, first_non_finite_gradient(self.model))
        self.optimizer.step()

        self._carried = states[self._cut(len(states)) - 1].detach()
        self.last_batch = batch
        self.iteration += 1
        with torch.no_grad():
            wrong = int(task.wrong(outputs, batch).sum())
        seconds = time.perf_counter() - started
        return Progress(
            iteration, len(outputs), float(loss.detach()), wrong, task.units(batch), lr, float(norm), seconds
        )

    def unroll(self, inputs: Tensor, state: DNCState) -> tuple[Tensor, list[DNCState]]:
        """`DNC.unroll`, by the compiled step if there is one, with what is carried over after every timestep.

        That is the state without its memory, which may be large.
        """
        outputs, states = [], []
        given_reads = state.read_vectors
        for x in inputs.unbind(0):
            if not self.model.feed_reads_at_once:
                state = state._replace(read_vectors=given_reads)
            output, state = self._step(x, state)
            outputs.append(output)
            states.append(state._replace(memory=[]))
        return torch.stack(outputs), states

    def _start_state(self) -> DNCState:
        """Zeros, or a session's state after a reset of its experience."""
        zeros = self.model.initial_state(self.recipe.batch_size)
        carry = random_share(self.generator) < self.recipe.carry
        if carry and self._carried is not None:
            return self._carried._replace(memory=zeros.memory)
        return zeros

    def _cut(self, timesteps: int) -> int:
        """After how many timesteps a session's state is carried over: all of them, or fewer in a broken-off episode."""
        if random_share(self.generator) < self.recipe.broken_off:
            return random_int(1, timesteps, self.generator)
        return timesteps

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for `torch.save` and a loading with `weights_only`."""
        carried = self._carried
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data_rng": self.generator.get_state(),
            "dropout_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "carried": None if carried is None else (carried.controller_hidden, carried.read_vectors),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["data_rng"])
        torch.set_rng_state(state["dropout_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self._carried = None
        if state["carried"] is not None:
            hidden, read_vectors = state["carried"]
            self._carried = DNCState(hidden, [], read_vectors)
