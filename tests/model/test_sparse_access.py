"""Sparse memories beside their equations, and what holds for any of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc_serve.model import DNC, DNCConfig
from dnc_serve.model.interface import SparseInterface
from dnc_serve.model.sparse_access import LATEST, PUT_BACK, SparseAccess
from dnc_serve.model.sparse_links import LinkedSparseAccess
from dnc_serve.model.state import LinkedMemoryState, SparseMemoryState, memory_of, memory_shapes
from tests.model.sparse_reference import Reference

CLOSE = {"rtol": 0, "atol": 1e-10}


@st.composite
def configs(draw, kinds=("sparse", "sparse_links")):
    slots = draw(st.integers(1, 24))
    return DNCConfig(
        input_size=1,
        hidden_size=1,
        memory=draw(st.sampled_from(kinds)),
        nr_cells=slots,
        cell_size=draw(st.integers(1, 6)),
        read_heads=draw(st.integers(1, 3)),
        sparse_reads=draw(st.integers(1, min(5, slots))),
        temporal_reads=draw(st.integers(1, 5)),
        cosine=draw(st.sampled_from(("deepmind", "dnc_package"))),
    )


def access_of(config):
    return (SparseAccess if config.memory == "sparse" else LinkedSparseAccess)(config).double()


def empty(config, batch, dtype=torch.float64):
    integers = ("last_access", "time", "read_slots", "precedence_slots", "previous_slots", "next_slots")
    return memory_of(
        config.memory,
        [
            torch.zeros(batch, *shape, dtype=torch.int32 if name in integers else dtype)
            for name, shape in memory_shapes(config).items()
        ],
    )


def without_ties(config, batch):
    """Words that were there before: no two slots are alike, so no order hangs on the last bit."""
    memory = torch.randn(batch, config.nr_cells, config.cell_size, dtype=torch.float64)
    ages = torch.stack([torch.randperm(config.nr_cells) for _ in range(batch)]).int()
    return empty(config, batch)._replace(
        memory=memory,
        squared_norms=(memory * memory).sum(2),
        last_access=ages,
        time=torch.full((batch, 1), config.nr_cells, dtype=torch.int32),
    )


def interfaces(config, batch, timesteps):
    heads, words, modes = config.read_heads, config.cell_size, 3 if config.memory == "sparse_links" else 0
    for _ in range(timesteps):
        yield SparseInterface(
            torch.randn(batch, heads, words, dtype=torch.float64),
            torch.rand(batch, heads, dtype=torch.float64) * 5,
            torch.randn(batch, words, dtype=torch.float64),
            torch.rand(batch, 1, dtype=torch.float64),
            torch.rand(batch, 1, dtype=torch.float64),
            torch.softmax(torch.randn(batch, heads, modes, dtype=torch.float64), 2),
        )


def references(config, state):
    return [
        Reference(
            config.nr_cells, config.cell_size, config.read_heads, config.sparse_reads,
            config.temporal_reads if config.memory == "sparse_links" else 0, config.cosine == "deepmind",
            int(state.time[row]), state.memory[row].tolist(), state.last_access[row].tolist(),
        )
        for row in range(state.memory.size(0))
    ]  # fmt: skip


def stepped(reference, interface, row):
    return reference.step(
        interface.read_keys[row].tolist(), interface.read_strengths[row].tolist(),
        interface.write_vector[row].tolist(), float(interface.allocation_gate[row]),
        float(interface.write_gate[row]), interface.read_modes[row].tolist(),
    )  # fmt: skip


def dense(slots, weights, size):
    """A sparse weighting [..., E] over all slots: [..., size]."""
    zeros = torch.zeros(*slots.shape[:-1], size, dtype=weights.dtype)
    return zeros.scatter_add(-1, slots.long(), weights)


def assert_as(reference, state, row, config):
    assert state.last_access[row].tolist() == reference.last_access
    assert int(state.time[row]) == reference.time
    n = config.nr_cells
    pairs = [
        (state.memory[row], reference.memory),
        (dense(state.read_slots[row], state.sparse_read_weights[row], n), reference.read_weights),
    ]
    if isinstance(state, LinkedMemoryState):
        links = dense(state.previous_slots[row], state.sparse_links[row], n)
        pairs += [
            (dense(state.precedence_slots[row], state.sparse_precedence[row], n), reference.precedence),
            (links, reference.link),
        ]
        for j in range(n):
            after = {i for i in state.next_slots[row, j].tolist() if links[i, j] > 0}
            assert after == {i for i in reference.after[j] if reference.link[i][j] > 0}
    for found, expected in pairs:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(state.squared_norms, (state.memory * state.memory).sum(2), **CLOSE)


@settings(deadline=None, max_examples=25)
@given(configs(), st.integers(0, 2**32 - 1))
def test_each_timestep_is_that_of_the_equations(config, seed):
    torch.manual_seed(seed)
    access, state = access_of(config), without_ties(config, 2)
    rows = references(config, state)
    for interface in interfaces(config, 2, 10):
        reads, state = access.access(interface, state)
        for row, reference in enumerate(rows):
            expected = torch.tensor(stepped(reference, interface, row), dtype=torch.float64)
            torch.testing.assert_close(reads[row].view_as(expected), expected, **CLOSE)
            assert_as(reference, state, row, config)


@settings(deadline=None, max_examples=15)
@given(configs(), st.integers(0, 2**32 - 1))
def test_so_is_each_timestep_of_a_new_session_with_one_read_a_head(config, seed):
    """All slots are alike there: the lowest is written first, and read first."""
    torch.manual_seed(seed)
    config = DNCConfig(**config.to_dict() | {"sparse_reads": 1, "read_heads": 1})
    access, state = access_of(config), empty(config, 2)
    rows = references(config, state)
    for interface in interfaces(config, 2, 8):
        reads, state = access.access(interface, state)
        for row, reference in enumerate(rows):
            expected = torch.tensor(stepped(reference, interface, row), dtype=torch.float64)
            torch.testing.assert_close(reads[row].view_as(expected), expected, **CLOSE)
            assert_as(reference, state, row, config)


@settings(deadline=None, max_examples=15)
@given(configs(), st.integers(0, 2**32 - 1))
def test_in_place_gives_the_same_bits_and_only_what_was_touched_changes(config, seed):
    torch.manual_seed(seed)
    access = access_of(config)
    state = without_ties(config, 2)
    mine = state.map(torch.clone)
    large = {name: getattr(mine, name) for name in ("memory", "last_access", "squared_norms")}
    for interface in interfaces(config, 2, 6):
        before = state.map(torch.clone)
        reads, after = access.access(interface, state)
        for one, other in zip(before, state, strict=True):
            assert torch.equal(one, other), "a pure step changes nothing"
        owned_reads, mine = access.access(interface, mine, in_place=True)
        assert torch.equal(owned_reads, reads)
        for name, one, other in zip(after._fields, after, mine, strict=True):
            assert torch.equal(one, other), name
        for name, tensor in large.items():
            assert getattr(mine, name).data_ptr() == tensor.data_ptr()
        touched = (after.memory != before.memory).any(2).sum(1)
        assert touched.max() <= config.read_heads * config.sparse_reads + 1
        state = after


@settings(deadline=None, max_examples=15)
@given(configs(), st.integers(0, 2**32 - 1))
def test_weightings_stay_weightings(config, seed):
    torch.manual_seed(seed)
    access, state = access_of(config), empty(config, 2)
    for interface in interfaces(config, 2, 15):
        _, state = access.access(interface, state)
        sums = [state.sparse_read_weights.sum(2)]
        if isinstance(state, LinkedMemoryState):
            sums += [state.sparse_precedence.sum(1), state.sparse_links.sum(2)]
            own = torch.arange(config.nr_cells).view(1, -1, 1)
            assert not state.sparse_links[state.previous_slots == own].any(), "no slot is linked to itself"
        for total in sums:
            assert (total >= 0).all()
            assert (total <= 1 + 1e-9).all()


@pytest.mark.parametrize("kind", ["sparse", "sparse_links"])
def test_gradients_flow_through_writes_links_and_reads(kind):
    torch.manual_seed(3)
    config = DNCConfig(
        input_size=1, hidden_size=1, memory=kind, nr_cells=7, cell_size=3, read_heads=2, sparse_reads=2,
        temporal_reads=3,
    )  # fmt: skip
    access, state = access_of(config), without_ties(config, 2)
    with torch.no_grad():
        for interface in interfaces(config, 2, 4):
            _, state = access.access(interface, state)
    asked = list(interfaces(config, 2, 3))
    floats = [name for name, each in zip(state._fields, state, strict=True) if each.is_floating_point()]
    floats.remove("squared_norms")  # they follow from the memory

    def run(*tensors):
        given = dict(zip(floats, tensors, strict=False))
        now = state._replace(**given, squared_norms=(given["memory"] ** 2).sum(2).detach())
        reads = []
        for at in range(3):
            parts = tensors[len(floats) + 6 * at : len(floats) + 6 * (at + 1)]
            read, now = access.access(SparseInterface(*parts), now)
            reads.append(read)
        return (*reads, *(getattr(now, name) for name in floats))

    arguments = [getattr(state, name) for name in floats] + [part for each in asked for part in each]
    arguments = [each.detach().clone().requires_grad_() for each in arguments]
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)


def test_a_slot_that_stands_there_twice_has_its_gradient_once():
    """Two heads that read one slot write to it together."""
    config = DNCConfig(input_size=1, hidden_size=1, memory="sparse", nr_cells=5, cell_size=2, sparse_reads=1)
    access, state = access_of(config), without_ties(config, 1)
    state = state._replace(
        read_slots=torch.tensor([[[2], [2]]], dtype=torch.int32),
        sparse_read_weights=torch.ones(1, 2, 1, dtype=torch.float64),
    )
    (interface,) = interfaces(config, 1, 1)

    def run(vector, weights):
        return access.access(interface._replace(write_vector=vector), state._replace(sparse_read_weights=weights))[
            1
        ].memory

    arguments = [interface.write_vector.requires_grad_(), state.sparse_read_weights.requires_grad_()]
    assert torch.autograd.gradcheck(run, arguments)


@pytest.mark.parametrize("in_place", [False, True])
def test_times_are_brought_down_before_a_float_cannot_count_them(in_place):
    config = DNCConfig(input_size=1, hidden_size=1, memory="sparse", nr_cells=6, cell_size=2, sparse_reads=1)
    access, state = access_of(config), without_ties(config, 2)
    ages = torch.tensor([[5, PUT_BACK - 1, PUT_BACK + 3, LATEST - 9, LATEST - 2, LATEST - 1]] * 2, dtype=torch.int32)
    late = torch.tensor([[LATEST], [LATEST - 1]], dtype=torch.int32)
    (interface,) = interfaces(config, 2, 1)
    same = state.rows(torch.tensor([0, 0]))._replace(last_access=ages.clone(), time=late)
    _, after = access.access(SparseInterface(*(part[[0, 0]] for part in interface)), same, in_place)
    assert after.time.tolist() == [[LATEST + 1 - PUT_BACK], [LATEST]]
    assert after.time.max() < 2**24
    slots, counts = after.last_access[0], after.last_access[1]
    touched = counts == LATEST
    assert slots[touched].unique().tolist() == [LATEST + 1 - PUT_BACK]
    expected = (ages[0] - PUT_BACK).clamp(min=0)
    assert slots[~touched].tolist() == expected[~touched].tolist()


def test_a_trifle_is_no_access():
    config = DNCConfig(
        input_size=1, hidden_size=1, memory="sparse", nr_cells=4, cell_size=1, read_heads=1, sparse_reads=2
    )
    access = access_of(config)
    memory = torch.tensor([[[1.0], [-1.0], [0.0], [0.0]]], dtype=torch.float64)
    state = empty(config, 1)._replace(memory=memory, squared_norms=(memory * memory).sum(2))
    one = torch.ones(1, 1, dtype=torch.float64)
    for strength, accessed in ((0.0, [1, 1, 0, 0]), (20.0, [1, 0, 0, 0])):
        asked = SparseInterface(one[None], strength * one, one, one, 0 * one, torch.zeros(1, 1, 0))
        # Nothing is written; slot 1, the least recently accessed, is erased, and the most like the key after slot 0.
        moved = state._replace(last_access=torch.tensor([[0, -1, 0, 0]], dtype=torch.int32))
        _, after = access.access(asked, moved)
        assert after.last_access[0].clamp(min=0).tolist() == accessed


def test_a_state_names_its_fields():
    config = DNCConfig(input_size=1, hidden_size=1, memory="sparse_links")
    assert tuple(memory_shapes(config)) == LinkedMemoryState._fields
    assert LinkedMemoryState._fields[:6] == SparseMemoryState._fields


@pytest.mark.parametrize("kind", ["sparse", "sparse_links"])
def test_what_a_training_keeps_for_its_way_back_does_not_grow_with_the_slots(kind):
    def kept(slots: int) -> int:
        dnc = DNC(3, 8, num_hidden_layers=1, nr_cells=slots, cell_size=4, memory=kind)
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs, _ = dnc.unroll(torch.randn(6, 2, 3), dnc.initial_state(2))
        outputs.sum().backward()
        return sum(storage.nbytes() for storage in storages.values())

    assert kept(4000) == kept(1000)
