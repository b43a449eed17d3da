"""Results of rows that a review changes: the clip that stands now, and none that was rejected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.transitions import Verb
from serve.cli.results import ResultsWriter
from serve.results_source import LocalResults
from tests.page_store import OWNER, page_farm
from tests.reviewing import hand_in, render


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Any]:
    with page_farm(tmp_path / "farm", films=False) as found:
        yield found


def written_for(out: Path) -> set[str]:
    """Storage keys of the videos that the records in OUT tell of."""
    found = set()
    for path in (out / ".clipmill").rglob("*.json"):
        told = json.loads(path.read_text())
        found |= {str(one.get("source")) for one in told.values() if isinstance(one, dict)}
    return {source.partition("#")[0] for source in found if source.partition("#")[0].endswith("video.mp4")}


def test_a_clip_that_is_made_again_is_written_again(it: Any, tmp_path: Path) -> None:
    batch = hand_in(it, 1, name="A")
    [first] = render(it, batch.id)
    writer = ResultsWriter(LocalResults(it.farm), tmp_path / "out", {})
    assert (writer.update(batch.id), writer.update(batch.id)) == (1, 0)
    before = written_for(tmp_path / "out")
    it.farm.command_job(first.id, Verb.REROLL)
    render(it, batch.id)
    assert (writer.update(batch.id), writer.update(batch.id)) == (1, 0)
    again = it.farm.batch_store.job(OWNER, first.id)
    clip = it.farm.batch_store.clips(OWNER, [str(again.clip_id)])[str(again.clip_id)]
    assert written_for(tmp_path / "out") == {clip.objects.video} != before


def test_a_rejected_candidate_is_written_no_more(it: Any, tmp_path: Path) -> None:
    batch = hand_in(it, 1, name="A", candidates=2)
    one, other = render(it, batch.id)
    assert len(LocalResults(it.farm).rows(batch.id)) == 2
    it.farm.command_job(one.id, Verb.REJECT)
    assert [found.job_id for found in LocalResults(it.farm).rows(batch.id)] == [other.id]
    it.farm.command_job(other.id, Verb.APPROVE)
    assert [found.job_id for found in LocalResults(it.farm).rows(batch.id)] == [other.id]
