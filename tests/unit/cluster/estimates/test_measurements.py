"""What memory and time have in common, with a key of its own: against lists and counts kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st

from cluster.estimates import measurements as learner

PRIORS = {"a": "1", "b": "1", "c": "2"}
KEPT = 3


class Key(learner.EstimateKey):
    name: str

    @property
    def prior(self) -> str:
        return PRIORS.get(self.name, "")

    @property
    def neighbourhoods(self):
        return ((self.name, "own"), ("all",))


class Row(learner.Measurements):
    kept: ClassVar[int] = KEPT
    key: Key


@dataclass(frozen=True)
class Table(learner.Estimates[Row]):
    of = Row


def one(name: str, ratio: float = 1.0, prior: str | None = None) -> Row:
    key = Key(name=name)
    return Row(key=key, prior=key.prior if prior is None else prior, count=1, recent=(ratio,))


def row(name: str, *ratios: float) -> Row:
    return Row(key=Key(name=name), prior=PRIORS[name], count=len(ratios), recent=ratios[-KEPT:])


seen = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 9)), max_size=20)


@given(seen)
def test_of_every_key_the_newest_ratios_are_kept_and_all_are_counted(ratios):
    table = Table().plus(one(*each) for each in ratios)
    by_name = {name: [ratio for other, ratio in ratios if other == name] for name, _ in ratios}
    assert set(table.measured) == {row(name, *own) for name, own in by_name.items()}


@given(seen, seen)
def test_what_is_not_measured_again_is_the_same_object(before, later):
    table = Table().plus(one(*each) for each in before)
    after = table.plus(one(*each) for each in later)
    untouched = {name for name, _ in before} - {name for name, _ in later}
    same = {found.key.name for found in table.measured if after.get(found.key) is found}
    assert same == untouched


def test_another_prior_begins_a_key_anew_and_is_not_in_use():
    old = Table().plus([one("a", 7.0, prior="0"), one("b", 2.0), one("unknown", 3.0)])
    assert old.in_use().measured == (row("b", 2.0),)
    assert old.plus([one("a", 1.5)]).get(Key(name="a")) == row("a", 1.5)


def test_of_two_farms_the_one_that_knows_more_attempts_is_believed():
    ours = Table((row("a", 1.0, 2.0), row("b", 1.0), one("c", 9.0, prior="0")))
    theirs = Table((row("a", 5.0, 6.0), row("b", 4.0, 4.0), row("c", 8.0), one("unknown", 3.0)))
    # As many attempts are no more: ours stays.
    assert ours.merged(theirs).measured == (row("a", 1.0, 2.0), row("b", 4.0, 4.0), row("c", 8.0))
    assert ours.merged(ours).measured == ours.measured


def test_neighbours_are_those_with_ratios():
    table = Table((row("a", 1.0), row("b"), row("c", 2.0)))
    assert table.neighbours(("all",)) == [row("a", 1.0), row("c", 2.0)]
    assert table.neighbours(("a", "own")) == [row("a", 1.0)]
    assert table.neighbours(("nobody",)) == ()


def test_answers_are_forgotten_before_they_are_too_many(monkeypatch):
    monkeypatch.setattr(learner, "_MOST_ANSWERS", 3)
    answers: learner.Answers[int] = learner.Answers()
    for question in range(5):
        answers[question] = question
        assert answers[question] == question
        assert len(answers) <= 3
