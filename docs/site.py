"""What `make docs` adds to the pages of this folder: the README and its neighbours, the notebook as a page, and the
reference, written from the code at each build. A hook of MkDocs."""

import argparse
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import dnc_serve.client
import dnc_serve.model
from dnc_serve.client.cli.main import all_commands
from dnc_serve.client.errors import DncError
from dnc_serve.handler.config import ENVIRONMENT_PREFIX, ServeConfig, flag
from dnc_serve.handler.metrics import Metrics
from dnc_serve.proto.reasons import REASONS

logger = logging.getLogger("mkdocs.hooks.dnc")  # with --strict, a warning here fails the build

ROOT = Path(__file__).parents[1]
# Pages that stand beside this folder, as GitHub wants them.
NEIGHBOURS = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
CONTRACTS = ("dnc/v1/dnc.proto", "inference/inference.proto")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in undocumented():
        logger.warning("%s is public and has no docstring", name)
    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Files beside this folder are linked to in the repository, and only named in the site."""

    def named(link: re.Match[str]) -> str:
        if not (ROOT / link["file"]).exists():
            logger.warning("%s links to %s, which isn't there", page.file.src_uri, link["file"])
        return link["text"]

    return re.sub(r"\[(?P<text>[^]]+)\]\(\.\./(?P<file>[^)#]+)[^)]*\)", named, markdown)


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    return {
        **{page: _moved((ROOT / file).read_text()) for page, file in NEIGHBOURS.items()},
        "first-session.md": _notebook(ROOT / "docs" / "quickstart.ipynb"),
        "reference/client.md": _python(dnc_serve.client, "The client library", without=DncError),
        "reference/model.md": _python(dnc_serve.model, "The library of models"),
        "reference/errors.md": _errors(),
        "reference/command.md": _commands(),
        "reference/settings.md": _settings(),
        "reference/metrics.md": _metrics(),
        "reference/contract.md": _contract(),
    }


def undocumented() -> Iterator[str]:
    """Public names of the two libraries, their classes' public parts included, that say nothing of what they are."""
    for module in (dnc_serve.client, dnc_serve.model):
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.getdoc(thing):
                yield f"{module.__name__}.{name}"
            if inspect.isclass(thing):
                for part, value in inspect.getmembers(thing):
                    ours = (inspect.isfunction(value) or isinstance(value, property)) and not part.startswith("_")
                    owner = next((each for each in thing.__mro__ if part in vars(each)), thing)
                    if ours and owner.__module__.startswith("dnc_serve") and not inspect.getdoc(value):
                        yield f"{module.__name__}.{name}.{part}"


def _moved(text: str) -> str:
    """Its links as they lead from within the site; what is no page there is only named."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\[([^]]+)\]\((?:deploy|LICENSE)\)", r"\1", text)
    return text.replace("](CONTRIBUTING.md)", "](contributing.md)")


def _notebook(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    sources = (("".join(cell["source"]), cell["cell_type"]) for cell in cells)
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for text, kind in sources) + "\n"


def _python(module: Any, title: str, without: type | None = None) -> str:
    """Each public name, where it is defined."""
    lines = [f"# {title}", f"`{module.__name__}`: {inspect.getdoc(module)}"]
    for name in module.__all__:
        thing = getattr(module, name)
        if without is None or not (inspect.isclass(thing) and issubclass(thing, without)):
            lines.append(f"::: {thing.__module__}.{thing.__qualname__}")
    return "\n\n".join(lines) + "\n"


def _errors() -> str:
    """Each reason, with its status and the client's exception."""
    tree = (inspect.getdoc(sys.modules[DncError.__module__]) or "").split("\n\n")[1]
    by_reason = {kind("").reason: kind for kind in _kinds(DncError)}
    rows = (
        (f"`{reason}`", f"`{status.name}`", f"`{by_reason[reason].__name__}`", inspect.getdoc(by_reason[reason]))
        for reason, status in REASONS.items()
    )
    return (
        "# Errors\n\nA refusal is a `google.rpc.Status` with an `ErrorInfo` of one of these reasons; the client "
        f"raises the exception. Where it stands in the tree says what kind of mistake it is:\n\n```\n{tree}\n```\n\n"
        + _table(("reason", "status", "exception", ""), rows)
    )


def _kinds(kind: type[DncError]) -> Iterator[type[DncError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def _commands() -> str:
    os.environ["COLUMNS"] = "110"  # what argparse fills
    parser = all_commands()
    [commands] = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    text = f"# The command\n\n```text\n{parser.format_help()}```\n"
    for name, command in commands.choices.items():
        text += f"\n## dnc {name}\n\n```text\n{command.format_help()}```\n"
    return text


def _settings() -> str:
    rows = []
    for name, field in ServeConfig.model_fields.items():
        # Of what hangs on the machine that builds the page, only that it does is told.
        default = "of the machine" if field.default_factory else field.default
        shown = "" if default in ("", None) else ", ".join(default) if name == "model" else str(default)
        rows.append(
            (
                f"`{flag(name)}`",
                f"`{ENVIRONMENT_PREFIX}{name.upper()}`",
                f"`{shown}`" if shown else "",
                field.description,
            )
        )
    return (
        "# Settings\n\nEach is a flag of `dnc serve`, a variable of the environment, or a line of `dnc.toml`; the "
        "first is the strongest.\n\n" + _table(("flag", "variable", "default", ""), rows)
    )


def _metrics() -> str:
    metrics = Metrics()
    metrics.of("copy")
    rows = []
    for family in metrics.registry.collect():
        if family.name.startswith("dnc_"):
            labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append((f"`{name}`", family.type, ", ".join(labels), family.documentation))
    return (
        "# Metrics\n\nAt `/metrics` of the metrics port, with those of the process. With several workers, each series "
        "also has the label `worker`, and `dnc_worker_up` says which of them answer.\n\n"
        + _table(("name", "kind", "labels", ""), rows)
    )


def _contract() -> str:
    """Services and messages with their comments, as protoc reads them."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = [f"-I{ROOT / 'proto'}", "--include_source_info", f"--descriptor_set_out={out}", *CONTRACTS]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)
        read = FileDescriptorSet.FromString(out.read_bytes())
    text = "# The contract\n"
    for file in read.file:
        said = {tuple(at.path): at.leading_comments or at.trailing_comments for at in file.source_code_info.location}
        source = (ROOT / "proto" / file.name).read_text()
        text += f"\n## {file.package}\n\n`proto/{file.name}`. {_comment(source)}\n"
        for number, service in enumerate(file.service):
            rows = (
                (
                    f"`{call.name}`",
                    f"{'stream ' * call.client_streaming}`{_name(call.input_type)}`",
                    f"{'stream ' * call.server_streaming}`{_name(call.output_type)}`",
                    said.get((6, number, 2, index), ""),
                )
                for index, call in enumerate(service.method)
            )
            text += f"\n### {service.name}\n\n" + _table(("call", "asks", "answers", ""), rows)
        for number, message in enumerate(file.message_type):
            text += f"\n### {message.name}\n\n{_flat(said.get((4, number), ''))}\n\n"
            rows = (
                (
                    f"`{field.name}`",
                    "repeated " * (field.label == FieldDescriptorProto.LABEL_REPEATED)
                    + (
                        _name(field.type_name)
                        or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
                    ),
                    said.get((4, number, 2, index), ""),
                )
                for index, field in enumerate(message.field)
            )
            text += _table(("field", "kind", ""), rows) if message.field else "No fields.\n"
    return text


def _comment(source: str) -> str:
    """What a contract says of itself before its first line of code."""
    return _flat(" ".join(line.removeprefix("//") for line in re.split(r"^syntax", source, flags=re.M)[0].splitlines()))


def _name(kind: str) -> str:
    return kind.rpartition(".")[2]


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([_flat(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _flat(text: object) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")
