"""Random operations, crashes and restarts among them, against a plain model of what a session is."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dnc_serve.handler.api.copies import Copies
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.requests import Delete
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.chaos.model import ModelSession
from tests.chaos.truth import random_inputs
from tests.handler.door import chunk, outputs_of
from tests.handler.harness import EngineHarness, running_engine
from tests.handler.store.conftest import RedisServer, running_redis
from tests.waiting import PATIENCE_S

EXAMPLES, EXAMPLES_IN_SHORT = 200, 10
STEPS = 30
# Nobody renews leases here: one outlasts an example.
LEASE_S = 600.0
CALLER = Caller()
IDS = st.sampled_from(["a", "b", "c", "d"])
SEEDS = st.integers(0, 2**16)
SCOPES = {"experience": pb.RESET_SCOPE_EXPERIENCE, "all": pb.RESET_SCOPE_ALL}


class SessionsMachine(RuleBasedStateMachine):
    """An engine of two slots and room for one more session in memory, so that states move all the time."""

    runner: ModelRunner
    artifact: Artifact
    new_config: Callable[[], ServeConfig]

    @initialize(durability=st.sampled_from(["async", "sync"]))
    def begin(self, durability: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.config = self.new_config().model_copy(
            update={
                "durability": durability,
                "slots": 2,
                "host_bytes": self.runner.layout.size * 4,
                "snapshot_every_timesteps": 6,
                "reply_window_chunks": 2,
                "lease_s": LEASE_S,
            }
        )
        self.model: dict[str, ModelSession] = {}
        self.ended: dict[str, str] = {}
        self.blobs: list[tuple[bytes, int, tuple[int, bytes]]] = []
        self._start()

    def _start(self) -> None:
        self.cleanup = contextlib.AsyncExitStack()
        engine = running_engine(self.runner, self.artifact, self.config)
        self.harness: EngineHarness = self._run(self.cleanup.enter_async_context(engine))
        self.operations = Operations(self.harness.engine, self.artifact, "epoch", self.harness.metrics)
        self.copies = Copies(self.operations)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    def _refused(self, work: Coroutine[Any, Any, Any]) -> str:
        with pytest.raises(ServeError) as caught:
            self._run(work)
        return caught.value.reason

    def _why_not(self, session_id: str) -> str:
        return "SESSION_EXPIRED" if self.ended.get(session_id) == "idle" else "SESSION_NOT_FOUND"

    def teardown(self) -> None:
        if hasattr(self, "cleanup"):
            self._run(self.cleanup.aclose())
            self.loop.close()

    # What clients do.

    @rule(session_id=IDS)
    def create(self, session_id: str) -> None:
        request = pb.CreateSessionRequest(session_id=session_id, allow_existing=True)
        response = self._run(self.operations.create_session(request, CALLER))
        assert response.created == (session_id not in self.model)
        if response.created:
            self.model[session_id] = ModelSession.begun(self.runner, response.session.incarnation)
            self.ended.pop(session_id, None)

    @rule(session_id=IDS, seed=SEEDS, timesteps=st.integers(1, 7), resets=st.booleans(), times=st.integers(1, 2))
    def step(self, session_id: str, seed: int, timesteps: int, resets: bool, times: int) -> None:
        """Once, or twice with the same chunk: the second time changes nothing."""
        inputs = random_inputs(np.random.default_rng(seed), timesteps)
        session = self.model.get(session_id)
        position = session.position if session else 0
        request = pb.StepRequest(chunk=chunk(session_id, inputs, position=position, reset_experience=resets))
        if session is None:
            assert self._refused(self.operations.step(request, CALLER)) == self._why_not(session_id)
            return
        expected = session.step(inputs, resets)
        for time in range(times):
            result = self._run(self.operations.step(request, CALLER)).result
            assert outputs_of(result).tobytes() == expected.tobytes()
            assert (result.position, result.experience) == (session.position, session.experience)
            assert result.replayed == bool(time)

    @rule(session_id=IDS, seed=SEEDS, ahead=st.integers(1, 3))
    def step_ahead(self, session_id: str, seed: int, ahead: int) -> None:
        if (session := self.model.get(session_id)) is None:
            return
        inputs = random_inputs(np.random.default_rng(seed), 2)
        request = pb.StepRequest(chunk=chunk(session_id, inputs, position=session.position + ahead))
        assert self._refused(self.operations.step(request, CALLER)) == "STEP_GAP"

    @rule(session_id=IDS, scope=st.sampled_from(["experience", "all"]), times=st.integers(1, 2))
    def reset(self, session_id: str, scope: str, times: int) -> None:
        if (session := self.model.get(session_id)) is None:
            return
        reset = pb.Reset(
            session_id=session_id, scope=SCOPES[scope], position=session.position, experience=session.experience
        )
        session.reset(scope)
        for time in range(times):
            result = self._run(self.operations.reset_session(pb.ResetSessionRequest(reset=reset), CALLER)).result
            assert result.changed == (not time)

    @rule(source=IDS, fork_id=IDS, back=st.integers(0, 12), times=st.integers(1, 2))
    def fork(self, source: str, fork_id: str, back: int, times: int) -> None:
        """At the present or an earlier position; repeated, it changes nothing."""
        session = self.model.get(source)
        if session is None or fork_id in self.model:
            return
        position = max(0, session.position - back)
        request = pb.ForkSessionRequest(session_id=source, fork_session_id=fork_id, position=position)
        if position not in session.past:
            assert self._refused(self.copies.fork(request, CALLER)) == "POSITION_GONE"
            return
        for time in range(times):
            response = self._run(self.copies.fork(request, CALLER))
            assert response.created == (not time)
        self.model[fork_id] = ModelSession.begun(
            self.runner, response.session.incarnation, position, session.past[position]
        )
        self.ended.pop(fork_id, None)

    @rule(session_id=IDS, back=st.integers(0, 12))
    def dump(self, session_id: str, back: int) -> None:
        session = self.model.get(session_id)
        if session is None or (position := session.position - back) not in session.past:
            return
        message = pb.Dump(session_id=session_id, position=position)
        seen, _ = self._run(self.operations.dump(message, CALLER))
        assert (seen.head.position, seen.head.experience) == (position, session.past[position][0])
        assert seen.state.tobytes() == session.past[position][1]

    @rule(session_id=IDS)
    def export(self, session_id: str) -> None:
        if (session := self.model.get(session_id)) is None:
            return
        blob = self._run(self.copies.export_blob(pb.ExportSessionRequest(session_id=session_id), CALLER))
        self.blobs.append((blob, session.position, session.moment))

    @precondition(lambda self: self.blobs)
    @rule(session_id=IDS, which=st.integers(0, 100))
    def import_blob(self, session_id: str, which: int) -> None:
        if session_id in self.model:
            return
        blob, position, moment = self.blobs[which % len(self.blobs)]
        response = self._run(self.copies.import_blob(session_id, blob, CALLER))
        self.model[session_id] = ModelSession.begun(self.runner, response.session.incarnation, position, moment)
        self.ended.pop(session_id, None)

    @rule(session_id=IDS)
    def delete(self, session_id: str) -> None:
        request = pb.DeleteSessionRequest(session_id=session_id)
        if session_id in self.model:
            assert self._run(self.operations.delete_session(request, CALLER)).deleted
            del self.model[session_id]
            self.ended[session_id] = "deleted"
        elif session_id in self.ended:
            assert not self._run(self.operations.delete_session(request, CALLER)).deleted

    # What befalls the server.

    @rule(session_id=IDS)
    def expire(self, session_id: str) -> None:
        if session_id not in self.model:
            return
        session = self._run(self.operations.known(session_id, CALLER))
        self._run(self.harness.do(session, lambda done: Delete(done, why="idle")))
        del self.model[session_id]
        self.ended[session_id] = "idle"

    @rule()
    def crash(self) -> None:
        """Nothing is stored that was not before."""
        self._run(self.cleanup.aclose())
        self._start()

    @rule()
    def restart(self) -> None:
        """In good order: all states are stored."""
        self._run(self.harness.engine.snapshots.store_all(list(self.harness.engine.table)))
        self._run(self.harness.engine.journal.flush())
        self.crash()

    @invariant()
    def all_stand_where_they_should(self) -> None:
        for session_id, session in getattr(self, "model", {}).items():
            request = pb.GetSessionRequest(session_id=session_id)
            found = self._run(self.operations.get_session(request, CALLER)).session
            assert (found.position, found.experience) == (session.position, session.experience)
            assert found.incarnation == session.incarnation


@pytest.mark.parametrize("examples", [EXAMPLES_IN_SHORT, pytest.param(EXAMPLES, marks=pytest.mark.long)])
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_random_operations_give_what_a_plain_model_gives(
    runner: ModelRunner, artifact: Artifact, tmp_path: Path, store: str, examples: int
) -> None:
    with running_redis() if store == "redis" else contextlib.nullcontext() as server:
        check_random_operations(runner, artifact, tmp_path, server, examples)


def check_random_operations(
    runner: ModelRunner, artifact: Artifact, tmp_path: Path, server: RedisServer | None, examples: int
) -> None:
    folders = iter(range(1_000_000))

    def new_config() -> ServeConfig:
        if server is not None:
            with contextlib.closing(server.client()) as client:
                client.flushall()
        return ServeConfig(
            state_dir=tmp_path / f"state-{next(folders)}", store="sqlite" if server is None else server.url
        )

    machine = type("Machine", (SessionsMachine,), {"runner": runner, "artifact": artifact})
    machine.new_config = staticmethod(new_config)
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=STEPS, suppress_health_check=list(HealthCheck)),
    )
