"""What is compiled, and where it is kept."""

from pathlib import Path

import pytest

from dnc_serve.model import DNCConfig
from dnc_serve.model.kernel import code
from dnc_serve.model.kernel.code import KernelError, any_of, code_file, compile_code, compiled, request, user_cache
from dnc_serve.model.kernel.warm import config_of, warm
from tests.handler.harness import export_small, small_dnc

SMALL = DNCConfig(input_size=2, hidden_size=3, nr_cells=4, cell_size=3)


def test_a_name_follows_from_all_that_the_code_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = code_file(tmp_path, request(SMALL))
    same = DNCConfig(**SMALL.to_dict() | {"dropout": 0.5, "independent_linears": True, "read_feedback": "call"})
    assert code_file(tmp_path, request(same)) == name
    other = DNCConfig(**SMALL.to_dict() | {"clip": 3})
    names = {name, code_file(tmp_path, request(other)), *(code_file(tmp_path, each) for each in any_of(request(other)))}
    monkeypatch.setattr(code, "_versions", lambda: ("1", "2"))
    assert code_file(tmp_path, request(SMALL)) not in names
    assert len(names) >= 2


def test_a_processor_that_lacks_what_is_needed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def get_host_cpu_features() -> dict[str, bool]:
            return {"avx2": True}

    monkeypatch.setattr(code, "_llvm", Old)
    monkeypatch.setattr(code.platform, "machine", lambda: "x86_64")
    with pytest.raises(KernelError, match="the processor lacks bmi, bmi2, f16c, fma, lzcnt, movbe"):
        request(SMALL)


def test_models_are_compiled_ahead_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(str(export_small(tmp_path)))  # it compiles
    assert config == small_dnc().config
    assert compiled(request(config), [user_cache()])
    assert config_of("copy").nr_cells == 64
    capsys.readouterr()
    warm([config], tmp_path / "elsewhere", also=(user_cache(),))
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_can_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match="file/cache can't be written to"):
        compile_code([request(SMALL)], tmp_path / "file" / "cache")
