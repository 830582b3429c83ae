"""All that fuzzing has found worth keeping, read again."""

from pathlib import Path

import pytest

from tests.fuzz.targets import BY_NAME, SEEDS, read

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_what_was_found_is_read_or_refused(name: str) -> None:
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert found
    for data in [*SEEDS[BY_NAME[name]], *found]:
        read(BY_NAME[name], data)


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"manifest"}))  # of which other files must be there
def test_what_fuzzing_begins_with_is_right(name: str) -> None:
    for seed in SEEDS[BY_NAME[name]]:
        BY_NAME[name](seed)
