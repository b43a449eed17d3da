"""A score as it is kept: out of JSON and back, also of another version."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fidelity.bounds import BOUNDS
from pipeline.fidelity.score import FidelityPart, FidelityScore, score_from

SHARES = st.floats(0, 1)
SCORES = st.builds(
    FidelityScore,
    score=SHARES,
    parts=st.dictionaries(st.sampled_from([part.value for part in FidelityPart]), SHARES),
    worst_frame=st.none() | st.integers(0, 999),
)


@given(SCORES)
def test_a_score_comes_back_from_json(score: FidelityScore) -> None:
    told = json.loads(json.dumps(score.model_dump()))
    assert score_from(told) == score
    assert score_from(told | {"hologram": 3}) == score


@pytest.mark.parametrize(
    "value", [None, 0.5, "good", [], {}, {"score": 2}, {"score": "high"}, {"score": 0.5, "parts": 3}]
)
def test_what_another_version_wrote_otherwise_is_no_score(value: object) -> None:
    assert score_from(value) is None


@given(st.sampled_from(list(FidelityPart)), st.floats(0, 1e3), st.floats(0, 1e3))
def test_less_is_better_and_what_is_told_has_half_a_score_at_most(part: FidelityPart, one: float, other: float) -> None:
    bound = BOUNDS[part]
    low, high = sorted((one, other))
    assert 0 <= bound.score(high) <= bound.score(low) <= 1
    off = bound.score(one) - 0.5
    assert off <= 1e-9 if one >= bound.told else off >= -1e-9
    assert bound.score(bound.good) == 1


def test_people_read_what_is_worst_and_where() -> None:
    told = FidelityScore(score=0.42, parts={"colour": 0.42, "second_product": 0.9}, worst_frame=17)
    assert told.words == "0.42, by its colour at frame 17"
    assert FidelityScore(score=1.0, parts={"colour": 1.0}).words == "1.00"
