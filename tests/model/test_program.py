"""Programs of torch.export: what can't be captured, which model is which, and files of strangers."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnc_serve.model import DNC, ArtifactError, export, load_artifact
from dnc_serve.model.artifact import INITIAL_FILE, MANIFEST_FILE, file_facts
from dnc_serve.model.contract import ContractError
from dnc_serve.model.program import PROGRAM_FILE, load_program
from dnc_serve.model.program_archive import ProgramError

GRAPH = "program/models/model.json"
SAMPLE = "program/data/sample_inputs/model.pt"


class Sum(nn.Module):
    """Adds up; a subclass says how."""

    input_size = 3

    def __init__(self, initial: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.initial = initial

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"total": torch.full((batch_size, 3), self.initial)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total = state["total"] + self.linear(x)
        return total, {"total": total}


class Branching(Sum):
    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if state["total"].sum() > 0:
            return x, state
        return super().step(x, state)


class Conditional(Sum):
    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = torch.cond(x.shape[1] > 0 and x.sum() < 1e9, lambda x: x + 1, lambda x: x - 1, (x,))
        return y, {"total": state["total"] + y.detach() * 0}


class OneByOne(Sum):
    """The number of rows is built into what is captured."""

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        totals = torch.stack([total + self.linear(row) for row, total in zip(x, state["total"], strict=True)])
        return totals, {"total": totals}


class Doubling(Sum):
    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().step(2 * x, state)


def test_control_flow_on_values_is_named_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ContractError) as caught:
        export(Branching(), tmp_path)
    said = str(caught.value)
    lines = Path(__file__).read_text().splitlines()
    number = 1 + next(at for at, line in enumerate(lines) if 'if state["total"].sum() > 0' in line)
    assert f"torch.export can't capture step at {__file__}:{number}: if state[" in said
    assert "torch.where instead of `if`" in said
    assert capfd.readouterr() == ("", "")


def test_a_program_that_would_be_refused_is_refused_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"the program of step can't be served: .*'torch.ops.higher_order.cond'"):
        export(Conditional(), tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("module", [nn.LSTM(3, 4, 2), Sum(1.0)])
def test_an_export_is_quiet(module: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(module, tmp_path)
    load_artifact(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_number_of_rows_that_is_built_in_is_kept(tmp_path: Path) -> None:
    assert export(OneByOne(), tmp_path)["rows"] == 1
    assert load_artifact(tmp_path).rows == 1


def test_one_tensor_in_two_fields_is_two_fields(tmp_path: Path) -> None:
    class Twice(Sum):
        def initial_state(self, batch_size: int) -> Any:
            return [super().initial_state(batch_size)["total"]] * 2

        def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            return state[0] - 2 * state[1], [state[0] + x, state[1] + 3 * x]

    export(Twice(), tmp_path)
    outputs, _ = load_artifact(tmp_path).tick(torch.ones(3, 1, 3), torch.zeros(1, 6))
    assert outputs[:, 0, 0].tolist() == [0, -5, -10]


def test_a_program_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """As of a value that is read while it is captured."""

    class Fixed(Sum):
        def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            total = state["total"] + (x if torch.compiler.is_exporting() else 2 * x)
            return total, {"total": total}

    with pytest.raises(ContractError, match=r"torch.export makes of step gives other results than step itself"):
        export(Fixed(), tmp_path)


def test_a_digest_is_of_graph_weights_and_initial_state(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = Sum().state_dict()

    def digest(module: nn.Module) -> str:
        module.load_state_dict(weights)
        return str(export(module, tmp_path)["digest"])

    one = digest(Sum())
    assert digest(Sum()) == one
    others = {digest(Doubling()), digest(Sum(1.0)), digest(OneByOne())}
    weights["linear.bias"] = weights["linear.bias"] + 1
    others.add(digest(Sum()))
    assert len({one, *others}) == 5


def test_a_dncs_program_gives_torchscripts_outputs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    export(DNC(3, 8, nr_cells=4, num_layers=2), tmp_path)
    scripted, program = load_artifact(tmp_path), load_artifact(tmp_path, torchscript=False)
    assert (scripted.digest, scripted.layout.fields) == (program.digest, program.layout.fields)
    inputs, states = torch.randn(9, 3, 3), torch.zeros(3, scripted.layout.size)
    with torch.inference_mode():
        (expected, expected_states), (outputs, after) = scripted.tick(inputs, states), program.tick(inputs, states)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(after, expected_states, rtol=0, atol=1e-6)


def test_an_artifact_of_format_1_is_read(tmp_path: Path) -> None:
    """As it was made before other models than DNCs could be served."""
    torch.manual_seed(1)
    manifest = export(DNC(3, 5, nr_cells=4), tmp_path)
    expected = load_artifact(tmp_path)
    (tmp_path / PROGRAM_FILE).unlink()
    old = {name: manifest[name] for name in ("digest", "torch", "config", "state_size", "experience_offset")}
    files = {name: facts for name, facts in manifest["files"].items() if name != PROGRAM_FILE}
    old |= {"format": 1, "input_size": 3, "output_size": 3, "files": files}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(old))
    artifact = load_artifact(tmp_path)
    assert (artifact.digest, artifact.config, artifact.inputs) == (expected.digest, expected.config, expected.inputs)
    inputs, states = torch.randn(4, 1, 3), torch.zeros(1, artifact.layout.size)
    with torch.inference_mode():
        assert torch.equal(artifact.tick(inputs, states)[0], expected.tick(inputs, states)[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    export(Sum(1.0), folder)
    return folder


@pytest.fixture
def artifact_folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": []}, "can't be used: it says state_size 4, but the rest of it makes it 1"),
        ({"state_size": 9}, "can't be used: it says state_size 9"),
        ({"inputs": {"shape": [4], "dtype": "float32"}}, "can't step"),
        ({"inputs": {"shape": [3], "dtype": "float64"}}, "can't be used: dtype is float64; expected one of float32"),
        ({"inputs": {"shape": [-3], "dtype": "float32"}}, r"shape is \[-3\]; expected whole numbers"),
        ({"outputs": {"shape": [2], "dtype": "float32"}}, "Export the model again"),
        ({"experience_offset": 2}, "experience_offset is 2, where no field begins"),
        ({"files": {}}, "names no sha256 of program.pt2"),
    ],
)
def test_a_manifest_that_does_not_fit_its_program_is_refused(
    artifact_folder: Path, changes: dict[str, Any], message: str
) -> None:
    manifest = json.loads((artifact_folder / MANIFEST_FILE).read_text())
    if changes.get("state") == []:
        changes = {**changes, "state_size": 4, "files": {PROGRAM_FILE: manifest["files"][PROGRAM_FILE]}}
    (artifact_folder / MANIFEST_FILE).write_text(json.dumps({**manifest, **changes}))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(artifact_folder)


def test_a_program_in_which_something_would_be_executed_is_no_artifact(artifact_folder: Path, tmp_path: Path) -> None:
    pickled_sample(artifact_folder / PROGRAM_FILE, tmp_path / "executed")
    manifest = json.loads((artifact_folder / MANIFEST_FILE).read_text())
    manifest["files"][PROGRAM_FILE] = file_facts(artifact_folder / PROGRAM_FILE)
    (artifact_folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"can't be loaded by torch .*program\.pt2 is refused: its sample input"):
        load_artifact(artifact_folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [PROGRAM_FILE, INITIAL_FILE])
def test_missing_and_damaged_files_are_named(artifact_folder: Path, name: str) -> None:
    content = (artifact_folder / name).read_bytes()
    (artifact_folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=f"{name} doesn't fit its manifest"):
        load_artifact(artifact_folder)
    (artifact_folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} doesn't exist"):
        load_artifact(artifact_folder)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def forge(program: Path, changes: dict[str, bytes]) -> None:
    """Files of an archive replaced and added."""
    with zipfile.ZipFile(program) as archive:
        files = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(program, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def read(program: Path, name: str) -> Any:
    with zipfile.ZipFile(program) as archive:
        return json.loads(archive.read(name))


def forge_graph(program: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = read(program, GRAPH)
    change(document)
    forge(program, {GRAPH: json.dumps(document).encode()})


def touching(path: Path) -> str:
    """An expression that makes a file when it is evaluated."""
    return f"__import__('pathlib').Path({str(path)!r}).touch()"


def pickled_weight(program: Path, path: Path) -> None:
    name = "program/data/weights/model_weights_config.json"
    config = read(program, name)
    weight = next(iter(config["config"].values()))
    weight["use_pickle"] = True
    torch.save(Touch(path), program.with_name("evil"))
    changes = {name: json.dumps(config).encode()}
    forge(program, {**changes, f"program/data/weights/{weight['path_name']}": program.with_name("evil").read_bytes()})


def pickled_sample(program: Path, path: Path) -> None:
    torch.save(Touch(path), program.with_name("evil"))
    forge(program, {SAMPLE: program.with_name("evil").read_bytes()})


def pickled_constant(program: Path, path: Path) -> None:
    name = "program/data/constants/model_constants_config.json"
    config = read(program, name)
    config["config"]["evil"] = {
        "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
    }  # fmt: skip
    changes = {name: json.dumps(config).encode()}
    forge(program, {**changes, "program/data/constants/opaque_obj_0": pickle.dumps(Touch(path))})


def evaluated_size(program: Path, path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        x = document["graph_module"]["graph"]["tensor_values"]["x"]
        x["sizes"][0]["as_expr"]["expr_str"] = touching(path)

    forge_graph(program, change)


def executed_guard(program: Path, path: Path) -> None:
    forge_graph(program, lambda document: document["guards_code"].append(touching(path)))


def named_argument(program: Path, path: Path) -> None:
    """A name that says what its default is: evaluated where the graph's code is compiled."""
    text = json.dumps(read(program, GRAPH))
    forge(program, {GRAPH: text.replace('"x"', json.dumps(f"x={touching(path)}")).encode()})


def imported_type(program: Path, path: Path) -> None:
    """A module of any name is imported."""

    def change(document: dict[str, Any]) -> None:
        context = json.dumps({
            "default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": [],
        })  # fmt: skip
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        signature["in_spec"] = json.dumps([1, tree])

    forge_graph(program, change)


def seen_by_one_reader(program: Path, path: Path) -> None:
    """Two archives in one file, of the same sizes: zipfile reads the second, torch the first."""
    harmless = program.with_name("harmless.pt2")
    shutil.copy(program, harmless)
    evaluated_size(program, path)
    with zipfile.ZipFile(program) as archive:
        length = archive.getinfo(GRAPH).file_size
    forge(harmless, {GRAPH: json.dumps(read(harmless, GRAPH)).encode().ljust(length)})
    program.write_bytes(program.read_bytes() + harmless.read_bytes())


@pytest.mark.parametrize(
    ("forgery", "message"),
    [
        (pickled_weight, "it holds pickled tensors, which could execute anything"),
        (pickled_sample, "its sample input isn't one of tensors only"),
        (pickled_constant, "it holds 'data/constants/opaque_obj_0', which isn't part of a program"),
        (evaluated_size, "has the expr_str .*__import__"),
        (seen_by_one_reader, "has the expr_str .*__import__"),
    ],
)
def test_what_torch_would_execute_is_refused_before_it(
    exported: Path, tmp_path: Path, forgery: Callable[[Path, Path], None], message: str
) -> None:
    program, executed = tmp_path / PROGRAM_FILE, tmp_path / "executed"
    shutil.copy(exported / PROGRAM_FILE, program)
    forgery(program, executed)
    with pytest.raises(ProgramError, match=message):
        load_program(program)
    assert not executed.exists()
    with suppress(Exception):
        torch.export.load(program).module()
    assert executed.exists(), "or it is no proof"


@pytest.mark.parametrize(
    ("forgery", "message"),
    [(named_argument, "has the .*__import__"), (imported_type, "has the in_spec .*defaultdict")],
)
def test_what_would_be_compiled_or_imported_is_refused(
    exported: Path, tmp_path: Path, forgery: Callable[[Path, Path], None], message: str
) -> None:
    program, executed = tmp_path / PROGRAM_FILE, tmp_path / "executed"
    shutil.copy(exported / PROGRAM_FILE, program)
    forgery(program, executed)
    with pytest.raises(ProgramError, match=message):
        load_program(program)
    assert not executed.exists()


def test_a_guard_is_not_executed(artifact_folder: Path, tmp_path: Path) -> None:
    executed_guard(artifact_folder / PROGRAM_FILE, tmp_path / "executed")
    manifest = json.loads((artifact_folder / MANIFEST_FILE).read_text())
    manifest["files"][PROGRAM_FILE] = file_facts(artifact_folder / PROGRAM_FILE)
    (artifact_folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    load_artifact(artifact_folder)
    assert not (tmp_path / "executed").exists()
    with suppress(Exception):
        torch.export.load(artifact_folder / PROGRAM_FILE).module()(torch.zeros(1, 3), torch.zeros(1, 3))
    assert (tmp_path / "executed").exists(), "or it is no proof"


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load", "torch.load", "torch.ops.higher_order.cond", "torch.ops.aten.from_file.default",
        "torch.ops.load_library", "torch.ops.aten.add.__class__", "_operator.call", "_operator.attrgetter",
        "builtins.eval", "math.__loader__", "#evil:load", "os.system",
    ],
)  # fmt: skip
def test_other_functions_than_operators_are_refused(exported: Path, tmp_path: Path, target: str) -> None:
    program = tmp_path / PROGRAM_FILE
    shutil.copy(exported / PROGRAM_FILE, program)
    forge_graph(program, lambda document: document["graph_module"]["graph"]["nodes"][0].update(target=target))
    with pytest.raises(ProgramError, match=f"has the target '{target}', which isn't one of a program's own"):
        load_program(program)


def spoiled(exported: Path) -> Iterator[bytes]:
    content = (exported / PROGRAM_FILE).read_bytes()
    yield from (b"", b"no archive", content[: len(content) // 2], content[:-30], content[30:])


def test_what_is_no_archive_is_refused(exported: Path, tmp_path: Path) -> None:
    for content in spoiled(exported):
        (tmp_path / PROGRAM_FILE).write_bytes(content)
        with pytest.raises(ProgramError, match=r"program\.pt2 (isn't a program that torch|is refused)"):
            load_program(tmp_path / PROGRAM_FILE)
    with zipfile.ZipFile(exported / PROGRAM_FILE) as archive, zipfile.ZipFile(tmp_path / PROGRAM_FILE, "w") as other:
        for name in archive.namelist():
            if name != GRAPH:
                other.writestr(name, archive.read(name))
    with pytest.raises(ProgramError, match=r"it holds no models/model\.json"):
        load_program(tmp_path / PROGRAM_FILE)
