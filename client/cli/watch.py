"""`dnc watch`: sessions at work, in the browser."""

import argparse
import asyncio
import signal
import sys
import webbrowser

from dnc_serve.client.async_client import AsyncClient
from dnc_serve.client.cli.connection import add_connection, add_session, settings

HELP = "show sessions at work in the browser"
DEFAULT_PORT = 8600


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serves a page for this machine only, as a client of the server, until Ctrl-C. One line on standard output "
        "begins with `ready` and gives the page's address; whoever has that address can use the page."
    )
    add_session(parser, nargs="?", default="", help="the session to begin with (a list)")
    parser.add_argument(
        "--page-port", type=_port, default=DEFAULT_PORT, metavar="PORT", help=f"0 for a free one ({DEFAULT_PORT})"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    try:
        from dnc_serve.client.watch.site import Site
    except ImportError as exc:
        print(f"dnc watch: {exc}; the page needs more: pip install 'dnc-serve[watch]'", file=sys.stderr)
        return 1

    async def serve() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        # Single attempts: the page says at once that the server is lost, and asks again by itself.
        async with AsyncClient(**settings(args), retry=None) as client:
            site = Site(client)
            try:
                address = await site.start(args.page_port, args.session)
                print(f"ready page={address}", flush=True)
                if not args.no_browser:
                    webbrowser.open(address)
                await stopped.wait()
            finally:
                await site.stop()

    try:
        asyncio.run(serve())
    except OSError as exc:
        print(f"dnc watch: port {args.page_port} can't be used: {exc}; give another --page-port", file=sys.stderr)
        return 1
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{port}; expected 0 to 65535")
    return port
