"""A folder of models, laid out as Triton's repositories are: what appears there as DIR/NAME/VERSION is loaded.

A version counts as complete when its manifest is there and nothing of it has changed between two looks; one that
can't be loaded is tried again when it changes. What is taken out of the folder stays loaded until it is unloaded.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.runtime.artifact import MANIFEST_FILE

logger = logging.getLogger(__name__)

LOOK_S = 1.0

Stamp = tuple[tuple[str, int, int], ...]
"""Names, times and sizes of the files of a version."""


class WatchedFolder:
    """Looks for new versions. `known(name, version)` says whether one is served, `load(name, source, version)` has it
    served."""

    def __init__(
        self,
        folder: Path,
        known: Callable[[str, str], bool],
        load: Callable[[str, str, str], Awaitable[object]],
    ) -> None:
        self._folder = folder
        self._known = known
        self._load = load
        self._seen: dict[Path, Stamp] = {}
        self._tried: dict[Path, Stamp] = {}

    async def run(self) -> None:
        """Looks every second until it is cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("the models in %s will be looked at again", self._folder)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Loads what is new and has not changed since the last look."""
        found = await asyncio.get_running_loop().run_in_executor(None, lambda: dict(self._complete()))
        settled = [one for one, stamp in found.items() if self._seen.get(one) == stamp != self._tried.get(one)]
        self._seen = found
        for version in sorted(settled):
            self._tried[version] = found[version]
            if self._known(version.parent.name, version.name):
                continue
            try:
                await self._load(version.parent.name, str(version), version.name)
            except ServeError as error:
                logger.error("%s isn't served: %s", version, error)

    def _complete(self) -> Iterator[tuple[Path, Stamp]]:
        for manifest in self._folder.glob(f"*/*/{MANIFEST_FILE}"):
            version = manifest.parent
            try:
                files = sorted((file.name, file.stat()) for file in version.iterdir())
            except FileNotFoundError:  # it goes just now
                continue
            yield version, tuple((name, status.st_mtime_ns, status.st_size) for name, status in files)
