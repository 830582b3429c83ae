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
    parser.add_argument(
        "--aot", action="store_true", help="also compile it for this host, as `dnc serve --compile` does; takes minutes"
    )
    parser.add_argument(
        "--state-dir", type=path, metavar="FOLDER", help="the server's, for --aot (default: as for `dnc serve`)"
    )


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
    return _compile(folder, args.state_dir) if args.aot else 0


def _compile(folder: Path, state_dir: Path | None) -> int:
    from dnc_serve.handler.config import COMPILED, default_state_dir
    from dnc_serve.model.compiled import CompileBar, compile_artifact, stopped_in_good_order
    from dnc_serve.model.compiled_cache import CompiledError

    try:
        with stopped_in_good_order(), CompileBar() as bar:
            compiled = compile_artifact(folder, (state_dir or default_state_dir()) / COMPILED, progress=bar.show)
    except CompiledError as exc:
        print(f"dnc export: {exc}", file=sys.stderr)
        return 1
    print(f"{compiled}: compiled for this host")
    return 0
