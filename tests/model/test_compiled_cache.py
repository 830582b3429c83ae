"""How folders of compiled code come into the cache, and are checked there."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dnc_serve.model.compiled_cache import (
    ABANDONED_S,
    CompiledError,
    compiled_key,
    filled,
    intact,
    package_file,
    write_manifest,
)

PACKAGE = package_file(8, 1)


def write(folder: Path, content: bytes) -> None:
    (folder / PACKAGE).write_bytes(content)
    write_manifest(folder, "key", [(8, 1)], digest="a" * 64, device="cpu", compiler="")


def test_the_folder_is_named_after_all_that_the_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = compiled_key("a" * 64)
    assert key == compiled_key("a" * 64)
    assert key != compiled_key("b" * 64)
    monkeypatch.setattr("dnc_serve.model.compiled_cache.processor", lambda device: "another")
    elsewhere = compiled_key("a" * 64)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert len({key, elsewhere, compiled_key("a" * 64)}) == 3


def test_of_many_that_finish_at_once_one_complete_folder_remains(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    folder.mkdir()
    write(folder, b"damaged, as a power loss may leave it")
    (folder / PACKAGE).write_bytes(b"")
    assert not intact(folder)
    at_once = threading.Barrier(8)

    def fill(number: int) -> None:
        with filled(folder) as beside:
            write(beside, b"%d" % number)
            at_once.wait(10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    assert intact(folder)
    assert (folder / PACKAGE).read_bytes() in [b"%d" % number for number in range(8)]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_was_begun_is_removed_at_once_after_an_error_and_in_a_day_after_a_kill(tmp_path: Path) -> None:
    begun, abandoned = tmp_path / ".key.begun", tmp_path / ".key.abandoned"
    for folder, age_s in ((begun, ABANDONED_S - 60), (abandoned, ABANDONED_S + 60)):
        folder.mkdir()
        os.utime(folder, (time.time() - age_s,) * 2)
    with pytest.raises(SystemExit), filled(tmp_path / "key"):
        raise SystemExit(1)
    assert list(tmp_path.iterdir()) == [begun]


def test_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CompiledError, match="cache can't hold compiled models: "), filled(tmp_path / "cache" / "key"):
        pass
