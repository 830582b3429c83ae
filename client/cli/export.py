"""`dnc export`: make the artifact that a server runs from a trained model."""

import argparse
import sys
from pathlib import Path

from dnc_serve.client.cli.files import new_files, reason
from dnc_serve.client.cli.parser import filled, path

HELP = "make a servable artifact of a trained model"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "run", type=filled, metavar="RUN", help="a training run's folder, or a bundled model: copy, recall, graph"
    )
    parser.add_argument("-o", "--output", type=path, metavar="FOLDER", help="default: RUN/artifact, or ./NAME-artifact")
    parser.add_argument("--nr-cells", type=int, metavar="N", help="memory slots (default: as trained)")


def run(args: argparse.Namespace) -> int:
    """Exports; exit code 2 for wrong values and missing files."""
    from dnc_serve.model import pretrained
    from dnc_serve.model.export import export
    from dnc_serve.model.weights import check_run, load_model

    bundled = args.run in pretrained.NAMES and not Path(args.run).exists()
    source = pretrained.path(args.run) if bundled else Path(args.run)
    folder = args.output or (Path(f"{args.run}-artifact") if bundled else source / "artifact")
    try:
        check_run(source, f"a training run's folder, or a bundled model ({', '.join(pretrained.NAMES)})")
        with new_files(folder) as beside:
            manifest = export(load_model(source), beside, nr_cells=args.nr_cells)
    except (ValueError, TypeError, OSError) as exc:
        print(f"dnc export: {reason(exc)}", file=sys.stderr)
        return 2
    config = manifest["config"]
    print(f"{folder}: {config['nr_cells']} memory slots, digest {manifest['digest'][:16]}…")
    _compile(folder)
    return 0


def _compile(folder: Path) -> None:
    """So that no server on this host has to."""
    from dnc_serve.model.kernel import KernelError, user_cache
    from dnc_serve.model.kernel.warm import config_of, warm

    try:
        warm([config_of(str(folder))], user_cache())
    except KernelError as exc:
        print(f"dnc export: without the row kernel: {exc}", file=sys.stderr)
