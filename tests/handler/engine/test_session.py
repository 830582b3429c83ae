from itertools import product

import numpy as np
import pytest

from dnc_serve.handler.engine.replies import Replies, Reply
from dnc_serve.handler.engine.requests import Chunk, Reset
from dnc_serve.handler.engine.session import TRANSITIONS, Session, Status, Verdict, check_id
from dnc_serve.handler.errors import ServeError


def nobody(result: object, error: object) -> None:
    raise AssertionError("a judgement answers nobody")


def inputs(value: float, timesteps: int = 2) -> np.ndarray:
    return np.full((timesteps, 3), value, np.float32)


@pytest.fixture
def session() -> Session:
    """Chunks of two timesteps were applied at 4, 6 and 8, each filled with its position."""
    session = Session("s", 11, "digest", "", 0.0, Replies(3, 1 << 20))
    session.position, session.experience = 10, 2
    for start in (2, 4, 6, 8):
        session.replies.add(Reply(start, inputs(start), False, 2, inputs(-start), writer_id=0))
    return session


def chunk(position: int | None, value: float = 0.0, timesteps: int = 2, **options: object) -> Chunk:
    return Chunk(inputs(value, timesteps), nobody, position=position, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [None, 10])
def test_a_chunk_at_the_position_is_applied(session: Session, position: int | None) -> None:
    assert session.judge_chunk(chunk(position)) is Verdict.APPLY


def test_a_chunk_that_was_applied_gets_its_reply(session: Session) -> None:
    reply = session.judge_chunk(chunk(6, 6.0, incarnation=11))
    assert isinstance(reply, Reply)
    assert reply.start == 6


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (chunk(11), "STEP_GAP"),
        (chunk(6, 5.0), "STEP_CONFLICT"),  # other bytes
        (chunk(6, 6.0, timesteps=3), "STEP_CONFLICT"),  # another length
        (chunk(6, 6.0, reset_experience=True), "STEP_CONFLICT"),
        (chunk(6, 6.0, writer_id=1), "STEP_CONFLICT"),  # another's
        (chunk(7, 6.0), "STEP_CONFLICT"),  # overlaps
        (chunk(10, incarnation=12), "SESSION_REPLACED"),
        (chunk(10, experience=3), "STEP_GAP"),  # behind a reset that was not applied
        (chunk(10, experience=1), "STEP_CONFLICT"),  # a reset came in between
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(session: Session, wrong: Chunk, reason: str) -> None:
    with pytest.raises(ServeError) as caught:
        session.judge_chunk(wrong)
    assert caught.value.reason == reason
    assert caught.value.metadata["expected_position"] == "10"


def test_a_chunk_whose_reply_went_is_looked_up_in_the_store(session: Session) -> None:
    assert session.judge_chunk(chunk(2, 2.0)) is Verdict.ASK_STORE


def reset(**options: object) -> Reset:
    return Reset("experience", nobody, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("right", [reset(), reset(position=10), reset(position=10, experience=2, incarnation=11)])
def test_a_reset_that_fits_is_applied(session: Session, right: Reset) -> None:
    assert session.judge_reset(right) is Verdict.APPLY


def test_a_reset_of_an_experience_that_has_ended_is_judged_by_who_ended_it(session: Session) -> None:
    assert session.judge_reset(reset(position=3, experience=1)) is Verdict.ASK_STORE
    session.replies.add(Reply(10, inputs(0, 0), True, 3, inputs(0, 0), writer_id=5))
    session.experience = 3
    assert session.judge_reset(reset(position=10, experience=2, writer_id=5)) is Verdict.DUPLICATE
    with pytest.raises(ServeError) as caught:
        session.judge_reset(reset(position=10, experience=2, writer_id=6))
    assert caught.value.reason == "STEP_CONFLICT"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (reset(position=8), "STEP_CONFLICT"),  # overtaken by a chunk
        (reset(position=12), "STEP_GAP"),
        (reset(position=10, experience=3), "STEP_GAP"),
        (reset(incarnation=1), "SESSION_REPLACED"),
    ],
)
def test_a_reset_that_does_not_fit_is_refused(session: Session, wrong: Reset, reason: str) -> None:
    with pytest.raises(ServeError) as caught:
        session.judge_reset(wrong)
    assert caught.value.reason == reason


def test_replies_are_bounded_in_number_and_bytes() -> None:
    replies = Replies(max_replies=100, max_bytes=200)
    for start in range(0, 20, 2):
        replies.add(Reply(start, inputs(0), False, 0, inputs(0), writer_id=0))  # 48 bytes each
    assert replies.find(18) is not None
    assert replies.find(10) is None
    assert not replies.reaches(10)


def test_a_status_is_followed_by_nothing_but_what_may_follow_it(session: Session) -> None:
    for before, after in product(Status, Status):
        session.status = before
        if after in TRANSITIONS[before]:
            session.become(after)
            assert session.status is after
        else:
            with pytest.raises(AssertionError, match=f"s: {before} → {after}"):
                session.become(after)
            assert session.status is before


def test_whatever_a_session_is_doing_it_can_end_and_never_comes_back(session: Session) -> None:
    for status in Status:
        reached, new = {status}, {status}
        while new:
            new = {after for one in new for after in TRANSITIONS[one]} - reached
            reached |= new
        assert Status.ENDED in reached
        session.status = status
        if session.ended:
            assert reached <= {Status.ENDING, Status.ENDED}


@pytest.mark.parametrize("session_id", ["a", "patient-17", "A.b_c~d:e@f", "x" * 128])
def test_ids_that_may_name_a_session(session_id: str) -> None:
    assert check_id(session_id) == session_id


@pytest.mark.parametrize("session_id", ["", "a b", "a/b", "ü", "a\n", "x" * 129, "x" * 10_000, "\0"])
def test_ids_that_may_not(session_id: str) -> None:
    with pytest.raises(ServeError) as caught:
        check_id(session_id)
    assert caught.value.reason == "BAD_ID"
    assert len(caught.value.message) < 300
