import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnc_serve.model import DNC, DNCConfig, MemoryState
from dnc_serve.model.deepmind import INTERFACE_NAMES
from dnc_serve.model.memory import MemoryAccess

CLOSE = {"rtol": 0, "atol": 1e-10}
CASES = [
    "access_zero_state",
    "access_four_reads",
    "access_two_writes",
    "access_three_writes_zero",
    "access_n64",
]


def golden_access(case: dict, independent_linears: bool) -> MemoryAccess:
    config = DNCConfig(
        input_size=1,
        hidden_size=case["inputs"].size(2),
        nr_cells=case["config/memory_size"],
        cell_size=case["config/word_size"],
        read_heads=case["config/num_reads"],
        write_heads=case["config/num_writes"],
        independent_linears=independent_linears,
    )
    access = MemoryAccess(config).double()
    with torch.no_grad():
        for part, name in INTERFACE_NAMES.items():
            weight, bias = access.interface.section(part)
            weight.copy_(case[f"weights/{name}/w"].T)
            bias.copy_(case[f"weights/{name}/b"])
    return access


@pytest.mark.parametrize("independent_linears", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_accesses_give_deepminds_numbers(golden, golden_memory_state, name, independent_linears):
    case = golden(name)
    access = golden_access(case, independent_linears)
    state = golden_memory_state(case, "initial")
    for step, inputs in enumerate(case["inputs"]):
        interface = access.interface(inputs)
        for part in ("erase_vectors", "write_vectors"):
            torch.testing.assert_close(getattr(interface, part), case[f"intermediate/{part}"][step], **CLOSE)
        torch.testing.assert_close(interface.read_modes, case["intermediate/read_mode"][step], **CLOSE)
        torch.testing.assert_close(interface.free_gates, case["intermediate/free_gate"][step], **CLOSE)
        read_vectors, state = access(inputs, state)
        torch.testing.assert_close(read_vectors, case["read_words"][step].flatten(1), **CLOSE)
        for field, one, expected in zip(
            MemoryState._fields, state, golden_memory_state(case, "states", step), strict=True
        ):
            torch.testing.assert_close(one, expected, **CLOSE, msg=lambda text, field=field: f"{field}: {text}")


def test_an_unknown_part_of_the_interface_is_named():
    access = MemoryAccess(DNCConfig(input_size=1, hidden_size=2))
    with pytest.raises(ValueError, match="name is 'keys'; expected one of write_keys"):
        access.interface.section("keys")


@given(
    slots=st.integers(1, 12),
    read_heads=st.sampled_from([1, 2, 64]),
    write_heads=st.sampled_from([1, 2, 3]),
    rows=st.integers(1, 3),
    scale=st.sampled_from([0.1, 1.0, 100.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_state_keeps_the_papers_invariants(slots, read_heads, write_heads, rows, scale, dtype, seed):
    """At any size and with saturated gates and strengths up to 1e4 times anything usual."""
    torch.manual_seed(seed)
    dnc = DNC(3, 8, nr_cells=slots, read_heads=read_heads, write_heads=write_heads, cell_size=4).to(dtype)
    with torch.no_grad():
        dnc.interfaces()[0].linear.weight.mul_(scale)
        state = dnc.initial_state(rows)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-11
        for _ in range(6):
            output, state = dnc.step(torch.randn(rows, 3, dtype=dtype) * 3, state)
            memory = state.memory[0]
            assert torch.isfinite(output).all()
            for weights in (memory.read_weights, memory.write_weights, memory.precedence):
                assert (weights >= -tolerance).all()
                assert (weights.sum(2) <= 1 + tolerance).all()
            assert (memory.usage_vector >= -tolerance).all()
            assert (memory.usage_vector <= 1 + tolerance).all()
            links = memory.link_matrix
            assert (links.diagonal(dim1=2, dim2=3) == 0).all()
            assert (links >= -tolerance).all()
            assert (links.sum(2) <= 1 + tolerance).all()
            assert (links.sum(3) <= 1 + tolerance).all()
