"""Weights on a stream of their own: none is read before its copy was waited for, none overwritten while in use."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.devices.copying import DirectLane, StreamLane, copy_lane
from pipeline.models.hooks.streaming import StreamedWeights, streamed_bytes
from tests.doubles.streams import FakeStreams, RaceError


class Net(nn.Module):
    """Layers of any sizes, called in the order that each evaluation names."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, w), nn.Tanh(), nn.Linear(w, 4)) for w in widths)
        self.order = list(range(len(widths)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place in self.order:
            x = x + self.layers[place](x)
        return x * self.shift


def network(draw: random.Random) -> Net:
    torch.manual_seed(draw.randrange(2**32))
    return Net([draw.choice((1, 2, 8, 32, 64)) for _ in range(draw.randrange(1, 24))]).requires_grad_(False)


def evaluations(made: Net, draw: random.Random) -> list[torch.Tensor]:
    """Results of evaluations most of which call all layers in order, and some others."""
    found = []
    whole = list(range(len(made.layers)))
    for number in range(5):
        kept = [place for place in whole if draw.random() < 0.8] if number in (2, 4) else whole
        made.order = draw.sample(kept, len(kept)) if number == 4 else kept
        found.append(made(torch.ones(2, 4) * number))
    return found


class Hasty(StreamLane):
    """Does not wait for copies."""

    def wait(self, sent: Any) -> None:
        pass


class Greedy(StreamLane):
    """Does not wait for what is computed."""

    def retire(self, sent: Any) -> None:
        pass


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_nothing_races_whatever_the_groups(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reused = 0
    for seed in range(25):
        draw = random.Random(seed)
        made = network(draw)
        expected = evaluations(made, random.Random(seed))
        streams = FakeStreams().install(monkeypatch)
        before = [parameter.data_ptr() for parameter in made.parameters()]
        with streams.watched():
            stream = StreamedWeights(made, "cpu", ahead=ahead, lane=StreamLane("cpu"))
            found = evaluations(made, random.Random(seed))
            assert streams.live_bytes == 0, "a group is on the card between evaluations"
            stream.end()
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert [parameter.data_ptr() for parameter in made.parameters()] == before
        assert streams.peak_bytes <= streamed_bytes(made, ahead)
        reused += streams.reused
    assert reused > 100


@pytest.mark.parametrize(("lane", "says"), [(Hasty, "before its copy"), (Greedy, "while it is read")])
def test_a_lane_that_does_not_wait_is_found_out(lane: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    made = network(draw)
    streams = FakeStreams().install(monkeypatch)
    with streams.watched():
        StreamedWeights(made, "cpu", lane=lane("cpu"))
        with pytest.raises(RaceError, match=says):
            evaluations(made, draw)


def test_the_next_group_is_sent_before_a_group_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Net([8] * 20).requires_grad_(False)
    streams = FakeStreams().install(monkeypatch)
    with streams.watched():
        stream = StreamedWeights(made, "cpu", lane=StreamLane("cpu"))
        made(torch.ones(1, 4))
        streams.trace.clear()
        made(torch.ones(1, 4))
        stream.end()
    ahead = 0
    seen = []
    for what, _nbytes in streams.trace:
        ahead += {"copy": 1, "free": -1, "read": 0}[what]
        if what == "read":
            seen.append(ahead)
    of_group = len(list(stream.groups[0].parameters()))
    # While any but the last group computes, another one's weights are there or on their way.
    assert seen[:-of_group] == [2 * of_group] * (len(seen) - of_group)
    assert seen[-of_group:] == [of_group] * of_group


def test_a_group_that_does_not_fit_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Net([8] * 20).requires_grad_(False)
    streams = FakeStreams().install(monkeypatch)

    class Full(StreamLane):
        sent = 0

        def send(self, hosts: Any) -> Any:
            Full.sent += 1
            if Full.sent == 27:  # foreseen, in the second evaluation
                raise torch.OutOfMemoryError("no room")
            return super().send(hosts)

    with streams.watched():
        stream = StreamedWeights(made, "cpu", lane=Full("cpu"))
        expected = made(torch.ones(1, 4))
        with pytest.raises(torch.OutOfMemoryError):
            made(torch.ones(1, 4))
        assert streams.live_bytes == 0
        assert torch.equal(made(torch.ones(1, 4)), expected)
        stream.end()


def test_host_memory_that_stands_for_a_card_has_no_streams() -> None:
    assert isinstance(copy_lane("cpu"), DirectLane)
    assert isinstance(copy_lane("meta"), DirectLane)
