"""The cache between clips: made once, bounded by bytes, shared through a shelf, harmless when the shelf fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.denoising.caches import TensorCache, Tensors, cache_key, digest
from pipeline.devices.emulated import HostDevice


class Folder:
    """A shelf in a dict."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.objects.setdefault(key, data)


def tensors(value: float, count: int = 4) -> Tensors:
    return {"x": torch.full((count,), float(value))}


def test_made_once_and_found_after() -> None:
    cache, made = TensorCache(), []
    for _ in range(3):
        found = cache.fetch("k", lambda: made.append(1) or tensors(7))
        assert torch.equal(found["x"], torch.full((4,), 7.0))
    assert (len(made), cache.hits, cache.misses) == (1, 2, 1)


def test_another_process_finds_it_on_the_shelf() -> None:
    shelf = Folder()
    TensorCache(shelf=shelf).put("k", {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bfloat16)})
    other = TensorCache(shelf=shelf)
    found = other.fetch("k", lambda: (_ for _ in ()).throw(AssertionError("made again")))
    assert torch.equal(found["a"], torch.arange(3))
    assert found["b"].dtype == torch.bfloat16
    assert (other.shelf_hits, other.misses) == (1, 0)


def test_an_object_cut_short_is_made_anew() -> None:
    shelf = Folder()
    TensorCache(shelf=shelf).put("k", tensors(1))
    shelf.objects["k"] = shelf.objects["k"][:-1]
    assert torch.equal(TensorCache(shelf=shelf).fetch("k", lambda: tensors(2))["x"], torch.full((4,), 2.0))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=60), st.integers(40, 400))
def test_never_more_bytes_than_allowed_and_the_last_used_stay(uses: list[tuple[int, int]], limit: int) -> None:
    cache, sizes, order = TensorCache(max_bytes=limit), {}, []
    for key, count in uses:
        count = sizes.setdefault(key, count)
        cache.fetch(f"{key}", lambda count=count: tensors(0, count))
        if key in order:
            order.remove(key)
        if 4 * count <= limit:
            order.append(key)
        assert cache.used_bytes <= limit
    # An independent account of "least recently used first out".
    kept, total = [], 0
    for key in reversed(order):
        if total + 4 * sizes[key] > limit:
            break
        total += 4 * sizes[key]
        kept.append(key)
    misses = cache.misses
    for key in kept[:1]:
        cache.fetch(f"{key}", lambda: tensors(0))
    assert cache.misses == misses


def test_keys_tell_everything_apart() -> None:
    keys = {
        cache_key("text", revision="1", text="a"),
        cache_key("text", revision="2", text="a"),
        cache_key("text", revision="1", text="b"),
        cache_key("picture", revision="1", text="a"),
    }
    assert len(keys) == 4
    assert cache_key("text", a=1, b=2) == cache_key("text", b=2, a=1)


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    base = {"x": torch.zeros(4)}
    others = [
        {"y": torch.zeros(4)},
        {"x": torch.zeros(4, dtype=torch.int32)},
        {"x": torch.zeros(2, 2)},
        {"x": torch.tensor([0.0, 0, 0, 1e-30])},
    ]
    assert len({digest(base), *map(digest, others)}) == 5
    assert digest(base) == digest({"x": torch.zeros(8)[::2]})


def test_nothing_of_it_lies_on_the_card() -> None:
    card, cache = HostDevice(), TensorCache(shelf=Folder())
    with card.work():
        made = torch.ones(1000)
        cache.put("k", {"x": made})
        del made
        cache.get("k")
        TensorCache(shelf=cache._shelf).get("k")
    assert card.used_bytes() == 0


def test_threads_share_it() -> None:
    cache, together = TensorCache(max_bytes=64), threading.Barrier(4)

    def use(number: int) -> None:
        together.wait()
        for i in range(50):
            value = (number + i) % 7
            assert cache.fetch(f"{value}", lambda value=value: tensors(value))["x"][0] == value

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(use, n) for n in range(4)]:
            done.result()
    assert cache.used_bytes <= 64
