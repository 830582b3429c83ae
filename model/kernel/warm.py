"""Compiles models for this host ahead of their serving, so that no server has to wait for it.

    python -m dnc_serve.model.kernel.warm [--into FOLDER] [--also FOLDER] [--any-processor] MODEL…

MODEL is a bundled name, or a folder of a training run or an artifact. What a folder has already is not compiled again.
Standard error tells what is waited for; exit code 1, with the reason, where the kernel can't be had.
"""

import argparse
import json
import sys
from pathlib import Path

from dnc_serve.model import pretrained
from dnc_serve.model.config import DNCConfig
from dnc_serve.model.kernel.code import CompileRequest, KernelError, any_of, compile_code, compiled, request, user_cache


def warm(configs: list[DNCConfig], into: Path, also: tuple[Path, ...] = (), any_processor: bool = False) -> None:
    """Compiles what neither `into` nor the folders `also` have. Raises KernelError."""
    wanted: list[CompileRequest] = []
    for config in configs:
        for asked in any_of(request(config)) if any_processor else [request(config)]:
            if compiled(asked, (into, *also)) is None and asked not in wanted:
                wanted.append(asked)
    for kind in dict.fromkeys((asked.processor, asked.features) for asked in wanted):
        some = [asked for asked in wanted if (asked.processor, asked.features) == kind]
        sys.stderr.write(f"compiling the row kernel for {kind[0]}: some ten seconds, once\n")
        compile_code(some, into)


def config_of(model: str) -> DNCConfig:
    """The config of a bundled model, a run or an artifact."""
    folder = pretrained.path(model) if model in pretrained.NAMES and not Path(model).exists() else Path(model)
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return DNCConfig.from_dict(json.loads(manifest.read_text())["config"])
    return DNCConfig.from_dict(json.loads((folder / "config.json").read_text()))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL", nargs="+")
    parser.add_argument("--into", type=Path, default=user_cache())
    parser.add_argument("--also", type=Path, action="append", default=[])
    parser.add_argument("--any-processor", action="store_true", help="for all that the code may be moved to")
    args = parser.parse_args()
    try:
        warm([config_of(model) for model in args.models], args.into, tuple(args.also), args.any_processor)
    except (KernelError, OSError, ValueError, KeyError) as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
