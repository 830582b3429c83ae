"""Family trees, after the Nature paper: told who is whose father, mother, son, daughter; asked for other relatives."""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dnc_serve.model.recipe import LOOKUP_START, Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_int
from dnc_serve.model.tasks.triples import EMPTY, Triples, joined, random_names, shuffled, two_digits

MOST_CHILDREN = 2
GENERATIONS = 4
TOLD = ("father", "mother", *(f"{child} {place}" for child in ("son", "daughter") for place in (1, 2)))
# Each as a way along nearer relations, the person's first, and how many told triples it takes to find.
RELATIVES = {
    "father": (("father",), 1),
    "mother": (("mother",), 1),
    "brother": (("brother",), 2),
    "sister": (("sister",), 2),
    "paternal grandfather": (("father", "father"), 2),
    "paternal grandmother": (("father", "mother"), 2),
    "maternal grandfather": (("mother", "father"), 2),
    "maternal grandmother": (("mother", "mother"), 2),
    "grandson": (("child", "son"), 2),
    "granddaughter": (("child", "daughter"), 2),
    "paternal uncle": (("father", "brother"), 3),
    "paternal aunt": (("father", "sister"), 3),
    "maternal uncle": (("mother", "brother"), 3),
    "maternal aunt": (("mother", "sister"), 3),
    "nephew": (("sibling", "son"), 3),
    "niece": (("sibling", "daughter"), 3),
    "great-grandson": (("child", "child", "son"), 3),
    "great-granddaughter": (("child", "child", "daughter"), 3),
    "paternal great-uncle": (("father", "parent", "brother"), 4),
    "paternal great-aunt": (("father", "parent", "sister"), 4),
    "maternal great-uncle": (("mother", "parent", "brother"), 4),
    "maternal great-aunt": (("mother", "parent", "sister"), 4),
    "male cousin": (("parent", "sibling", "son"), 4),
    "female cousin": (("parent", "sibling", "daughter"), 4),
}
LABELS = tuple(dict.fromkeys((*TOLD, *RELATIVES)))


class Family(NamedTuple):
    """A tree: of each person the father and mother, by number, or EMPTY, and whether it is a man."""

    fathers: list[int]
    mothers: list[int]
    men: list[bool]


@dataclass(frozen=True, kw_only=True)
class FamilyTree(Triples):
    """A tree of four generations, told; then questions: a person and a relation, silence, a timestep to answer.

    Only relatives of whom a person has exactly one are asked for. `hops` is how many triples it takes at most to find
    one: 2 for a sister, 4 for a great-aunt.
    """

    name = "family_tree"
    recipe = Recipe(
        model={"hidden_size": 96, "num_hidden_layers": 1, "nr_cells": 40, "cell_size": 40, "read_heads": 2},
        start=replace(LOOKUP_START, forget_bias=-1.0),
        iterations=12_000,
        batch_size=16,
        lr=2e-3,
        final_lr=2e-4,
        carry=0.3,
        curriculum_increment=1,
        curriculum_every=2500,
    )

    min_people: int = option(5, "people of the smallest tree")
    max_people: int = option(12, "people of the largest tree")
    hops: int = option(1, "triples that the farthest relation takes; 4 is the most")
    questions: int = option(4, "questions asked")
    thinking: int = option(3, "silent timesteps between a question and its answer")

    def __post_init__(self) -> None:
        check_range("the number of people", self.min_people, self.max_people, at_least=3, at_most=100)
        check_range("hops", self.hops, self.hops)

    @property
    def line_channels(self) -> int:
        return len(LABELS)

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        people = random_int(self.min_people, self.max_people, generator)
        families = random_families(people, batch_size, generator)
        triples = shuffled(told(families), generator)
        names = random_names(people, batch_size, generator)
        rows = torch.arange(batch_size)
        sources, labels, targets = triples.unbind(2)
        empty = sources == EMPTY
        ends = (names[place, rows].masked_fill(empty, EMPTY) for place in (sources, targets))
        parts = [self.tell(torch.stack((next(ends), labels, next(ends)), 2))]
        known = relatives(families)
        for _ in range(self.questions):
            person, relation, answer = self._question(known, generator)
            parts.append(self.ask(names[person, rows], relation, names[answer, rows]))
        return joined(parts)

    def ask(self, person: Tensor, label: Tensor, answer: Tensor) -> Batch:
        """The timesteps of a question for the relative by that label, [B] each."""
        nothing = torch.full((1, len(person)), EMPTY)
        silent = nothing.expand(self.thinking, -1)
        inputs = torch.cat(
            (
                self.encode(person.unsqueeze(0), label.unsqueeze(0), nothing, asked=True),
                self.encode(silent, silent, silent, asked=False),
                self.encode(nothing, nothing, nothing, asked=True),
            )
        )
        targets, due = inputs.new_zeros(len(inputs), len(person), self.output_size), inputs.new_zeros(inputs.shape[:2])
        targets[-1], due[-1] = two_digits(answer), 1
        return Batch(inputs, targets, due)

    def _question(self, known: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Person, label and answer, [B] each: a relation that someone has one of, each as likely, and such a person."""
        names = [name for name, (_, hops) in RELATIVES.items() if hops <= self.hops]
        tables = torch.stack([known[name] for name in names])  # [relations, B, people, people]
        single = tables.sum(3) == 1
        some = single.any(2)
        relation = torch.rand(some.shape, generator=generator).masked_fill(~some, -1.0).argmax(0)
        rows = torch.arange(single.size(1))
        asked = single[relation, rows]
        person = torch.rand(asked.shape, generator=generator).masked_fill(~asked, -1.0).argmax(1)
        labels = torch.tensor([LABELS.index(name) for name in names])
        return person, labels[relation], tables[relation, rows, person].int().argmax(1)

    def lengthened(self, by: int) -> Self:
        return replace(self, hops=self.hops + by)

    def exams(self) -> dict[str, Task]:
        farthest = max(hops for _, hops in RELATIVES.values())
        largest = replace(self, min_people=self.max_people)
        return {f"up to {hops} hops": replace(largest, hops=hops) for hops in range(1, farthest + 1)}


def random_families(people: int, batch_size: int, generator: torch.Generator) -> list[Family]:
    """Trees that grow from a couple: someone at random, with a partner from elsewhere if there is none, has a child."""
    chances = torch.rand(batch_size, 3 * people * people, generator=generator).tolist()
    return [_grown(people, row) for row in chances]


def _grown(people: int, chances: list[float]) -> Family:
    fathers, mothers, men = [EMPTY, EMPTY], [EMPTY, EMPTY], [True, False]
    partners, children, generations = {0: 1, 1: 0}, [0, 0], [0, 0]

    def born(father: int, mother: int, man: bool, generation: int) -> int:
        fathers.append(father)
        mothers.append(mother)
        men.append(man)
        children.append(0)
        generations.append(generation)
        return len(men) - 1

    while len(men) < people:
        able = [
            person
            for person in range(len(men))
            if children[person] < MOST_CHILDREN
            and generations[person] < GENERATIONS - 1
            and (person in partners or len(men) + 1 < people)
        ]
        if not able:  # the last one would need a partner, and there is no place for two
            born(EMPTY, EMPTY, chances.pop() < 0.5, 0)
            continue
        # Of two of a couple either stands for both; those who have no partner yet make the tree deep.
        person = able[int(chances.pop() * len(able))]
        if person not in partners:
            partner = born(EMPTY, EMPTY, not men[person], generations[person])
            partners[person], partners[partner] = partner, person
        couple = (person, partners[person]) if men[person] else (partners[person], person)
        born(*couple, chances.pop() < 0.5, generations[person] + 1)
        for parent in couple:
            children[parent] += 1
    return Family(fathers, mothers, men)


def told(families: list[Family]) -> Tensor:
    """What is told of each family, [n, B, 3], by numbers of people and of LABELS; EMPTY after a row's last."""
    rows = []
    for fathers, mothers, men in families:
        triples: list[tuple[int, int, int]] = []
        counted: dict[tuple[int, bool], int] = {}
        for child, parents in enumerate(zip(fathers, mothers, strict=True)):
            for label, parent in zip(("father", "mother"), parents, strict=True):
                if parent == EMPTY:
                    continue
                place = counted[parent, men[child]] = counted.get((parent, men[child]), 0) + 1
                kind = "son" if men[child] else "daughter"
                triples += [(child, LABELS.index(label), parent), (parent, LABELS.index(f"{kind} {place}"), child)]
        rows.append(torch.tensor(triples))
    return torch.nn.utils.rnn.pad_sequence(rows, padding_value=EMPTY)


def relatives(families: list[Family]) -> dict[str, Tensor]:
    """Who is whose, [B, people, people], by relation: [b, i, j] is true where j is that relative of i."""
    fathers, mothers = (
        torch.nn.functional.one_hot(torch.tensor(parents) + 1, len(families[0].men) + 1)[..., 1:].bool()
        for parents in ([family.fathers for family in families], [family.mothers for family in families])
    )
    men = torch.tensor([family.men for family in families]).unsqueeze(1)
    parents = fathers | mothers
    children = parents.mT
    siblings = _along(fathers, fathers.mT) & ~torch.eye(men.size(2), dtype=torch.bool)
    nearest = {"father": fathers, "mother": mothers, "parent": parents, "child": children, "sibling": siblings}
    nearest |= {
        "son": children & men,
        "daughter": children & ~men,
        "brother": siblings & men,
        "sister": siblings & ~men,
    }
    found = {}
    for name, (way, _) in RELATIVES.items():
        table = nearest[way[0]]
        for step in way[1:]:
            table = _along(table, nearest[step])
        found[name] = table
    return found


def _along(first: Tensor, second: Tensor) -> Tensor:
    """One relation of another: true where there is someone between."""
    return (first.float() @ second.float()) > 0
