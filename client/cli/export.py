"""`dnc export`: make the artifact that a server runs from a trained model."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnc_serve.client.cli.files import new_files, reason
from dnc_serve.client.cli.parser import filled, path

if TYPE_CHECKING:
    from torch import nn

    from dnc_serve.model.rows import TensorSpec

HELP = "make a servable artifact of a trained model"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.description = (
        "MODEL is a training run's folder, a bundled model (copy, recall, graph, traversal), or "
        "my_package.my_module:NAME, a module with initial_state(batch_size) and step(x, state), or a function that "
        "builds one."
    )
    parser.add_argument("model", type=filled, metavar="MODEL", help="a run, a bundled model, or module:NAME")
    parser.add_argument("-o", "--output", type=path, metavar="FOLDER", help="default: RUN/artifact, or ./NAME-artifact")
    parser.add_argument("--nr-cells", type=int, metavar="N", help="memory slots of a DNC (default: as trained)")
    parser.add_argument("--weights", type=path, metavar="FILE.safetensors", help="the weights of module:NAME")
    parser.add_argument(
        "--input", type=filled, metavar="[DTYPE:]SHAPE",
        help="what a timestep of module:NAME is, if it doesn't say so: 80, or uint8:3,64,64",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Exports; exit code 2 for wrong values and missing files."""
    try:
        return _export_module(args) if _names_module(args.model) else _export_run(args)
    except (ValueError, TypeError, OSError) as exc:
        print(f"dnc export: {reason(exc)}", file=sys.stderr)
    except ImportError as exc:
        print(f"dnc export: {args.model} needs {exc.name or exc}, which isn't installed", file=sys.stderr)
    return 2


def _names_module(model: str) -> bool:
    return ":" in model and not Path(model).exists()


def _export_run(args: argparse.Namespace) -> int:
    from dnc_serve.model import pretrained
    from dnc_serve.model.export import export
    from dnc_serve.model.weights import check_run, load_model, task_of

    for flag in ("weights", "input"):
        if getattr(args, flag) is not None:
            raise ValueError(f"--{flag} is given, but {args.model} is no module:NAME; a run has its own")
    bundled = args.model in pretrained.NAMES and not Path(args.model).exists()
    source = pretrained.path(args.model) if bundled else Path(args.model)
    folder = args.output or (Path(f"{args.model}-artifact") if bundled else source / "artifact")
    check_run(source, f"a training run's folder, a bundled model ({', '.join(pretrained.NAMES)}), or module:NAME")
    with new_files(folder) as beside:
        manifest = export(load_model(source), beside, nr_cells=args.nr_cells, task=task_of(source))
    print(f"{folder}: {manifest['config']['nr_cells']} memory slots, digest {manifest['digest'][:16]}…")
    _compile(folder)
    return 0


def _export_module(args: argparse.Namespace) -> int:
    from dnc_serve.model.by_name import import_by_name
    from dnc_serve.model.export import export

    _, found = import_by_name("model", args.model)
    module = _module(args.model, found)
    if args.weights is not None:
        _load_weights(module, args.weights)
    folder = args.output or Path(f"{args.model.rpartition(':')[2]}-artifact")
    with new_files(folder) as beside:
        manifest = export(module, beside, example_input=_spec(args.input), nr_cells=args.nr_cells)
    fields = ", ".join(f"{field['name']} {field['dtype']}{field['shape']}" for field in manifest["state"])
    print(f"{folder}: state {fields}; {4 * manifest['state_size']} bytes a session, digest {manifest['digest'][:16]}…")
    return 0


def _module(name: str, found: Any) -> "nn.Module":
    """A module, or what a class or function without arguments makes."""
    from torch import nn

    module = found() if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(module, nn.Module):
        what = "nothing of that name" if found is None else f"{module!r}, a {type(module).__name__}"
        raise ValueError(
            f"model is {name!r}, which has {what}; expected a torch.nn.Module, or a function that makes one"
        )
    return module


def _load_weights(module: "nn.Module", file: Path) -> None:
    from dnc_serve.model.weights import read_weights

    try:
        module.load_state_dict(read_weights(file))
    except RuntimeError as exc:
        raise ValueError(f"{file} doesn't fit the module: {exc}") from exc


def _spec(text: str | None) -> "TensorSpec | None":
    """From "80" or "uint8:3,64,64"."""
    from dnc_serve.model.rows import TensorSpec

    if text is None:
        return None
    dtype, _, shape = text.rpartition(":")
    try:
        sizes = tuple(int(size) for size in shape.split(","))
    except ValueError as exc:
        raise ValueError(f"--input is {text!r}; expected sizes as 80, 3,64,64 or uint8:3,64,64") from exc
    return TensorSpec(sizes, dtype or "float32")


def _compile(folder: Path) -> None:
    """So that no server on this host has to."""
    from dnc_serve.model.kernel import KernelError, user_cache
    from dnc_serve.model.kernel.warm import config_of, warm

    try:
        warm([config_of(str(folder))], user_cache())
    except KernelError as exc:
        print(f"dnc export: without the row kernel: {exc}", file=sys.stderr)
