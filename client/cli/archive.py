"""`dnc archive`: the `.mar` that a TorchServe of one's own can load."""

import argparse
import sys
import tempfile
from pathlib import Path

from dnc_serve.client.cli.files import made_folder, reason
from dnc_serve.client.cli.parser import filled, path

HELP = "pack a model into a .mar for TorchServe"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=filled, help="a bundled name, a run, or an artifact folder")
    parser.add_argument("--output", "-o", type=path, metavar="FILE", help="where to write it (default: dnc.mar)")
    parser.add_argument("--nr-cells", type=int, metavar="N", help="memory slots of a run that is exported")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 and the path on standard output, 1 if the model can't be packed."""
    from dnc_serve.handler.config import ServeConfig
    from dnc_serve.handler.runtime.artifact import ModelError, resolve_artifact
    from dnc_serve.handler.torchserve.archive import MODEL_NAME, write_archive

    target = args.output or Path(f"{MODEL_NAME}.mar")
    if target.exists() and not args.force:
        print(f"dnc archive: {target} exists; --force replaces it", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="dnc-") as scratch:
            artifact = resolve_artifact(args.model, args.nr_cells, Path(scratch) / "artifacts", Path(scratch))
            with made_folder(target.parent):
                write_archive([artifact], target, ServeConfig())
    except (ModelError, OSError) as exc:
        print(f"dnc archive: {reason(exc)}", file=sys.stderr)
        return 1
    print(target)
    return 0
