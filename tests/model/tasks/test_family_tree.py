"""Family trees: what is due is what plain sets of relatives say of the tree that was told."""

import pytest
import torch

from dnc_serve.model.tasks.family_tree import LABELS, RELATIVES, TOLD, FamilyTree, random_families, relatives
from dnc_serve.model.tasks.triples import DIGITS

Tree = dict[tuple[int, str], int]
"""Who is told to be someone's father, mother, son 1, …"""


def one_side(tree: Tree, person: int, label: str) -> set[int]:
    return {tree[person, label]} if (person, label) in tree else set()


def found(tree: Tree, person: int, relation: str) -> set[int]:
    """All that stand so to a person, by what is told alone."""
    words = relation.split()
    if words[0] in ("paternal", "maternal"):
        side = one_side(tree, person, "father" if words[0] == "paternal" else "mother")
        rest = {"grandfather": "father", "grandmother": "mother", "uncle": "brother", "aunt": "sister"}
        if words[1].startswith("great-"):
            older = {
                grandparent
                for near in side
                for label in ("father", "mother")
                for grandparent in one_side(tree, near, label)
            }
            return {one for elder in older for one in found(tree, elder, rest[words[1].removeprefix("great-")])}
        return {one for near in side for one in found(tree, near, rest[words[1]])}
    children = {
        sex: {one for place in (1, 2) for one in one_side(tree, person, f"{sex} {place}")}
        for sex in ("son", "daughter")
    }
    siblings = {
        sex: {
            one
            for father in one_side(tree, person, "father")
            for place in (1, 2)
            for one in one_side(tree, father, f"{sex} {place}")
            if one != person
        }
        for sex in ("son", "daughter")
    }
    sex = "son" if relation in ("brother", "nephew", "male cousin") or relation.endswith("son") else "daughter"
    if relation in ("brother", "sister"):
        return siblings[sex]
    if relation in ("nephew", "niece"):
        return {one for near in siblings["son"] | siblings["daughter"] for one in _children(tree, near, sex)}
    if relation in ("male cousin", "female cousin"):
        parents = one_side(tree, person, "father") | one_side(tree, person, "mother")
        nephews = "nephew" if sex == "son" else "niece"
        return {one for parent in parents for one in found(tree, parent, nephews)}
    if relation.startswith(("grand", "great-grand")):
        below = children["son"] | children["daughter"]
        if relation.startswith("great-"):
            return {one for near in below for one in found(tree, near, relation.removeprefix("great-"))}
        return {one for near in below for one in _children(tree, near, sex)}
    return one_side(tree, person, relation)  # father, mother


def _children(tree: Tree, person: int, sex: str) -> set[int]:
    return {one for place in (1, 2) for one in one_side(tree, person, f"{sex} {place}")}


def number(digits: torch.Tensor) -> int:
    tens, ones = digits.view(2, DIGITS).argmax(1).tolist()
    return tens * DIGITS + ones


def test_an_answer_is_the_only_one_who_stands_so_to_the_person() -> None:
    task, generator = FamilyTree(hops=4), torch.Generator().manual_seed(1)
    end = 2 * DIGITS + len(LABELS)
    asked = set()
    for _ in range(40):
        batch = task.draw(8, generator)
        for row in range(8):
            tree: Tree = {}
            inputs = iter(zip(batch.inputs[:, row], batch.targets[:, row], batch.due[:, row], strict=True))
            questions = 0
            for x, _, due in inputs:
                assert not due
                if x[-1]:
                    relation = LABELS[int(x[2 * DIGITS : end].argmax())]
                    for _ in range(task.thinking):
                        silent, _, due = next(inputs)
                        assert not silent.any() and not due
                    answering, target, due = next(inputs)
                    assert due and answering[-1] == 1 and answering.sum() == 1
                    assert found(tree, number(x[: 2 * DIGITS]), relation) == {number(target)}
                    asked.add(relation)
                    questions += 1
                elif x.any():
                    label = LABELS[int(x[2 * DIGITS : end].argmax())]
                    assert label in TOLD
                    tree[number(x[: 2 * DIGITS]), label] = number(x[end:-2])
            assert questions == task.questions
    assert asked == set(RELATIVES)


def test_trees_are_of_the_size_that_was_asked_for_and_four_generations_deep() -> None:
    families = random_families(14, 50, torch.Generator().manual_seed(2))
    assert {len(family.men) for family in families} == {14}
    for family in families:
        for person, (father, mother) in enumerate(zip(family.fathers, family.mothers, strict=True)):
            assert (father < 0) == (mother < 0)
            assert max(father, mother) < person
            if father >= 0:
                assert family.men[father] and not family.men[mother]
        assert max(family.fathers.count(person) for person in range(14)) <= 2
    known = relatives(families)
    deepest = known["great-grandson"] | known["great-granddaughter"]
    assert deepest.any() and not (deepest.float() @ (known["grandson"] | known["granddaughter"]).float()).any()


def test_a_curriculum_asks_for_farther_relatives() -> None:
    task = FamilyTree()
    assert task.lengthened(2).hops == 3
    assert list(task.exams()) == ["up to 1 hops", "up to 2 hops", "up to 3 hops", "up to 4 hops"]
    with pytest.raises(ValueError, match="the number of people is 2 to 12; expected"):
        FamilyTree(min_people=2)
