"""The crash demo: any model's server is killed while a session is in use; the session goes on, with the same bits."""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnc_serve.client.arrays import Array, TensorSpec
from dnc_serve.client.cli.demos.layout import table
from dnc_serve.client.cli.demos.server import SESSION, in_another_process, kill, serving, started
from dnc_serve.client.client import Client
from dnc_serve.client.info import ModelInfo

HELP = "kill -9 of the server of any model; its session goes on, with the same bits"
TIMESTEPS = 32


@dataclass(frozen=True)
class Options:
    """What can be asked for."""

    seed: int | None = None
    model: str = "copy"
    runtime: str = "torchserve"


def configure(group: argparse._ArgumentGroup) -> None:
    group.description = "with --model FOLDER, an artifact that `dnc export` made of your own module"


def run(options: Options) -> int:
    """Exit code 0 if all bits are the same."""
    with tempfile.TemporaryDirectory(prefix="dnc-demo-") as folder:
        state_dir = Path(folder) / "state"
        with started(options.model, options.runtime, state_dir) as server:
            model, inputs, before = in_another_process(begin, server.addresses["grpc"], options.seed)
            kill(server)
        sizes = f"{_shown(model.inputs)} to {_shown(model.outputs)}"
        print(f"session {SESSION!r} of a model from {sizes} took {TIMESTEPS} timesteps;")
        print("right after the last answer the server and its worker were killed (SIGKILL)\n")
        with serving(options.model, options.runtime, state_dir) as address:
            position, fields, again = in_another_process(go_on, address, inputs)
    print(table(("state", "dtype", "shape", "at step"), [(name, *facts, position) for name, *facts in fields]))
    same = before.tobytes() == again.tobytes()
    print(f"\nafter the crash the session stands at {position}; forked at {TIMESTEPS // 2} and stepped again,")
    print(f"its outputs are {'the same, bit for bit' if same else 'NOT the same'}")
    return 0 if same and position == TIMESTEPS else 1


def begin(address: str, seed: int | None) -> tuple[ModelInfo, Array, Array]:
    """Steps the session through random inputs; returns them and the outputs of their second half."""
    with Client(address) as client, client.session(SESSION) as session:
        model = client.model()
        inputs = _random(model.inputs, seed)
        outputs = np.concatenate([session.step(timestep[None]) for timestep in inputs])
        return model, inputs, outputs[TIMESTEPS // 2 :]


def go_on(address: str, inputs: Array) -> tuple[int, list[tuple[str, str, str]], Array]:
    """Where the session stands, what is in its state, and the outputs of a fork from half-way on."""
    with Client(address) as client, client.session(SESSION, create=False) as session:
        fields = [(field.name, field.dtype, str(list(field.shape))) for field in client.model().state]
        with session.fork(position=TIMESTEPS // 2) as fork:
            return session.position, fields, fork.step(inputs[TIMESTEPS // 2 :])


def _random(spec: TensorSpec, seed: int | None) -> Array:
    """Signs, or zeros and ones for a model of integers."""
    bits = np.random.default_rng(seed).integers(0, 2, (TIMESTEPS, *spec.shape))
    return (2 * bits - 1 if spec.numpy.kind == "f" else bits).astype(spec.numpy)


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
