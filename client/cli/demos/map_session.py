"""A session that is told a map once and only ever asked through forks; each function runs in a process of its own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnc_serve.client.arrays import Float32
from dnc_serve.client.cli.demos import DemoFailed
from dnc_serve.client.cli.demos.reached import Reached
from dnc_serve.client.cli.demos.visits import Visit, by_slot, steps
from dnc_serve.client.client import Session


class SessionUnfit(DemoFailed):
    """The session is not the map, all of it and nothing else."""


@dataclass(frozen=True)
class Answers:
    """What came of the questions."""

    pid: int
    visits: list[Visit]  # one for each question
    written: Float32 | None  # [facts, N], where each fact was written; None if the journal no longer reaches back


def tell(server: Reached, session_id: str, facts: Float32) -> int:
    """Tells what the session hasn't been told yet: all, nothing, or the rest after an interruption. Returns the pid.

    Raises SessionUnfit for a session that something else was done with, and for another model.
    """
    with server.client() as client:
        model = client.model()
        if model.input_size != facts.shape[1]:
            raise SessionUnfit(f"{server} serves {model.name!r}, which is no graph model; see dnc serve --model graph")
        with client.session(session_id) as session:
            _check(session, range(len(facts) + 1))
            if session.position < len(facts):
                session.step(facts[session.position :])
    return os.getpid()


def ask(server: Reached, session_id: str, facts: int, questions: Sequence[Float32]) -> Answers:
    """Asks each question of a fork of the session, which is deleted afterwards. Raises SessionUnfit."""
    visits = []
    with server.client() as client, client.session(session_id, create=False) as session:
        _check(session, range(facts, facts + 1))
        for question in questions:
            with session.fork() as fork:
                visits.append(steps(fork, question))
                fork.delete()
        return Answers(os.getpid(), visits, _where_written(session, facts))


def _check(session: Session, positions: range) -> None:
    if session.position not in positions or session.experience:
        raise SessionUnfit(
            f"session {session.id!r} was used for something else too: it is at position {session.position}, after "
            f"{session.experience} resets; expected position {positions[-1]}, and none"
        )


def _where_written(session: Session, facts: int) -> Float32 | None:
    """The write weighting after each fact, looked up at that earlier position."""
    info = session.info()
    if info.earliest_position > 1:
        return None
    slots = session.dump(["usage_vector"])["usage_vector"].shape[-1]
    written = (session.dump(["write_weights"], position)["write_weights"] for position in range(1, facts + 1))
    return np.stack([by_slot(weights, slots) for weights in written])
