from contextlib import nullcontext
from pathlib import Path

import pytest

from dnc_serve.client.cli.main import main
from dnc_serve.handler.api.access import Access
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.errors import ServeError


def test_a_token_opens_the_server_that_has_its_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens.toml"
    tokens = []
    for name, flags in (("ward-3", ["--days", "30", "--max-sessions", "5"]), ("ward-4", ["--read-only"])):
        assert main(["token", name, "--file", str(file), *flags]) == 0
        tokens.append(capsys.readouterr().out.strip())
    access = Access(str(file))
    ward_3, ward_4 = (access.grant_of_token(token) for token in tokens)
    assert (ward_3.owner, ward_3.max_sessions, ward_3.read_only) == ("ward-3", 5, False)
    assert (ward_4.owner, ward_4.read_only) == ("ward-4", True)
    assert not any(token in file.read_text() for token in tokens)


def test_a_token_lasts_as_long_as_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens.toml"
    main(["token", "ward-3", "--file", str(file), "--days", "2"])
    access, token = Access(str(file)), capsys.readouterr().out.strip()
    start = CLOCK.monotonic(), CLOCK.wall()
    for hours, good in ((0, True), (47, True), (49, False)):
        monkeypatch.setattr(CLOCK, "monotonic", lambda hours=hours: start[0] + hours * 3600)
        monkeypatch.setattr(CLOCK, "wall", lambda hours=hours: start[1] + hours * 3600)
        with nullcontext() if good else pytest.raises(ServeError, match="expired"):
            assert access.grant_of_token(token).owner == "ward-3"


def test_a_wrong_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "ward 3"]) == 2
    assert "'ward 3'" in capsys.readouterr().err
