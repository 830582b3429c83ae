"""Triton's sequence batcher with our TorchScript artifact in its Python backend, out of the wheel of PyTriton.

The wheel brings the server's program and the Python backend; both run without a GPU.
"""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

import psutil

from bench.peers.setup import free_ports, wait_until_open
from bench.servers import tree
from dnc_serve.client.cli.load import Server
from dnc_serve.model.artifact import load_artifact

HERE = Path(__file__).parent


@contextmanager
def triton(python: Path, artifact: Path, sequences: int) -> Iterator[Server]:
    """Serves an artifact folder for so many sequences at once; `python` is that of an environment that has PyTriton."""
    model_served = load_artifact(artifact)
    (input_size,), (output_size,) = model_served.inputs.shape, model_served.outputs.shape
    site_packages = next((python.parent.parent / "lib").glob("python*/site-packages"))
    program = site_packages / "pytriton" / "tritonserver"
    with tempfile.TemporaryDirectory(prefix="dnc-triton-") as temporary:
        folder = Path(temporary)
        backend = folder / "backends" / "python"
        shutil.copytree(program / "backends" / "python", backend)
        version = site_packages.parent.name.removeprefix("python")
        shutil.copy(program / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
        model = folder / "models" / "dnc"
        (model / "1").mkdir(parents=True)
        shutil.copy(HERE / "triton_model.py", model / "1" / "model.py")
        config = Template((HERE / "triton_config.pbtxt").read_text())
        (model / "config.pbtxt").write_text(
            config.substitute(input_size=input_size, output_size=output_size, sequences=sequences)
        )
        (port,) = free_ports(1)
        libraries = (sysconfig.get_config_var("LIBDIR"), site_packages / "nvidia_pytriton.libs")
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(str(library) for library in libraries),
            "BENCH_SITE_PACKAGES": str(site_packages),
            "BENCH_ARTIFACT": str(artifact / "model.pt"),
            "BENCH_STATE_SIZE": str(model_served.layout.size),
        }
        command = [
            *(str(program / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"),
            *(f"--backend-directory={folder / 'backends'}", f"--grpc-port={port}", "--grpc-address=127.0.0.1"),
            *("--allow-http=false", "--allow-metrics=false", "--log-info=false"),
        ]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_until_open(port)
            pids = tuple(each.pid for each in tree(psutil.Process(process.pid)))
            yield Server(f"127.0.0.1:{port}", input_size, pids=pids)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
