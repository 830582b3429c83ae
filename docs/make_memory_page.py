"""Runs the code of `memory.md` in order, against real servers, and puts what it prints below it; then takes the
screenshots. `python docs/make_memory_page.py`, from anywhere.

With `--check` nothing is written: exit code 1 if the code prints something else than the page says.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dnc_serve.client import Client

DOCS = Path(__file__).parent
PAGE = DOCS / "memory.md"
MODELS_ON_THE_PAGE = {"localhost:8500": "copy", "localhost:8501": "recall"}
BLOCK = re.compile(r"(?P<code>```python\n(?P<source>.*?)```\n)(?P<output>\n```text\n.*?```\n)?", re.DOTALL)
RECORD = re.compile(r"```sh\ndnc record (?P<session>\S+) --out \S+\n```\n\n!\[.*\]\((?P<picture>.*)\)\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare what is printed")
    args = parser.parse_args()
    page = PAGE.read_text("utf-8")
    with contextlib.ExitStack() as stack:
        servers = {place: stack.enter_context(served(model)) for place, model in MODELS_ON_THE_PAGE.items()}
        stack.enter_context(working_folder(args.check))
        renewed = run_blocks(page, servers)
        if not args.check:
            PAGE.write_text(renewed, "utf-8")
            take_screenshots(servers["localhost:8500"])
    if args.check and renewed != page:
        raise SystemExit(f"{PAGE} prints something else now: run {Path(__file__).name}")


def run_blocks(page: str, servers: Mapping[str, str]) -> str:
    """The page with what its code prints now; Python blocks share their names, and `dnc record` is run too."""
    names: dict[str, Any] = {}

    def run(block: re.Match[str]) -> str:
        source = block["source"]
        for place, address in servers.items():
            source = source.replace(place, address)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, PAGE.name, "exec"), names)
        return block["code"] + (f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else "")

    renewed: list[str] = []
    end = 0
    try:
        for block in sorted((*BLOCK.finditer(page), *RECORD.finditer(page)), key=lambda block: block.start()):
            renewed.append(page[end : block.start()])
            end = block.end()
            if block.re is BLOCK:
                renewed.append(run(block))
            else:
                record(block["session"], servers["localhost:8500"], Path(block["picture"]))
                renewed.append(block[0])
        return "".join(renewed) + page[end:]
    finally:
        for value in names.values():
            if isinstance(value, Client):
                value.close()


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server of a bundled model, in a process of its own with a fresh state folder."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=serve, args=(model, theirs))
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join()


def serve(model: str, connection: Connection) -> None:
    """Sends the server's address, and serves until the other end is closed."""
    from dnc_serve.handler.config import ServeConfig
    from dnc_serve.handler.server import DncServer
    from dnc_serve.model.export import export
    from dnc_serve.model.pretrained import path
    from dnc_serve.model.weights import load_model

    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        export(load_model(path(model)), artifact)
        server = DncServer(ServeConfig(state_dir=Path(folder) / "state", port=0, metrics_port=0), artifact, "cpu")
        try:
            connection.send(server.start().grpc)
            connection.poll(None)
        finally:
            server.stop()


@contextlib.contextmanager
def working_folder(scratch: bool) -> Iterator[None]:
    """Pictures go to docs/images, or, to leave everything as it is, to a folder that is removed."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "images").mkdir()
        os.chdir(folder if scratch else DOCS)
        try:
            yield
        finally:
            os.chdir(before)


def record(session_id: str, address: str, to: Path) -> None:
    """The session's animation, as `dnc record` makes it."""
    from dnc_serve.client.cli.main import main as dnc

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        if dnc(["record", session_id, "--out", folder, "--target", address]) != 0:
            raise SystemExit(f"session {session_id} could not be recorded")
        shutil.copyfile(Path(folder) / "recording.gif", to)


def take_screenshots(address: str) -> None:
    """The four views of `dnc watch`, if there is a Chromium to take them with."""
    from screenshots import take

    take(address, Path("images"))


if __name__ == "__main__":
    main()
