"""Triton's sequence batcher with our TorchScript artifact in its Python backend, out of the wheel of PyTriton.

The wheel brings the server's program and the Python backend; both run without a GPU. The client is Triton's own, for
asyncio, in the same environment.
"""

import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bench.peers.ports import free_ports, wait_until_open
from dnc_serve.client.cli.measure import lockstep
from dnc_serve.client.cli.measure.lockstep import Figures, Span

HERE = Path(__file__).parent
START_TIMEOUT_S = 120.0
CLIENT_RESERVE_S = 60.0

# Its sequence batcher with the "oldest" strategy, which batches the requests of different sequences.
CONFIG = """
name: "dnc"
backend: "python"
max_batch_size: 64
input [{{ name: "INPUT", data_type: TYPE_FP32, dims: [ -1, {input_size} ] }}]
output [{{ name: "OUTPUT", data_type: TYPE_FP32, dims: [ -1, {output_size} ] }}]
sequence_batching {{
  max_sequence_idle_microseconds: 600000000
  oldest {{ max_candidate_sequences: {sequences} }}
  control_input [
    {{ name: "START", control [{{ kind: CONTROL_SEQUENCE_START, fp32_false_true: [ 0, 1 ] }}] }},
    {{ name: "END", control [{{ kind: CONTROL_SEQUENCE_END, fp32_false_true: [ 0, 1 ] }}] }},
    {{ name: "CORRID", control [{{ kind: CONTROL_SEQUENCE_CORRID, data_type: TYPE_UINT64 }}] }}
  ]
}}
instance_group [{{ count: 1, kind: KIND_CPU }}]
"""


class Triton:
    """A server that runs, and its client."""

    def __init__(self, python: Path, port: int, input_size: int) -> None:
        self._python = python
        self._port = port
        self._input_size = input_size

    def load(self, sessions: int, callers: int, chunk: int, span: Span) -> Figures:
        """A lone session over a stream, several over unary calls; raises SubprocessError if the server dies."""
        asked = {
            "port": self._port,
            "sessions": sessions,
            "callers": callers,
            "chunk": chunk,
            "input_size": self._input_size,
            "span": asdict(span),
        }
        ended = subprocess.run(
            [str(self._python), str(HERE / "triton_client.py"), json.dumps(asked)],
            env={**os.environ, "PYTHONPATH": str(Path(lockstep.__file__).parent)},
            stdout=subprocess.PIPE,
            check=True,
            timeout=span.seconds + span.warm_up_s + CLIENT_RESERVE_S,
        )
        return Figures(**json.loads(ended.stdout))


@contextmanager
def triton(python: Path, artifact: Path, sequences: int) -> Iterator[Triton]:
    """Serves an artifact folder for so many sequences at once; `python` is that of an environment that has PyTriton."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    sizes = {name: manifest[name] for name in ("input_size", "output_size")}
    site_packages = next((python.parent.parent / "lib").glob("python*/site-packages"))
    program = site_packages / "pytriton" / "tritonserver"
    with tempfile.TemporaryDirectory(prefix="dnc-triton-") as temporary:
        folder = Path(temporary)
        backend = folder / "backends" / "python"
        shutil.copytree(program / "backends" / "python", backend)
        version = site_packages.parent.name.removeprefix("python")
        stub = program / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, backend)
        model = folder / "models" / "dnc"
        (model / "1").mkdir(parents=True)
        shutil.copy(HERE / "triton_model.py", model / "1" / "model.py")
        (model / "config.pbtxt").write_text(CONFIG.format(**sizes, sequences=sequences))
        (port,) = free_ports(1)
        libraries = (sysconfig.get_config_var("LIBDIR"), site_packages / "nvidia_pytriton.libs")
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(str(library) for library in libraries),
            "BENCH_SITE_PACKAGES": str(site_packages),
            "BENCH_ARTIFACT": str(artifact / "model.pt"),
            "BENCH_STATE_SIZE": str(manifest["state_size"]),
        }
        command = [
            *(str(program / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"),
            *(f"--backend-directory={folder / 'backends'}", f"--grpc-port={port}", "--grpc-address=127.0.0.1"),
            *("--allow-http=false", "--allow-metrics=false", "--log-info=false"),
        ]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_until_open(port, START_TIMEOUT_S)
            yield Triton(python, port, manifest["input_size"])
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
