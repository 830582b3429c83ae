"""`dnc serve`: a model behind the streaming endpoint and TorchServe's, in the foreground."""

import argparse
import logging
import sys
from typing import Any

from dnc_serve.client.cli.files import reason
from dnc_serve.client.cli.parser import path

HELP = "serve a model until Ctrl-C or SIGTERM"
NEEDS = "serving needs more: pip install 'dnc-serve[serve]'"


def configure(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting of `ServeConfig`."""
    from dnc_serve.handler.config import ENVIRONMENT_PREFIX, ServeConfig, flag

    parser.description = (
        f"Each setting can also be given as {ENVIRONMENT_PREFIX}… in the environment, or in a TOML file; a flag is "
        "stronger than the environment, and that than the file. When it serves, one line on standard output begins "
        "with `ready` and gives all addresses."
    )
    parser.add_argument("--config", type=path, metavar="FILE", help="TOML file of settings (default: ./dnc.toml)")
    parser.add_argument("--show-config", action="store_true", help="print each setting and where it came from, and end")
    for name, field in ServeConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "not set" if default in ("", None) else str(default)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = "VALUE"
        parser.add_argument(flag(name), help=f"{field.description} ({shown})".replace("%", "%%"), **options)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 after a stop, 1 if it can't start or can't go on, 2 for a wrong setting."""
    from dnc_serve.handler.config import ServeConfig
    from dnc_serve.handler.settings import ConfigError, load_config, unknown_variables

    flags = {name: value for name, value in vars(args).items() if name in ServeConfig.model_fields}
    try:
        loaded = load_config(flags, args.config)
    except ConfigError as exc:
        return _refuse(exc, 2)
    misspelt = unknown_variables()
    if args.show_config:
        for sentence in misspelt:
            print(f"dnc serve: {sentence}", file=sys.stderr)
        print(loaded.show())
        return 0
    try:
        from dnc_serve.handler.launch import serve
        from dnc_serve.handler.runtime.events import Stops
    except ImportError as exc:
        return _refuse(f"{exc}; {NEEDS}", 1)
    stops = Stops()

    from dnc_serve.handler.runtime.artifact import ModelError
    from dnc_serve.handler.runtime.child import StartFailed
    from dnc_serve.handler.runtime.files import FileUnusable
    from dnc_serve.handler.runtime.logs import configure_logs
    from dnc_serve.handler.runtime.ports import AddressUnusable

    configure_logs(loaded.config.log_level)
    for sentence in misspelt:
        logging.getLogger(__name__).warning(sentence)
    try:
        return serve(loaded.config, stops, lambda line: print(line, flush=True))
    except (StartFailed, ModelError, FileUnusable, AddressUnusable, OSError) as exc:
        return _refuse(exc, 1)
    except ImportError as exc:  # of a runtime
        return _refuse(f"{exc}; {NEEDS}", 1)


def _refuse(why: Exception | str, code: int) -> int:
    print(f"dnc serve: {why if isinstance(why, str) else reason(why)}", file=sys.stderr)
    return code
