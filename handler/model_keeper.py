"""What is served: the models that the configuration names, and the versions that were loaded since.

    load     a version is looked at in a process of its own, copied into the state folder, and loaded in a thread; what
             can't be loaded changes nothing
    unload   it gets no new sessions from the first moment on, and is dropped once none of its own is left
    sync     what the state folder says is served; each worker does that when it starts, and when another one changed it

Calls go on meanwhile.
"""

import asyncio
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import Operations
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.observer import Observer
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.model_store import ModelStore
from dnc_serve.handler.named_models import NamedModel, check_name
from dnc_serve.handler.place import Place
from dnc_serve.handler.runtime.artifact import MANIFEST_FILE
from dnc_serve.handler.runtime.environment import child_environment
from dnc_serve.handler.served import ServedModel
from dnc_serve.handler.store.contract import Head, StoreRefused
from dnc_serve.handler.version_folder import KeptVersion, VersionFolder

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PREPARE = "dnc_serve.handler.runtime.prepare"
LOOK_S = 0.05  # how often it is looked whether a version has come to rest


class ModelKeeper:
    """Loads and unloads what `models` has.

    `observers(name, version)` are told by the engine of a version.
    """

    models: Models

    def __init__(
        self,
        config: ServeConfig,
        artifacts: Sequence[Path],
        device: str,
        place: Place | None,
        observers: Callable[[str, str], list[Observer]],
    ) -> None:
        """Loads what is there at the start. Raises what keeps one of them from being loaded."""
        self._config, self._device, self._place = config, device, place
        self._observers = observers
        self._folder = VersionFolder(config.state_dir)
        self._stores: dict[str, ModelStore] = {}  # by the model's name
        self._owner = ""
        self._kept: dict[tuple[str, str], KeptVersion] = {}
        self._changing = asyncio.Lock()
        self._parts = {model.name: model.part for model in config.models}
        self.served: list[ServedModel] = []  # in the order in which they were loaded
        self._broken: set[tuple[str, str]] = set()  # versions that could not be loaded again; their sessions wait
        kept = list(self._load_all_kept())
        self.served += [served for _, served in kept]
        self._kept |= {(one.name, one.version): one for one, _ in kept}
        self._configured: dict[str, tuple[str, str]] = {}  # by name: the version, and its digest
        for model, artifact in zip(config.models, artifacts, strict=True):
            digest, others = _digest_of(artifact), self.of(model.name)
            version, former = self._folder.configured(model.name)
            # What was loaded while it was configured is newer; what is configured since then is newer than that.
            at = self.served.index(others[0]) if others and former == digest else len(self.served)
            version = version if former == digest else self._next_version(model.name)
            self._configured[model.name] = version, digest
            if any(one.digest == digest for one in others):  # it was loaded before it was configured
                continue
            if others and digest in self._folder.dropped(model.name):
                logger.warning("%s isn't served: it was unloaded, and %s has other versions", model.source, model.name)
                continue
            self.served.insert(at, ServedModel(model, version, artifact, config, device))

    def _next_version(self, name: str) -> str:
        numbers = [int(one.version) for one in self.of(name) if one.version.isdecimal()]
        numbers += [int(version) for broken, version in self._broken if broken == name and version.isdecimal()]
        return str(1 + max(numbers, default=0))

    async def open(self, owner: str, operations: Callable[[ServedModel], Operations]) -> Models:
        """Finds the sessions; returns what may be asked of all, which `operations` makes. Raises StoreRefused."""
        self._owner, self._operations = owner, operations
        for name in dict.fromkeys(one.name for one in self.served):
            await self._open_store(name, self.of(name))
        order = list(self._parts)
        self.models = Models(
            [operations(one) for one in self.served],
            default=next(name for name in order if self.of(name)),
        )
        self._tell_shares()
        return self.models

    def of(self, name: str) -> list[ServedModel]:
        """The versions of a model, in the order in which they were loaded."""
        return [one for one in self.served if one.name == name]

    async def _open_store(self, name: str, versions: list[ServedModel]) -> None:
        store = self._stores[name] = ModelStore(versions[0].part, self._config)
        newest = versions[-1]
        heads = await store.open(self._owner, self._place, self._observers(name, newest.version))
        by_digest: dict[str, list[Head]] = {}
        for head in heads:
            by_digest.setdefault(head.digest, []).append(head)
        for one in versions:
            one.open(store, self._observers(name, one.version))
            await one.register(by_digest.pop(one.digest, []))
        # Of versions that aren't there: they are refused, until these are.
        await newest.register([head for some in by_digest.values() for head in some])

    def keep_up(self) -> None:
        """Does from now on what is to be done beside serving."""
        for one in self.served:
            self._keep_up(one)

    def _keep_up(self, one: ServedModel) -> None:
        one.keep_up(lambda: self.of(one.name)[:1] == [one])

    async def leave(self) -> None:
        """Snapshots all sessions."""
        await asyncio.gather(*(one.leave() for one in self.served))

    def close(self) -> None:
        """Ends everything."""
        for one in self.served:
            one.close()
        for store in self._stores.values():
            store.close()

    # While it runs.

    async def load(self, name: str, source: str, version: str, share: float | None) -> tuple[str, str]:
        """Puts a version of a model into the state folder, or gives one that is there another share; `sync` then serves
        it. Returns its name and version. Raises MODEL_UNUSABLE, MODEL_IN_USE, BAD_REQUEST."""
        async with self._changing:
            name = name or self.models.default.name
            version = version or self._next_version(name)
            _check(name, version, share)
            kept = self._kept.get((name, version))
            there = any(one.version == version for one in self.of(name)) or (name, version) in self._broken
            if not source:
                if kept is None:
                    raise ServeError(
                        "BAD_REQUEST", f"source is empty, and no version {version!r} of {name!r} was loaded"
                    )
                await self._run(self._folder.change, replace(kept, share=share, retiring=False))
                return name, version
            if there:
                raise ServeError(
                    "MODEL_IN_USE", f"{name!r} has a version {version!r} already: unload it, or give another"
                )
            with tempfile.TemporaryDirectory(prefix="dnc-load-") as scratch:
                artifact = await self._run(self._prepared, source, Path(scratch))
                digest = await self._run(_digest_of, artifact)
                same = next((one.version for one in self.of(name) if one.digest == digest), None)
                if same is not None:
                    raise ServeError("MODEL_IN_USE", f"{source} is what {name!r} has as version {same!r} already")
                try:
                    configured = self._configured.get(name, ("", ""))
                    await self._run(self._folder.keep, name, version, artifact, share, configured)
                except OSError as exc:
                    raise ServeError(
                        "MODEL_UNUSABLE", f"{source} can't be copied into the state folder: {exc}"
                    ) from exc
            return name, version

    def _prepared(self, source: str, scratch: Path) -> Path:
        config = self._config
        arguments = [source, str(config.state_dir), str(scratch), self._device, config.code]
        child = subprocess.run(
            [sys.executable, "-m", PREPARE, *arguments],
            capture_output=True, text=True, check=False, env=child_environment({}), start_new_session=True,
        )  # fmt: skip
        if child.returncode != 0:
            why = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ServeError("MODEL_UNUSABLE", f"{source} can't be served: {why}", got=source)
        return Path(child.stdout.strip().splitlines()[-1])

    async def sync(self) -> None:
        """Serves what the state folder says. Raises MODEL_UNUSABLE if something can't be; the rest is served."""
        async with self._changing:
            kept = {(one.name, one.version): one for one in await self._run(self._folder.read)}
            self._broken &= kept.keys()
            kept = {key: one for key, one in kept.items() if key not in self._broken}
            for key in [key for key in self._kept if key not in kept]:
                await self._drop(*key)
            for key, one in kept.items():
                if key not in self._kept and not self.models.has(*key):
                    try:
                        await self._add(one)
                    except (ServeError, StoreRefused):
                        raise
                    except Exception as exc:
                        raise ServeError("MODEL_UNUSABLE", f"{one.name} {one.version} can't be loaded: {exc}") from exc
                self._kept[key] = one
            self._tell_shares()

    async def _add(self, kept: KeptVersion) -> None:
        served = await self._run(self._load_kept, kept)
        others = self.of(kept.name)
        if others:
            served.open(self._stores[kept.name], self._observers(kept.name, kept.version))
            for other in others:  # sessions that had to wait for this version
                for session in [one for one in other.engine.table if one.digest == served.digest]:
                    other.engine.table.remove(session)
                    other.engine.ownership.hand_over(session, served.engine.ownership, session)
                    served.engine.table.add(session)
        else:
            try:
                await self._open_store(kept.name, [served])
            except BaseException:
                served.close()
                self._stores.pop(kept.name).close()
                raise
        self._keep_up(served)
        self.served.append(served)
        self.models.add(self._operations(served))
        logger.info("a model was loaded", extra={"model": kept.name, "version": kept.version})

    async def _drop(self, name: str, version: str) -> None:
        """Ends a version, whose last session is gone."""
        served = next(one for one in self.of(name) if one.version == version)
        self.models.remove(name, version)
        while not served.engine.at_rest:
            await asyncio.sleep(LOOK_S)
        await served.leave()
        self.served.remove(served)
        del self._kept[name, version]
        await self._run(served.close)
        if not self.of(name):
            await self._run(self._stores.pop(name).close)
        logger.info("a model was unloaded", extra={"model": name, "version": version})

    def _load_kept(self, kept: KeptVersion) -> ServedModel:
        artifact = self._folder.artifact(kept)
        part = self._parts.get(kept.name, kept.name)
        return ServedModel(
            NamedModel(kept.name, str(artifact), part), kept.version, artifact, self._config, self._device
        )

    def _load_all_kept(self) -> Iterator[tuple[KeptVersion, ServedModel]]:
        for one in self._folder.read():
            try:
                yield one, self._load_kept(one)
            except Exception as exc:  # made for another torch, or damaged: it keeps nothing else from being served
                logger.error("version %s of the model %s can't be loaded again: %s", one.version, one.name, exc)
                self._broken.add((one.name, one.version))

    def _tell_shares(self) -> None:
        for one in self.models.all:
            kept = self._kept.get((one.name, one.version))
            one.share = None if kept is None else kept.share
            one.retiring = kept is not None and kept.retiring
        self.models.changed()

    async def retire(self, name: str, version: str, retiring: bool) -> None:
        """Says in the state folder that a version gets no new sessions any more, or again. Raises MODEL_NOT_FOUND, and
        MODEL_IN_USE for one that can't be done without."""
        self.models.named(name, version)
        if retiring and name in self._parts and len(self.of(name)) == 1:
            raise ServeError("MODEL_IN_USE", f"{name!r} has no other version than {version!r}")
        if (kept := self._kept.get((name, version))) is None:  # what the server was started with
            served = next(one for one in self.of(name) if one.version == version)
            await self._run(self._folder.keep, name, version, served.artifact.folder, None, self._configured[name], 0)
        else:
            await self._run(self._folder.change, replace(kept, retiring=retiring))

    async def forget(self, name: str, version: str) -> None:
        """Takes a version out of the state folder; `sync` then drops it, and a start with it in the configuration
        serves it no more while there are others."""
        served = next((one for one in self.of(name) if one.version == version), None)
        if served is not None and name in self._parts:
            await self._run(self._folder.drop, name, served.digest)
        await self._run(self._folder.forget, name, version)

    async def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


def _digest_of(artifact: Path) -> str:
    """What an artifact says that it is; empty if it says nothing, which is found out when it is loaded."""
    try:
        return str(json.loads((artifact / MANIFEST_FILE).read_text())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _check(name: str, version: str, share: float | None) -> None:
    for what, value in (("model", name), ("version", version)):
        if (fault := check_name(value)) is not None:
            raise ServeError("BAD_REQUEST", f"{what} is {value!r}, expected {fault}", got=value)
    if share is not None and not 0 <= share <= 1:
        raise ServeError("BAD_REQUEST", f"share is {share:g}, expected a number from 0 to 1", got=share)
