"""The parts of the breakdown are those of the server."""

from bench.breakdown import PARTS, found


def test_every_function_that_is_timed_is_there() -> None:
    places = [place for part in PARTS.values() for place in part]
    assert len(places) == len(set(places))
    for place in places:
        owner, name = found(place)
        assert callable(getattr(owner, name)), place
