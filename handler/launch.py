"""`dnc serve`, from its settings to its exit code."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.artifact import resolve_artifact
from dnc_serve.handler.runtime.contract import Runtime
from dnc_serve.handler.runtime.events import Stops
from dnc_serve.handler.runtime.files import check_files
from dnc_serve.handler.runtime.fleet import Fleet
from dnc_serve.handler.runtime.layout import lay_out
from dnc_serve.handler.runtime.parent import adopt_orphans
from dnc_serve.handler.runtime.ports import check_ports
from dnc_serve.handler.runtime.progress import Progress
from dnc_serve.handler.runtime.run_folder import run_folder
from dnc_serve.handler.runtime.supervisor import Stopped, Supervisor

logger = logging.getLogger(__name__)


def serve(config: ServeConfig, stops: Stops, ready: Callable[[Mapping[str, str]], None]) -> int:
    """Serves until stopped; returns the exit code. `ready` is told the addresses of all endpoints, by their names.

    Raises StartFailed, ModelError, FileUnusable, AddressUnusable, FileNotFoundError for what isn't installed.
    """
    logger.info("starting", extra={"model": ", ".join(config.model), "state_dir": str(config.state_dir)})
    check_files(config)
    check_ports(config)
    adopt_orphans()
    with run_folder() as folder, Progress() as progress:
        progress.awaits("the model to be exported")
        artifacts = _artifacts(config, folder)
        progress.awaits("sessions to be moved to their workers")
        lay_out(config)
        supervisor: Supervisor | Fleet
        if config.workers == 1:
            supervisor = Supervisor(_runtime(config, artifacts, folder), config, folder, stops.events)
        else:
            supervisor = _fleet(config, artifacts, folder, stops)
        try:
            supervisor.start(progress)
            progress.end()
            ready(supervisor.addresses)
            return supervisor.watch()
        except Stopped:
            return 0
        finally:
            supervisor.end()


def _artifacts(config: ServeConfig, folder: Path) -> list[Path]:
    """The artifact folders of the models, in their order."""
    found = []
    for number, model in enumerate(config.models):
        scratch = folder / f"model-{number}"
        scratch.mkdir()
        cache = config.state_dir / "artifacts"
        found.append(resolve_artifact(model.source, config.nr_cells, cache, scratch).absolute())
    return found


def _fleet(config: ServeConfig, artifacts: list[Path], folder: Path, stops: Stops) -> Fleet:
    from dnc_serve.handler.plain.runtime import PlainRuntime

    return Fleet(lambda own, name: PlainRuntime(artifacts, own, name), config, folder, stops.events)


def _runtime(config: ServeConfig, artifacts: list[Path], folder: Path) -> Runtime:
    """The one that the settings name; only that one is imported."""
    if config.runtime == "plain":
        from dnc_serve.handler.plain.runtime import PlainRuntime

        return PlainRuntime(artifacts, folder)
    from dnc_serve.handler.torchserve.torchserve import TorchServeRuntime

    return TorchServeRuntime(config, artifacts, folder)
