"""The pages of docs/: the site is built from them, and each block of code runs, here or in a test of the page's own."""

import os
import re
import secrets
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from dnc_serve.model import DNC, save_weights
from tests.documents import ROOT, block, run_python, run_shell
from tests.end_to_end.servers import Server, running
from tests.model.tasks.published import write_babi, write_underground
from tests.ports import own_port
from tests.programs import COMPLETE_VARIABLE, program

DOCS = ROOT / "docs"
HTTP = ("--http-port", "0")
# Pages whose Python is one program, run here from top to bottom, against a server with the bundled copy model.
PROGRAMS = ("client.md", "library.md", "triton.md")
# Pages with a test of their own, which runs their blocks; each must name them.
ELSEWHERE = {
    "memory.md": "tests/client/watch/test_memory_page.py",
    "recall-and-graph.md": "tests/client/watch/test_memory_page.py",
    "models.md": "tests/end_to_end/test_models.py",
    "migration.md": "tests/model/test_migration.py",
    "your-data.md": "tests/end_to_end/test_your_data.py",
    "your-model.md": "tests/end_to_end/test_your_model.py",
    "reference.md": "tests/end_to_end/test_readme.py",
}
# Blocks that can't be run by a test, by a line of theirs.
NOT_RUN = (
    "docker", "kubectl", "helm install",  # need an engine, or a cluster
    "perf_analyzer -m",  # of NVIDIA, and k6 beside it: tests/clients runs both
    "job_name:",  # of a configuration of Prometheus
)  # fmt: skip


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "state.keys"
    keys.write_text(secrets.token_hex(32))
    flags = ("--runtime", "plain", "--state-keys", str(keys), *HTTP)
    with running("copy", tmp_path_factory.mktemp("bundled"), *flags) as server:
        yield server


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block that says its language."""
    return re.findall(r"^ *```(python|sh|yaml)\n(.*?)^ *```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PROGRAMS)
def test_a_page_is_a_program(page: str, bundled: Server, tmp_path: Path) -> None:
    source = "\n".join(text for language, text in blocks(page) if language == "python")
    said = run_python(source.replace("localhost:8500", bundled.grpc), tmp_path)
    if page == "client.md":
        assert said.splitlines() == [
            "100 stepped, 0 failed",
            "[10, 10]",
            "SESSION_NOT_FOUND",
            "[timesteps, 10] [3, 4]",
        ]
    if page == "triton.md":
        assert said == "(2, 8) 4\n"


def test_triton_over_http(bundled: Server, tmp_path: Path) -> None:
    for mark in ("v2/models", "/v1/call"):
        script = block("docs/triton.md", "sh", mark).replace("localhost:8501", bundled.addresses["inference"])
        assert '"error"' not in run_shell(script, tmp_path)


def test_a_writer_goes_on_in_anothers_place(bundled: Server, tmp_path: Path) -> None:
    source = block("docs/sessions.md", "python", "writer_id")
    run_python(source.replace("localhost:8500", bundled.grpc), tmp_path)


def test_a_state_travels_with_the_call(bundled: Server, tmp_path: Path) -> None:
    made, serve = block("docs/sessions.md", "sh", "--state-keys").splitlines()
    run_shell(made, tmp_path)
    assert re.fullmatch("[0-9a-f]{64}\n", (tmp_path / "state.keys").read_text())
    assert serve.startswith("dnc serve --state-keys state.keys ")
    source = block("docs/sessions.md", "python", "step_with_state")
    assert run_python(source.replace("localhost:8500", bundled.grpc), tmp_path).startswith("(2, 8) 5 ")


def test_a_load_is_recorded_and_judged(bundled: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    load, check = block("docs/histories.md", "sh", "tests.histories").splitlines()
    run_shell(load.replace("localhost:8500", bundled.grpc).replace("--seconds 30", "--seconds 2"), tmp_path)
    assert "sessions: explained" in run_shell(check, tmp_path)


def test_a_tick_becomes_onnx(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_weights(DNC(4, 8, nr_cells=4, cell_size=4), tmp_path / "runs" / "copy")
    run_python(block("docs/training.md", "python", "onnx"), tmp_path)
    assert (tmp_path / "tick.onnx").is_file()


def test_the_papers_tasks_are_trained_and_examined(tmp_path: Path) -> None:
    write_underground(tmp_path / "underground")
    write_babi(tmp_path / "elsewhere" / "babi")
    with tarfile.open(tmp_path / "babi.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "elsewhere" / "babi", "babi")
    script = block("docs/tasks.md", "sh", "dnc train priority_sort")
    script = script.replace("dnc train", "dnc train --iterations 1 --batch-size 2 --episodes 100").replace("144", "16")
    said = run_shell(script, tmp_path)
    assert "the underground, fresh: " in said and "mean error " in said
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"sort", "traversal", "path", "family", "babi"}


def test_a_sparse_memory_is_built_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said = run_python(block("docs/sparse.md", "python", 'memory="sparse"'), tmp_path)
    assert said.startswith("torch.Size([1, 100000, 32]) [[[")
    train, export = block("docs/sparse.md", "sh", "dnc train").splitlines()
    run_shell(f"{train} --iterations 2", tmp_path)
    assert "100000 memory slots" in run_shell(export, tmp_path)
    assert "| 1,024 | sparse_links | 0.2 MiB |" in run_shell(
        f"{block('docs/sparse.md', 'sh', 'bench.sparse').strip()} --most 1024 --turns 1", tmp_path
    )


def test_a_token_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, serve = block("docs/security.md", "sh", "dnc token").splitlines()
    monkeypatch.setenv("DNC_TOKEN", run_shell(token, tmp_path).strip())
    assert serve.startswith("dnc serve ")
    run_python(block("docs/security.md", "python", "Client("), tmp_path)


def test_several_servers_stand_in_for_one_another(tmp_path: Path) -> None:
    start = block("docs/deploy.md", "sh", "openssl req").replace("redis-server", program("redis-server"))
    step = block("docs/deploy.md", "python", "servers = [")
    for port in ("6379", "8510", "8520", "8530"):
        own = str(own_port())
        start, step = start.replace(port, own), step.replace(port, own)
    start = start.replace("85?0.log", "?????.log").replace("sleep 1; done", "sleep 1; done; jobs -p")
    servers = [int(pid) for pid in run_shell(start, tmp_path).split()]
    try:
        step += "    print(client.session('s').position)\n"
        position = 1
        assert run_python(step, tmp_path) == f"{position}\n"
        while len(servers) > 1:  # sooner or later it is the one that has the session
            os.kill(servers.pop(), signal.SIGKILL)
            position += 1
            assert run_python(step, tmp_path) == f"{position}\n"
    finally:
        for pid in (*servers, int((tmp_path / "redis.pid").read_text())):
            os.kill(pid, signal.SIGTERM)


def test_no_block_is_forgotten() -> None:
    here = Path(__file__).read_text()
    for page in sorted(path.name for path in DOCS.glob("*.md")):
        if page in PROGRAMS:
            continue
        if page in ELSEWHERE:
            assert page in (ROOT / ELSEWHERE[page]).read_text()
        elif any(not any(mark in text for mark in NOT_RUN) for _, text in blocks(page)):
            assert f'"docs/{page}"' in here, f"{page} has code that no test runs"


def test_the_notebook(bundled: Server, tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)
    environment = {**os.environ, "DNC_TARGET": bundled.grpc, "IPYTHONDIR": str(tmp_path), "HOME": str(tmp_path)}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute(
        env=environment
    )
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert "<ModelInfo copy: float32[10] → float32[8]" in str(shown[0])


def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None:
        assert not os.environ.get(COMPLETE_VARIABLE), "`make docs` comes first"
        pytest.skip("MkDocs is not installed: `make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "client" / "index.html").read_text()
    assert "Outputs [T, O] for inputs [T, I]" in page
