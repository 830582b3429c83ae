"""`dnc record`: every timestep of a chunk, as arrays and as an animation."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnc_serve.client.arrays import Array
from dnc_serve.client.cli.connection import add_connection, add_model, add_session, connect, model_of
from dnc_serve.client.cli.files import made_folder, replacing
from dnc_serve.client.cli.parser import count, filled, path
from dnc_serve.client.cli.timesteps import BadFile, Source
from dnc_serve.client.client import Session
from dnc_serve.client.info import ModelInfo

HELP = "record a session's memory at each timestep, as .npz and as an animation"
ARRAYS_FILE = "recording.npz"
ANIMATION_FILE = "recording.gif"
DEFAULT_LAST = 32


@dataclass(frozen=True)
class Recording:
    """What a session's memory was at each timestep."""

    positions: list[int]  # after each timestep
    arrays: dict[str, Array]  # [T, parts, *shape]: memories; of sent timesteps layers, as each left it
    inputs: Array | None = None  # [T, *shape]
    outputs: Array | None = None  # [T, *shape]

    def save(self, path: Path) -> None:
        """Writes everything that is known as .npz."""
        more = {"inputs": self.inputs, "outputs": self.outputs}
        known = {name: array for name, array in more.items() if array is not None}
        np.savez_compressed(
            path, allow_pickle=False, positions=np.array(self.positions, np.int64), **self.arrays, **known
        )


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"Writes {ARRAYS_FILE} and {ANIMATION_FILE}. With a file of inputs, these timesteps are sent and recorded; "
        "without, the session's last timesteps are looked up in the server's journal and nothing is changed."
    )
    add_session(parser)
    parser.add_argument(
        "inputs",
        nargs="?",
        type=filled,
        metavar="FILE",
        help="timesteps to send: CSV, .npy [T, I], or - for standard input",
    )
    parser.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="made if it isn't there")
    parser.add_argument(
        "--last", type=count, default=DEFAULT_LAST, metavar="T", help=f"timesteps to look up ({DEFAULT_LAST})"
    )
    parser.add_argument("--fps", type=count, default=4, metavar="N", help="timesteps a second in the animation (4)")
    add_model(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when both files are written, 1 if something is in the way."""
    try:
        source = None if args.inputs is None else Source(args.inputs)
        with connect(args) as client, made_folder(args.output):
            model = model_of(client, args.session, args.model)
            inputs = None if source is None else np.concatenate([*source.chunks(1 << 16, model.inputs)])
            with client.session(args.session, create=inputs is not None, model=args.model) as session:
                recording = look_up(session, model, args.last) if inputs is None else send(session, model, inputs)
            _write(recording, args)
    except (BadFile, ImportError) as exc:
        print(f"dnc record: {exc}", file=sys.stderr)
        return 1
    return 0


def send(session: Session, model: ModelInfo, inputs: Array) -> Recording:
    """Sends timesteps and records what each left in memory."""
    before = session.position
    outputs, debug = session.step(inputs, debug=True)
    arrays = {name: debug[name].reshape(len(inputs), -1, *model.field(name).shape) for name in _names(model)}
    return Recording([before + timestep + 1 for timestep in range(len(inputs))], arrays, inputs, outputs)


def look_up(session: Session, model: ModelInfo, last: int) -> Recording:
    """Records the last timesteps, as far back as the server's journal reaches."""
    info = session.info()
    first = max(info.earliest_position, info.position - last + 1, min(1, info.position))
    positions = list(range(first, info.position + 1))
    dumps = [session.dump(_names(model), position) for position in positions]
    arrays = {
        name: np.stack([dump[name] for dump in dumps]).reshape(len(dumps), -1, *model.field(name).shape)
        for name in _names(model)
    }
    return Recording(positions, arrays)


def _names(model: ModelInfo) -> tuple[str, ...]:
    """Of a DNC its memory, which is its experience, of another model the whole state."""
    return tuple(field.name for field in model.state if field.experience or not model.config)


def _write(recording: Recording, args: argparse.Namespace) -> None:
    from dnc_serve.client.plotting import save_animation

    with replacing(args.output / ARRAYS_FILE) as file:
        recording.save(file)
    print(args.output / ARRAYS_FILE)
    titles = [f"session {args.session} after timestep {position}" for position in recording.positions]
    with replacing(args.output / ANIMATION_FILE) as file:
        save_animation(recording.arrays, file, titles, args.fps)
    print(args.output / ANIMATION_FILE)
