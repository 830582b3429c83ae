"""The training loop: it learns, resumes with equal bits, and stops at what is not finite."""

from dataclasses import replace

import pytest
import torch

from dnc_serve.model.diagnosis import first_non_finite
from dnc_serve.model.interface import InterfaceLayer
from dnc_serve.model.numerics import denormals_flushed, flushes_denormals
from dnc_serve.model.recipe import LOOKUP_START, OPTIMIZERS, PLAIN_START, Recipe, Start
from dnc_serve.model.start import new_model
from dnc_serve.model.tasks.copy import Copy
from dnc_serve.model.train import NotFiniteError, Training, wrong_share

TASK = Copy(bits=3, max_length=3)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "nr_cells": 6, "cell_size": 6, "read_heads": 1}
RECIPE = Recipe(model=SIZES, iterations=40, batch_size=4, lr=1e-2, final_lr=1e-3, carry=0.5)
LEARNING_RATES = {"adam": 1e-2, "rmsprop": 1e-3, "sgd": 1.0, "adamax": 1e-2, "adagrad": 3e-2, "adadelta": 3.0}


def training(recipe: Recipe = RECIPE, task: Copy = TASK, *, compiled: bool = False) -> Training:
    torch.manual_seed(recipe.seed)
    return Training(task, new_model(task, recipe), recipe, compiled=compiled)


def losses(run: Training) -> list[float]:
    return [progress.loss for progress in run.iterate()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_of_a_tiny_task(optimizer: str) -> None:
    task = Copy(bits=3, max_length=1)
    recipe = replace(RECIPE, optimizer=optimizer, lr=LEARNING_RATES[optimizer], final_lr=None, iterations=80, carry=0.0)
    seen = losses(training(recipe, task))
    # A coin toss costs ln 2 = 0.69 nats; knowing one bit of three, a third less.
    assert sum(seen[-10:]) / 10 < 0.45 < sum(seen[:5]) / 5


@pytest.mark.parametrize("model", [SIZES, {**SIZES, "num_hidden_layers": 2, "dropout": 0.3, "rnn_type": "gru"}])
def test_a_resumed_training_goes_on_with_equal_losses_and_weights(model: dict[str, object]) -> None:
    recipe = replace(RECIPE, model=model, curriculum_increment=1, curriculum_every=10)
    uninterrupted = training(recipe)
    expected = losses(uninterrupted)

    first = training(recipe)
    before = [first.advance().loss for _ in range(17)]
    state = first.state_dict()
    torch.manual_seed(99)
    second = Training(TASK, new_model(TASK, recipe), recipe)
    second.load_state_dict(state)
    assert before + losses(second) == expected
    for name, value in uninterrupted.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_carried_batches_start_from_a_used_controller_and_an_empty_memory() -> None:
    run = training(replace(RECIPE, carry=1.0))
    run.advance()
    start = run._start_state()
    hidden, cell = start.controller_hidden[0]
    assert hidden.abs().sum() > 0 and cell.abs().sum() > 0 and start.read_vectors.abs().sum() > 0
    assert all(not tensor.any() for tensor in start.memory[0])
    assert not hidden.requires_grad


def test_without_carry_every_batch_starts_from_zeros() -> None:
    run = training(replace(RECIPE, carry=0.0))
    run.advance()
    assert not run._start_state().read_vectors.any()


def test_reads_are_fed_back_in_training_as_in_a_call() -> None:
    """What is trained is what is evaluated: an unrolling, whichever way the model feeds its reads back."""
    for feedback in ("timestep", "call"):
        run = training(replace(RECIPE, model={**SIZES, "read_feedback": feedback}))
        inputs, start = torch.randn(5, 4, run.task.input_size), run.model.initial_state(4)
        start = start._replace(read_vectors=torch.randn_like(start.read_vectors))
        outputs, states = run.unroll(inputs, start)
        expected, after = run.model.unroll(inputs, start)
        assert torch.equal(outputs, expected)
        assert torch.equal(states[-1].read_vectors, after.read_vectors)


@pytest.mark.parametrize("before", [False, True])
def test_denormal_numbers_are_flushed_while_training_and_never_else(before: bool) -> None:
    torch.set_flush_denormal(before)
    try:
        run = training()
        seen = []
        run.model.output.register_forward_hook(lambda *_: seen.append(flushes_denormals()))
        for _ in run.iterate():
            assert flushes_denormals() is before
            break
        assert all(seen) and seen
        with pytest.raises(ZeroDivisionError), denormals_flushed():
            raise ZeroDivisionError
        assert flushes_denormals() is before
    finally:
        torch.set_flush_denormal(False)


def test_the_learning_rate_falls_exponentially() -> None:
    rates = [progress.lr for progress in training().iterate()]
    assert rates[0] == 1e-2
    assert rates[20] == pytest.approx(10**-2.5)
    assert RECIPE.learning_rate(RECIPE.iterations) == pytest.approx(1e-3)


def test_a_curriculum_lengthens_the_episodes() -> None:
    recipe = replace(RECIPE, curriculum_increment=3, curriculum_every=20, iterations=60)
    lengths = [(progress.timesteps - 1) // 2 for progress in training(recipe, Copy(bits=3, max_length=1)).iterate()]
    assert set(lengths[:20]) == {1}
    assert 2 <= max(lengths[20:40]) <= 4
    assert 5 <= max(lengths[40:]) <= 7


def test_gradients_are_clipped_but_reported_as_they_were() -> None:
    run = training(replace(RECIPE, max_grad_norm=1e-3, optimizer="sgd", lr=1.0, final_lr=None))
    before = torch.nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()
    progress = run.advance()
    moved = torch.nn.utils.parameters_to_vector(run.model.parameters()).detach() - before
    assert progress.grad_norm > 1e-2
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_nan_parameter_stops_the_training_by_name() -> None:
    run = training()
    run.advance()
    with torch.no_grad():
        run.model.output.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"iteration 1: the parameter output\.bias is not finite"):
        run.advance()


def test_an_overflow_names_timestep_and_tensor_and_leaves_the_weights() -> None:
    run = training()
    with torch.no_grad():
        for module in run.model.modules():
            if isinstance(module, InterfaceLayer):
                module.section("read_keys")[1].fill_(3e38)
                module.section("read_strengths")[1].fill_(1e3)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(
        NotFiniteError, match=r"iteration 0: timestep 0: memory\[0\]\.read_weights turned NaN"
    ) as caught:
        list(run.iterate())
    assert caught.value.iteration == 0
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in before.items())


def test_a_non_finite_gradient_names_its_parameter() -> None:
    run = training()
    weight = run.model.output.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weight.detach().clone()
    with pytest.raises(NotFiniteError, match=r"iteration 0: the gradient of output\.weight turned"):
        run.advance()
    assert torch.equal(weight, before)


def test_a_finite_step_has_nothing_to_diagnose() -> None:
    run = training()
    inputs = TASK.draw(2, torch.Generator().manual_seed(1)).inputs
    assert first_non_finite(run.model, inputs, run.model.initial_state(2)) is None
    inputs[1, 0, 0] = torch.inf
    assert first_non_finite(run.model, inputs, run.model.initial_state(2)) == "timestep 1: the input is not finite"


@pytest.mark.long
def test_a_compiled_step_trains_as_the_eager_one_does() -> None:
    recipe = replace(RECIPE, iterations=2, carry=0.0)
    torch.testing.assert_close(
        torch.tensor(losses(training(recipe, compiled=True))),
        torch.tensor(losses(training(recipe))),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_start_biases_the_interface_it_names() -> None:
    plain = new_model(TASK, replace(RECIPE, start=PLAIN_START))
    start = Start(biases={"read_strengths": 10.0, "content_mode": 2.0}, forget_bias=-1.0, input_scale=2.0)
    biased = new_model(TASK, replace(RECIPE, start=start))
    changed = {
        name: (value - plain.state_dict()[name])
        for name, value in biased.state_dict().items()
        if not torch.equal(value, plain.state_dict()[name])
    }
    interface = next(module for module in plain.modules() if isinstance(module, InterfaceLayer))
    (bias_name,) = [name for name in changed if "interface" in name]
    assert sorted(changed[bias_name][changed[bias_name] != 0].tolist()) == pytest.approx([2.0, 10.0], abs=1e-5)
    assert interface.section("read_strengths")[1].numel() == 1
    cell = "towers.0.controllers.0.cells.0."
    torch.testing.assert_close(changed[cell + "bias_ih"][16:32], torch.full((16,), -1.0))
    assert not changed[cell + "bias_ih"][:16].any()
    inputs = TASK.input_size
    torch.testing.assert_close(
        biased.state_dict()[cell + "weight_ih"][:, :inputs], 2 * plain.state_dict()[cell + "weight_ih"][:, :inputs]
    )
    assert not changed[cell + "weight_ih"][:, inputs:].any()


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = new_model(TASK, RECIPE)
    torch.manual_seed(2)
    second = new_model(TASK, RECIPE)
    other = new_model(TASK, replace(RECIPE, seed=8))
    assert torch.equal(first.output.weight, second.output.weight)
    assert not torch.equal(first.output.weight, other.output.weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("final_lr", -1.0),
        ("carry", 1.5),
        ("optimizer", "lion"),
        ("seed", -1),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected"):
        replace(RECIPE, **{name: value})


@pytest.mark.parametrize(
    ("memory", "iterations", "most"),
    [
        ("sparse", 300, 0.2),  # of 0.5: single vectors are copied
        pytest.param("sparse", 1500, 0.03, marks=pytest.mark.long),
        pytest.param("sparse_links", 1500, 0.06, marks=pytest.mark.long),
    ],
)
def test_a_sparse_memory_is_trained_to_copy(memory: str, iterations: int, most: float) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "nr_cells": 16, "cell_size": 8, "read_heads": 1}
    recipe = Recipe(
        model={**sizes, "memory": memory, "sparse_reads": 2, "temporal_reads": 4},
        start=Start(biases={"allocation_gates": 2.0, "write_gates": 1.0, "read_strengths": 3.0}),
        iterations=iterations,
        lr=5e-3,
        final_lr=1e-3,
    )
    task = Copy(bits=3, max_length=3, short_share=0.0)
    seen = list(training(recipe, task).iterate())
    assert wrong_share(seen[-100:]) < most


def test_of_a_start_a_sparse_memory_takes_what_it_has() -> None:
    sparse = {**SIZES, "memory": "sparse"}
    plain = new_model(TASK, replace(RECIPE, model=sparse, start=PLAIN_START))
    biased = new_model(TASK, replace(RECIPE, model=sparse, start=LOOKUP_START))
    interface, before = biased.interfaces()[0], plain.interfaces()[0]
    for part, value in {"allocation_gates": 2.0, "write_gates": 1.0, "read_strengths": 10.0}.items():
        torch.testing.assert_close(interface.section(part)[1], before.section(part)[1] + value)
    with pytest.raises(ValueError, match="name is 'gate'; expected one of read_keys"):
        new_model(TASK, replace(RECIPE, model=sparse, start=Start(biases={"gate": 1.0})))
