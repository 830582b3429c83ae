"""Examinations count what is wrong, from fresh and from used sessions; the bundled models pass theirs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dnc_serve.model import pretrained
from dnc_serve.model.dnc import DNC
from dnc_serve.model.evaluate import ALL, BROKEN_OFF, EXPERIENCE, FRESH, STARTS, Figure, evaluate
from dnc_serve.model.runs import Plan
from dnc_serve.model.start import new_model
from dnc_serve.model.state import DNCState
from dnc_serve.model.tasks.copy import Copy
from dnc_serve.model.tasks.graph import Graph
from dnc_serve.model.tasks.repeat_copy import RepeatCopy
from dnc_serve.model.weights import load_model

SIZES = {"hidden_size": 12, "num_hidden_layers": 1, "nr_cells": 6, "cell_size": 6, "read_heads": 1}
TASK = Copy(bits=3, max_length=4)


def fresh_model() -> DNC:
    return new_model(TASK, replace(Copy.recipe, model=SIZES))


def test_every_exam_is_taken_from_every_start() -> None:
    figures = list(evaluate(TASK, fresh_model(), episodes=150))
    assert [(figure.exam, figure.start) for figure in figures] == [
        (exam, start) for exam in ("1 vectors", "5 vectors") for start in STARTS
    ]
    assert {figure.episodes for figure in figures} == {200}
    assert [figure.answers for figure in figures] == [200] * 4 + [1000] * 4
    assert all(0.35 < figure.wrong_units / figure.units < 0.65 for figure in figures)


def test_an_answer_that_an_episode_does_not_have_is_not_right() -> None:
    untrained = new_model(Graph(), replace(Graph.recipe, model=SIZES))
    journeys = [one for one in evaluate(Graph(), untrained, episodes=1000, starts=[FRESH]) if "journeys" in one.exam]
    assert len(journeys) == 1
    # Who knows nothing names a station of 100 by chance, at late hops, which few episodes have, as at the first.
    assert max(journeys[0].right_by_answer) < 0.5


def test_wrong_answers_are_counted_by_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_model()

    def unroll(inputs: Tensor, state: DNCState) -> tuple[Tensor, DNCState]:
        """Right, but for the second answer of each row in the first half."""
        bits = (inputs[:, :, :3] > 0).float()
        length = (len(inputs) - 1) // 2
        outputs = torch.full((len(inputs), inputs.size(1), 3), -1.0)
        outputs[length + 1 :] = 2 * bits[:length] - 1
        outputs[length + 2, :50] *= -1
        return outputs, state

    monkeypatch.setattr(model, "unroll", unroll)
    task = Copy(bits=3, min_length=4, max_length=4, short_share=0.0)
    monkeypatch.setattr(Copy, "exams", lambda self: {"four": self})
    (figure,) = evaluate(task, model, episodes=100, starts=(FRESH,))
    assert figure == Figure("four", FRESH, 100, 50, 400, 50, 1200, 150, "bits", (1.0, 0.5, 1.0, 1.0))
    assert str(figure) == (
        "four, fresh: 50 of 100 episodes wrong, 50 of 400 answers, 150 of 1200 bits; right by answer 100.0 50.0 100.0 "
        "100.0 %"
    )


def test_rows_that_answer_at_different_times_are_counted_in_their_own_order() -> None:
    task = RepeatCopy(min_length=1, max_length=3)
    model = new_model(task, replace(task.recipe, model=SIZES))
    (figure, _) = evaluate(task, model, episodes=100, starts=(FRESH,))
    assert len(figure.right_by_answer) == 3 * 2 + 1
    batch = task.draw(100, torch.Generator().manual_seed(20161012))
    assert figure.answers == int(batch.due.sum())


def test_used_sessions_keep_the_controller_as_the_reset_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_model()
    starts: list[DNCState] = []
    true_unroll = model.unroll

    def unroll(inputs: Tensor, state: DNCState) -> Any:
        starts.append(state)
        return true_unroll(inputs, state)

    monkeypatch.setattr(model, "unroll", unroll)
    for start, used in ((FRESH, False), (EXPERIENCE, True), (BROKEN_OFF, True), (ALL, False)):
        starts.clear()
        list(evaluate(TASK, model, episodes=100, starts=(start,)))
        examined = starts[-1]
        assert examined.controller_hidden[0][0].any() == used == examined.read_vectors.any()
        assert not any(tensor.any() for tensor in examined.memory[0])


def test_the_model_is_left_in_its_mode() -> None:
    model = fresh_model().train()
    list(evaluate(TASK, model, episodes=100, starts=(FRESH,)))
    assert model.training


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_a_bundled_model_is_small_and_described(name: str) -> None:
    folder = pretrained.path(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20
    card = (folder / "CARD.md").read_text()
    assert f"dnc train {name} -o runs/{name}" in card
    assert Plan.read(folder).task.name == name


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_a_bundled_model_passes_its_exams(name: str) -> None:
    """A tenth of the episodes behind the card's figures."""
    folder = pretrained.path(name)
    plan, model = Plan.read(folder), load_model(folder)
    figures = {(figure.exam, figure.start): figure for figure in evaluate(plan.task, model, episodes=100)}
    promised = {
        "copy": ["1 vectors", "5 vectors", "10 vectors", "20 vectors"],
        "recall": ["6 pairs", "10 pairs"],
        "graph": ["12 to 20 triples"],
        "traversal": ["as trained"],
    }[name]
    for exam in promised:
        for start in (FRESH, EXPERIENCE, ALL):
            figure = figures[exam, start]
            if name == "copy":
                assert figure.wrong_units == 0, figure
            elif name == "recall":
                assert figure.wrong_episodes <= 1, figure
            elif name == "traversal":
                assert figure.wrong_answers <= 0.04 * figure.answers, figure
            else:
                assert min(figure.right_by_answer) >= 0.98, figure


def test_an_unknown_bundled_model_is_refused() -> None:
    with pytest.raises(ValueError, match="pretrained model is 'sort'; expected one of copy, recall, graph, traversal"):
        pretrained.path("sort")
