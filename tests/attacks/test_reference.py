"""The gate against a second, naive evaluator; and less right never gives more."""

import random
from itertools import combinations, product
from typing import Any

import pytest

from systemmanager.policy.gate import decide
from tests.attacks.reference import evaluate
from tests.attacks.worlds import PLAIN, QUESTIONS, asked, some

ROUNDS = 25_000
RIGHTS = ("scopes", "capabilities", "offers", "grants", "kind", "port")
ORDER = ("deny", "ask", "allow")


def differs(one: dict[str, Any]) -> bool:
    decision = decide(asked(one))
    assert (decision.permit is not None) is (decision.answer == "allow")
    return decision.answer != evaluate(one)


def said(different: list[dict[str, Any]]) -> str:
    """The differences, each without what is as usual."""
    lines = []
    for one in different[:5]:
        gate, reference = decide(asked(one)).answer.value, evaluate(one)
        changed = {name: value for name, value in one.items() if value != PLAIN[name]}
        lines.append(f"gate {gate}, reference {reference}: {changed}")
    return f"{len(different)} differ\n" + "\n".join(lines)


@pytest.mark.parametrize("seed", range(4))
def test_the_gate_agrees_with_the_reference_on_random_questions(seed: int) -> None:
    chance = random.Random(seed)
    questions = (some(chance, chance.choice((1, 2, 3, 4, 6, 10, len(QUESTIONS)))) for _ in range(ROUNDS))
    different = [one for one in questions if differs(one)]
    assert not different, said(different)


def test_the_random_questions_get_every_answer_often() -> None:
    chance = random.Random(0)
    answers = [evaluate(some(chance, chance.choice((1, 2, 3, 4, 6, 10)))) for _ in range(5_000)]
    assert min(answers.count(answer) for answer in ORDER) > 100


def test_the_gate_agrees_on_every_pair_of_values() -> None:
    different = []
    for (left, left_values), (right, right_values) in combinations(QUESTIONS.items(), 2):
        for pair in product(left_values, right_values):
            one = {**PLAIN, left: pair[0], right: pair[1]}
            if differs(one):
                different.append(one)
    assert not different, said(different)


def test_the_gate_agrees_on_every_combination_of_rights() -> None:
    every = product(*(QUESTIONS[name] for name in RIGHTS))
    different = [one for values in every if differs(one := {**PLAIN, **dict(zip(RIGHTS, values, strict=True))})]
    assert not different, said(different)


def less(chance: random.Random, one: dict[str, Any]) -> dict[str, Any]:
    """The same question with one scope, capability, grant, entry or person's yes less."""
    name = chance.choice(["grants", "scope", "offers", "approvers", "sudo_policy", "paths", "hosts", "units", "images"])
    if name == "scope":
        held = [[scope for scope in grant if chance.random() < 0.7] for grant in one["grants"]]
        return {**one, "grants": held}
    if name == "approvers":
        return {**one, "approvers": max(0, one["approvers"] - 1)}
    if name == "sudo_policy":
        return {**one, "sudo_policy": "none"}
    value = one[name]
    return {**one, name: [] if value is None else [entry for entry in value if chance.random() < 0.5]}


@pytest.mark.parametrize("seed", range(2))
def test_less_right_never_turns_a_no_into_a_yes(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(ROUNDS // 2):
        one = some(chance, chance.choice((1, 2, 3, 4, 6)))
        fewer = less(chance, one)
        before, after = decide(asked(one)).answer, decide(asked(fewer)).answer
        assert ORDER.index(after) <= ORDER.index(before), f"{before} became {after}: {one} -> {fewer}"
