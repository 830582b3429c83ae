"""Runs the code and the commands of the pages about memories in order, against real servers, and puts what they print
below them; then takes the screenshots. `python docs/make_memory_page.py [PAGE …]`, from anywhere.

With `--check` nothing is written: exit code 1 if something else is printed than a page says.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from dnc_serve.client import Client

DOCS = Path(__file__).parent
# The pages, and which model stands behind an address on them.
PAGES = {
    "memory.md": {"localhost:8500": "copy", "localhost:8501": "recall"},
    "recall-and-graph.md": {"localhost:8500": "graph"},
}
PAGE_WITH_SCREENSHOTS = "memory.md"
OTHER_MODEL = "gru"  # that is no DNC
OUTPUT = r"(?P<output>\n```text\n.*?```\n)?"
CODE = re.compile(r"(?P<code>```python\n(?P<source>.*?)```\n)" + OUTPUT, re.DOTALL)
DEMO = re.compile(r"(?P<code>```sh\n(?P<source>(?:dnc demo [^\n]*\n)+)```\n)" + OUTPUT, re.DOTALL)
RECORD = re.compile(r"```sh\ndnc record (?P<session>\S+) --output \S+\n```\n\n!\[.*\]\((?P<picture>.*)\)\n")
FILE = re.compile(r"`(?P<name>[\w.-]+)`:\n\n```csv\n(?P<text>.*?)```\n", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"{', '.join(PAGES)} (all)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare what is printed")
    args = parser.parse_args()
    for name in args.pages or PAGES:
        if name not in PAGES:
            parser.error(f"page is {name!r}; expected one of {', '.join(PAGES)}")
        make(DOCS / name, args.check)


def make(path: Path, check: bool) -> None:
    """Renews a page and its pictures, or raises SystemExit if it says something else than what is printed now."""
    page = path.read_text("utf-8")
    with contextlib.ExitStack() as stack:
        servers = {place: stack.enter_context(served(model)) for place, model in PAGES[path.name].items()}
        images = stack.enter_context(working_folder()) / "images"
        renewed = run_blocks(page, servers)
        if not check:
            path.write_text(renewed, "utf-8")
            if path.name == PAGE_WITH_SCREENSHOTS:
                take_screenshots(servers["localhost:8500"])
            shutil.copytree(images, DOCS / "images", dirs_exist_ok=True)
    if check and renewed != page:
        raise SystemExit(f"{path} prints something else now: run {Path(__file__).name}")


def run_blocks(page: str, servers: Mapping[str, str]) -> str:
    """The page with what its code prints now. Python blocks share their names; files, `dnc demo` and `dnc record` are
    taken at their word too."""
    names: dict[str, Any] = {}
    renewed: list[str] = []
    end = 0
    blocks = (block for kind in (CODE, DEMO, RECORD, FILE) for block in kind.finditer(page))
    try:
        for block in sorted(blocks, key=re.Match.start):
            renewed.append(page[end : block.start()])
            end = block.end()
            if block.re is CODE:
                renewed.append(block["code"] + printed_by(run_code, block["source"], servers, names))
            elif block.re is DEMO:
                renewed.append(block["code"] + printed_by(run_demos, block["source"]))
            else:
                renewed.append(block[0])
            if block.re is RECORD:
                record(block["session"], servers["localhost:8500"], Path(block["picture"]))
            elif block.re is FILE:
                Path(block["name"]).write_text(block["text"], "utf-8")
        return "".join(renewed) + page[end:]
    finally:
        for value in names.values():
            if isinstance(value, Client):
                value.close()


def printed_by(run: Callable[..., None], *arguments: Any) -> str:
    """The block of text to put below a block that was run."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(*arguments)
    return f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""


def run_code(source: str, servers: Mapping[str, str], names: dict[str, Any]) -> None:
    """Runs a Python block against the servers that stand behind its addresses."""
    for place, address in servers.items():
        source = source.replace(place, address)
    exec(compile(source, "page", "exec"), names)


def run_demos(commands: str) -> None:
    """Runs `dnc demo …`, a command a line."""
    from dnc_serve.client.cli.main import main as dnc

    for command in commands.splitlines():
        if dnc(shlex.split(command)[1:]) != 0:
            raise SystemExit(f"{command} failed")


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server of a model, in a process of its own with a fresh state folder."""
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
    import torch

    from dnc_serve.handler.config import ServeConfig
    from dnc_serve.handler.server import DncServer
    from dnc_serve.model.export import export
    from dnc_serve.model.pretrained import path
    from dnc_serve.model.weights import load_model, task_of

    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        if model == OTHER_MODEL:
            torch.manual_seed(0)
            export(torch.nn.GRU(2, 24), artifact)
        else:
            export(load_model(path(model)), artifact, task=task_of(path(model)))
        server = DncServer(
            ServeConfig(model=model, state_dir=Path(folder) / "state", port=0, metrics_port=0), [artifact], "cpu"
        )
        try:
            connection.send(server.start().grpc)
            connection.poll(None)
        finally:
            server.stop()


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A folder that is removed, to run in; what commands keep between runs stays in there too."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "images").mkdir()
        state_home = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = folder
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            if state_home is None:
                del os.environ["XDG_STATE_HOME"]
            else:
                os.environ["XDG_STATE_HOME"] = state_home


def record(session_id: str, address: str, to: Path) -> None:
    """The session's animation, as `dnc record` makes it."""
    from dnc_serve.client.cli.main import main as dnc

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        if dnc(["record", session_id, "--output", folder, "--target", address]) != 0:
            raise SystemExit(f"session {session_id} could not be recorded")
        shutil.copyfile(Path(folder) / "recording.gif", to)


def take_screenshots(address: str) -> None:
    """The views of `dnc watch`, if there is a Chromium to take them with."""
    from screenshots import take, take_any_model

    take(address, Path("images"))
    with served(OTHER_MODEL) as other:
        turns = np.linspace(0, 9, 56, dtype=np.float32)
        take_any_model(other, np.stack([np.sin(turns), np.sin(3 * turns)], 1), Path("images"))


if __name__ == "__main__":
    main()
