"""What a module is told that can't be served, and that looking at one changes nothing of it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dnc_serve.model import contract, export, load_artifact
from dnc_serve.model.contract import ContractError, check
from dnc_serve.model.rows import TensorSpec

Step = Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]]


class Decay(nn.Module):
    """Remembers what it was shown, less and less."""

    input_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("count", torch.zeros(1))
        self.calls = 0

    def initial_state(self, batch_size: int) -> Any:
        return {"hidden": torch.zeros(batch_size, 4)}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden = 0.5 * state["hidden"] + self.linear(x)
        return hidden, {"hidden": hidden}


def of(step: Step | None = None, initial: Callable[[int], Any] | None = None, **attributes: Any) -> nn.Module:
    """A `Decay` with another step, another initial state, or other attributes."""
    members = dict(attributes)
    if step is not None:
        members["step"] = step
    if initial is not None:
        members["initial_state"] = lambda self, batch_size: initial(batch_size)
    return type("Module", (Decay,), members)()


def hidden_of(build: Callable[[int], Any]) -> nn.Module:
    return of(initial=lambda rows: {"hidden": build(rows)})


def growing(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x, {"hidden": torch.cat([state["hidden"], x], 1)}


def in_place(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x, {"hidden": state["hidden"].add_(1)}


def into_the_dict(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    state["hidden"] = state["hidden"] + 1
    return x, state


def beside_the_state(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    state["scratch"] = x
    return x, {"hidden": state["hidden"] + 1}


def random(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x + torch.randn_like(x), state


def dropout(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return nn.functional.dropout(x), state


def of_a_buffer(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    module.count.add_(1)
    return x, state


def of_a_counter(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    module.calls += 1
    return x, state


def of_a_list(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    module.seen = [*getattr(module, "seen", []), x]
    return x + len(module.seen), state


def of_the_mean(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x - x.mean(0), state


def of_a_norm(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return nn.functional.batch_norm(x, None, None, training=True), state


def output_only(module: nn.Module, x: Tensor, state: Any) -> Any:
    return x


def output_in_double(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x.double(), state


def output_summed(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x.sum(), state


def of_other_fields(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x, {"cell": state["hidden"]}


def with_a_number(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x, {"hidden": 1}


def wider(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return x, {"hidden": state["hidden"].double()}


class Pair(NamedTuple):
    hidden: Tensor


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 4), r"Linear has no initial_state; expected a module with initial_state\(batch_size\) and step"),
        (of(input_size=None), r"what a timestep of Module is isn't known: give an example .* or --input 80"),
        (of(example_input=torch.zeros(3).double()), "a timestep's input is float64; expected one of .*float()"),
        (of(example_input=torch.zeros(3).cfloat()), "a timestep's input is complex64; expected one of float32"),
        (of(example_input=torch.zeros(3).bfloat16()), "a timestep's input is bfloat16, .* step may take x.bfloat16()"),
        (of(example_input=torch.zeros(5)), r"step fails for x of float32\[5\] a session, batch of 3: Runtime"),
        (of(initial=lambda rows: {}), "the state has no tensor; expected at least one"),
        (hidden_of(lambda rows: 0), r"state whose hidden is 0 of type int \(make a number a tensor \[B\]\); expected"),
        (hidden_of(lambda rows: None), "state whose hidden is None of type NoneType"),
        (hidden_of(lambda rows: torch.zeros(4, rows)), r"hidden has shape \[4, 3\] for a batch of 3 \(transpose it\)"),
        (hidden_of(lambda rows: torch.tensor(1.0)), r"hidden has shape \[\] for a batch of 3"),
        (hidden_of(lambda rows: [0] * 9), "hidden.0 is 0 of type int.*hidden.3 is 0 .*; and 5 more; expected tensors"),
        (hidden_of(lambda rows: torch.zeros(rows, rows)), "gives other fields for a batch of 3 than for one of 1"),
        (hidden_of(lambda rows: torch.zeros(rows, 4).double()), "the state's hidden is float64; expected one of"),
        (hidden_of(lambda rows: torch.zeros(rows, 4).cfloat()), "the state's hidden is complex64; expected one of"),
        (of(growing), r"hidden is float32\[3, 7\] after a step, and float32\[3, 4\] in initial_state; .* on the input"),
        (of(wider), r"hidden is float64\[3, 4\] after a step, and float32\[3, 4\] in initial_state"),
        (of(with_a_number), "the state's hidden is 1 after a step; expected a tensor"),
        (of(of_other_fields), "step returns a state of cell; expected the fields .* in their order: hidden"),
        (of(lambda module, x, state: (x, ())), "step returns a state of no tensors; expected the fields"),
        (of(output_only), r"step returns Tensor; expected \(output, state\), the output one tensor"),
        (of(output_in_double), "the output is float64; expected one of"),
        (of(output_summed), r"the output has shape \[\] for a batch of 3; expected \[3, ...\]"),
        (of(in_place), r"step changes its arguments in place; .* copy what is written into, as by .*clone\(\)"),
        (of(into_the_dict), "step changes its arguments in place"),
        (of(beside_the_state), "step changes its arguments in place"),
        (of(random), "step draws random numbers"),
        (of(dropout), "step draws random numbers"),
        (of(of_a_buffer), "step keeps something on self between calls: it changes count; expected all"),
        (of(of_a_counter), "step keeps something on self between calls: it changes calls; expected all"),
        (of(of_a_list), "step gives another result the second time from the same state: it keeps something"),
        (of(of_the_mean), "a row's result depends on the other rows of its batch; .* normalise over features"),
        (of(of_a_norm), "a row's result depends on the other rows of its batch"),
        (of(experience="cell"), "experience names 'cell', which isn't a field of the state: hidden"),
        (nn.LSTM(3, 4, bidirectional=True), "bidirectional"),
        (nn.LSTM(3, 4).double(), "the state's hidden is float64"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_told_why(module: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(module, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_field_that_is_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "MAX_FIELD_BYTES", 15)
    with pytest.raises(ContractError, match="the state's hidden takes 16 bytes for each session; expected at most 15"):
        check(Decay())


def test_state_may_be_of_any_structure_and_is_the_same_for_tuples_and_lists() -> None:
    named = of(lambda module, x, state: (x, Pair(state.hidden + 1)), lambda rows: Pair(torch.zeros(rows, 4)))
    assert [field.name for field in check(named).layout.fields] == ["hidden"]
    nested = of(
        lambda module, x, state: (x, [tuple(state[0]), {"b": state[1]["b"]}]),
        lambda rows: ([torch.zeros(rows), torch.zeros(rows, 1)], {"b": torch.zeros(rows, 2)}),
    )
    assert [field.name for field in check(nested).layout.fields] == ["0.0", "0.1", "1.b"]
    alone = of(lambda module, x, state: (x, state + 1), lambda rows: torch.zeros(rows))
    assert [field.name for field in check(alone).layout.fields] == ["state"]


def test_a_table_that_is_made_at_the_first_call_is_no_memory() -> None:
    def step(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not hasattr(module, "table"):
            module.table = torch.arange(3.0)
        return x + module.table, state

    check(of(step))


@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_left_as_it_was(training: bool, tmp_path: Path) -> None:
    """In training or not, each part of it; its weights, and the caller's random numbers too."""
    module = nn.Sequential(nn.LSTM(3, 4), nn.Dropout(0.5))
    module.train(training)
    module[1].train(not training)
    wrapped = of()
    wrapped.inner = module
    before = copy.deepcopy(wrapped.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    export(wrapped, tmp_path)
    export(module[0], tmp_path)
    with pytest.raises(ContractError):
        export(module[1], tmp_path, example_input=TensorSpec((3,)))
    assert torch.equal(torch.rand(1), expected)
    assert (module.training, module[0].training, module[1].training) == (training, training, not training)
    assert wrapped.training
    assert before.keys() == wrapped.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapped.state_dict().items())
    assert all(parameter.requires_grad for parameter in wrapped.parameters())


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_torchs_own_modules_step_as_they_run(cell: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = cell(3, 4)
    export(module, tmp_path)
    artifact = load_artifact(tmp_path)
    inputs = torch.randn(6, 2, 3)
    outputs, _ = artifact.tick(inputs, torch.zeros(2, artifact.layout.size))
    with torch.no_grad():
        if isinstance(module, nn.RNNBase):
            expected, _ = module(inputs)
        else:
            state, hidden = None, []
            for x in inputs:
                state = module(x, state)
                hidden.append(state[0] if cell is nn.LSTMCell else state)
            expected = torch.stack(hidden)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
