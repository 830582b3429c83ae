"""`dnc serve`: a model behind the streaming endpoint and TorchServe's, in the foreground."""

import argparse
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dnc_serve.client.cli.files import reason
from dnc_serve.client.cli.parser import path

if TYPE_CHECKING:
    from dnc_serve.handler.config import ServeConfig

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
        shown = "not set" if default in ("", None) else ", ".join(default) if name == "model" else str(default)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = "VALUE"
            if name == "model":
                options["action"] = "append"
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
        return serve(loaded.config, stops, lambda addresses: _tell(loaded.config, addresses))
    except (StartFailed, ModelError, FileUnusable, AddressUnusable, OSError) as exc:
        return _refuse(exc, 1)
    except ImportError as exc:  # of a runtime
        return _refuse(f"{exc}; {NEEDS}", 1)


def _tell(config: "ServeConfig", addresses: Mapping[str, str]) -> None:
    """The line for programs; on a terminal also what to do with the address."""
    lines = ["ready " + " ".join(f"{name}={address}" for name, address in addresses.items())]
    if sys.stdout.isatty():
        grpc = addresses["grpc"]
        token, tls = ", token=…" if config.tokens else "", ", tls=TLS(…)" if config.tls_certificate else ""
        lines.append(f'python: Client("{grpc}"{token}{tls}).session("my-session").step(inputs)')
        lines.append(f"look:   dnc watch --target {grpc}")
    print("\n".join(lines), flush=True)


def _refuse(why: Exception | str, code: int) -> int:
    print(f"dnc serve: {why if isinstance(why, str) else reason(why)}", file=sys.stderr)
    return code
