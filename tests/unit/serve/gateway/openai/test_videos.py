"""Videos over HTTP: their states, their files in parts, waiting for one, and what is refused."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest

from cluster.jobs.model import Outcome
from cluster.jobs.transitions import Verb
from cluster.store import retention
from cluster.store import videos as store
from serve.gateway.openai.videos import find_video
from serve.gateway.openai.views import poll_after_ms
from tests.building import still_png
from tests.served import PATIENCE_S
from tests.unit.serve.gateway.openai.conftest import VIDEO, other_owner, served


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield client


def create(http: httpx.Client, path: str = "/v1/videos", seed: int = 0, key: str | None = None, **fields: Any):
    values = {"prompt": "zoom in", "size": "512x512"} | fields
    headers = {"Idempotency-Key": key} if key else {}
    return http.post(path, data=values, files={"input_reference": ("a.png", still_png(seed=seed))}, headers=headers)


def view(http: httpx.Client, video_id: str) -> dict[str, Any]:
    found = http.get(f"/v1/videos/{video_id}")
    assert found.status_code == 200
    return found.json()


def test_the_state_is_true_at_every_moment(http, farm, cards, nudge) -> None:
    video_id = create(http).json()["id"]
    assert nudge.calls == 1
    seen = [view(http, video_id)["status"]]
    farm.command_job(video_id, Verb.PAUSE)
    seen.append(view(http, video_id)["status"])
    farm.command_job(video_id, Verb.RESUME)
    claim = cards.start(video_id)
    running = view(http, video_id)
    assert running["clipmill"]["card"] == claim.card
    seen.append(running["status"])
    # It died, and waits for another card.
    cards.fail(claim, Outcome.CRASHED, detail="killed")
    again = view(http, video_id)
    assert again["clipmill"]["card"] is None
    seen.append(again["status"])
    cards.finish(video_id)
    seen.append(view(http, video_id)["status"])
    assert seen == ["queued", "queued", "in_progress", "queued", "completed"]


def test_rows_of_batches_are_videos_too(http, farm, cards) -> None:
    sha = http.put("/v1/stills", content=still_png()).json()["sha256"]
    row = {"number": 1, "id": "A", "image": "a.png", "prompt": "zoom in"}
    rows = [{"position": 1, "name": "A", "number": 1, "still": sha, "row": row}]
    batch = http.post("/v1/batches", json={"name": "catalog", "rows": rows}).json()
    (job,) = farm.jobs(batch["id"])
    assert view(http, job.id)["clipmill"]["batch_id"] == batch["id"]


def test_batches_of_single_videos_do_not_fill_the_list_of_batches(http, farm) -> None:
    video = create(http).json()
    assert farm.batch_store.batches(farm.owner) == []
    shown = farm.batch_store.batches(farm.owner, everything=True)
    assert [batch.id for batch in shown] == [video["clipmill"]["batch_id"]]


def test_nobody_sees_anothers_videos(http, farm, cards, nudge) -> None:
    video_id = create(http).json()["id"]
    cards.finish(video_id)
    with served(other_owner(farm), nudge) as url, httpx.Client(base_url=url) as stranger:
        assert stranger.get("/v1/videos").json()["data"] == []
        for path in (video_id, f"{video_id}/content"):
            assert stranger.get(f"/v1/videos/{path}").status_code == 404
        assert stranger.post(f"/v1/videos/{video_id}/cancel").status_code == 404
        sha = farm.batch_store.job(farm.owner, video_id).still
        assert stranger.get(f"/v1/files/file-{sha}/content").status_code == 404


def test_the_same_key_is_the_same_video(http) -> None:
    first = create(http, key="order-1")
    assert create(http, key="order-1").json()["id"] == first.json()["id"]
    other = create(http, key="order-1", prompt="zoom out")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")


def test_nothing_is_made_of_a_request_that_is_refused(http, farm) -> None:
    refused = create(http, num_frames="100000000")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "num_frames")
    refused = http.post("/v1/videos", json={"prompt": "x", "input_reference": {"file_id": "file-" + "ab" * 32}})
    assert refused.json()["error"]["message"].startswith("input_reference: there is no such file")
    refused = create(http, model="i2vgen-xl", prompt=" ")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert farm.batch_store.batches(farm.owner, everything=True) == []


def test_cancelling_frees_the_card_and_says_so(http, farm, cards) -> None:
    video_id = create(http).json()["id"]
    cancelled = http.post(f"/v1/videos/{video_id}/cancel").json()
    assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
    running = create(http, seed=1).json()["id"]
    claim = cards.start(running)
    # True until it has stopped.
    assert http.post(f"/v1/videos/{running}/cancel").json()["status"] == "in_progress"
    cards.fail(claim, Outcome.STOPPED)
    assert view(http, running)["error"]["code"] == "cancelled"


def test_deleting_frees_the_files_and_the_id(http, farm, cards) -> None:
    video_id = create(http).json()["id"]
    cards.finish(video_id)
    clip = store.video(farm.batch_store.database, farm.owner, video_id).clip
    # Another video of the same clip keeps it.
    again = create(http).json()["id"]
    assert http.delete(f"/v1/videos/{video_id}").json() == {"id": video_id, "object": "video.deleted", "deleted": True}
    assert http.get(f"/v1/videos/{video_id}").status_code == 404
    assert http.get(f"/v1/videos/{again}/content").content == VIDEO
    assert http.delete(f"/v1/videos/{again}").status_code == 200
    assert not farm.storage.exists(clip.objects.video)
    assert http.get("/v1/videos").json()["data"] == []
    assert http.delete(f"/v1/videos/{again}").status_code == 404


def test_deleting_stops_what_has_not_ended(http, farm, cards) -> None:
    queued = create(http).json()["id"]
    assert http.delete(f"/v1/videos/{queued}").status_code == 200
    running = create(http).json()["id"]
    claim = cards.start(running)
    thread, found = in_thread(lambda: http.delete(f"/v1/videos/{running}"))
    deadline = time.monotonic() + PATIENCE_S
    while not farm.batch_store.job(farm.owner, running).cancel_requested:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cards.fail(claim, Outcome.STOPPED)
    thread.join()
    assert found[0].status_code == 200
    assert http.get(f"/v1/videos/{running}").status_code == 404


def test_a_row_of_a_batch_goes_with_its_batch(http, farm, cards) -> None:
    sha = http.put("/v1/stills", content=still_png()).json()["sha256"]
    row = {"number": 1, "id": "A", "image": "a.png", "prompt": "zoom in"}
    rows = [{"position": 1, "name": "A", "number": 1, "still": sha, "row": row}]
    batch = http.post("/v1/batches", json={"name": "catalog", "rows": rows}).json()
    (job,) = farm.jobs(batch["id"])
    refused = http.delete(f"/v1/videos/{job.id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "refused")
    assert batch["id"] in refused.json()["error"]["clipmill"]["remedy"]


def test_parts_of_a_file_and_files_that_a_client_has(http, cards) -> None:
    video_id = create(http).json()["id"]
    cards.finish(video_id)
    path = f"/v1/videos/{video_id}/content"
    whole = http.get(path)
    assert (whole.status_code, whole.content) == (200, VIDEO)
    assert whole.headers["content-type"] == "video/mp4"
    assert int(whole.headers["content-length"]) == len(VIDEO)
    etag = whole.headers["etag"]
    assert http.get(path, headers={"If-None-Match": etag}).status_code == 304
    assert http.get(path, headers={"If-None-Match": '"other", W/' + etag}).status_code == 304
    last = len(VIDEO) - 1
    for asked, (first, end) in {
        "bytes=0-0": (0, 0),
        "bytes=5-1048580": (5, 1048580),
        "bytes=1048576-": (1048576, last),
        "bytes=-7": (last - 6, last),
        "bytes=-99999999": (0, last),
        f"bytes=3-{last + 100}": (3, last),
    }.items():
        part = http.get(path, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, VIDEO[first : end + 1])
        assert part.headers["content-range"] == f"bytes {first}-{end}/{len(VIDEO)}"
    for asked in (f"bytes={len(VIDEO)}-", "bytes=-0"):
        none = http.get(path, headers={"Range": asked})
        assert (none.status_code, none.headers["content-range"]) == (416, f"bytes */{len(VIDEO)}")
    for asked in ("bytes=5-2", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=-", "bytes=" + "9" * 40 + "-"):
        assert http.get(path, headers={"Range": asked}).status_code == 200
    assert http.get(path, headers={"Range": "bytes=0-0", "If-Range": etag}).status_code == 206
    assert http.get(path, headers={"Range": "bytes=0-0", "If-Range": '"old"'}).status_code == 200
    assert http.get(path, headers={"Range": "bytes=0-0"}, params={"variant": "thumbnail"}).content == b"\xff"


def test_a_file_that_is_gone_says_so(http, farm, cards) -> None:
    video_id = create(http).json()["id"]
    cards.finish(video_id)
    clip = farm.batch_store.clips_of(farm.owner, farm.batch_store.job(farm.owner, video_id).batch_id)
    (found,) = clip.values()
    farm.storage.delete(found.objects.video)
    gone = http.get(f"/v1/videos/{video_id}/content")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_gone")
    assert http.get(f"/v1/videos/{video_id}/content", params={"variant": "thumbnail"}).status_code == 200
    retention.expire(farm.batch_store.database, [found.id], 2**40)
    expired = view(http, video_id)
    assert expired["status"] == "completed"
    assert expired["clipmill"]["file_expired"] is True
    assert expired["expires_at"] <= time.time() + 1
    gone = http.get(f"/v1/videos/{video_id}/content", params={"variant": "thumbnail"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_gone")


def in_thread(work) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    return thread, found


def another_job(farm, but: str = "") -> str:
    """The id of the one job besides `but`, once it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = [one.job.id for one in store.videos(farm.batch_store.database, farm.owner) if one.job.id != but]
        if found:
            return found[0]
        time.sleep(0.02)
    raise AssertionError("no job was made")


def test_waiting_for_a_video_is_its_file(http, farm, cards) -> None:
    thread, found = in_thread(lambda: create(http, "/v1/videos/sync"))
    video_id = another_job(farm)
    cards.finish(video_id)
    thread.join()
    assert (found[0].status_code, found[0].content) == (200, VIDEO)
    assert found[0].headers["x-video-id"] == video_id


def test_waiting_in_vain_names_the_video(http, farm, cards) -> None:
    slow = create(http, "/v1/videos/sync", timeout_s="0")
    assert (slow.status_code, slow.json()["error"]["code"]) == (504, "still_rendering")
    video_id = slow.headers["x-video-id"]
    assert view(http, video_id)["status"] == "queued", "nothing is cancelled"
    thread, found = in_thread(lambda: create(http, "/v1/videos/sync", seed=1))
    cards.fail(cards.start(another_job(farm, video_id)), Outcome.INVALID, detail="x")
    thread.join()
    assert found[0].status_code == 422
    assert found[0].headers["x-should-retry"] == "false", "OpenAI's client would have it rendered twice more"


def test_nobody_waits_for_ever_for_a_clip_that_waits_for_a_person(http, farm, cards) -> None:
    thread, found = in_thread(lambda: create(http, "/v1/videos/sync", min_fidelity="0.7"))
    video_id = another_job(farm)
    # Nobody could measure it.
    cards.finish(video_id)
    thread.join()
    assert (found[0].status_code, found[0].json()["error"]["code"]) == (409, "fidelity_short")
    short = view(http, video_id)
    assert (short["status"], short["clipmill"]["state"], short["error"]["param"]) == ("failed", "held", "min_fidelity")
    assert "fidelity 0.7 is asked for" in short["error"]["message"]
    # Whoever looks at it may take it all the same.
    assert http.get(f"/v1/videos/{video_id}/content").content == VIDEO
    farm.command_job(video_id, Verb.APPROVE)
    taken = view(http, video_id)
    assert (taken["status"], taken["error"]) == ("completed", None)


def test_whoever_stops_waiting_cancels_nothing(http, farm, cards) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post(
            "/v1/videos/sync", data={"prompt": "zoom in"}, files={"input_reference": still_png()}, timeout=(5, 1, 5, 5)
        )
    video_id = another_job(farm)
    assert view(http, video_id)["status"] == "queued"
    cards.finish(video_id)
    assert view(http, video_id)["status"] == "completed"


def test_the_pace_of_an_attempt_says_when_to_look_again(http, farm, cards) -> None:
    queued = create(http)
    assert 1000 <= int(queued.headers["openai-poll-after-ms"]) <= 10_000
    cards.finish(queued.json()["id"])
    done = http.get(f"/v1/videos/{queued.json()['id']}")
    assert int(done.headers["openai-poll-after-ms"]) <= 1000


@pytest.mark.parametrize(("waited_s", "after_ms"), [(0, 2000), (9, 2000), (20, 4000), (45, 9000), (4000, 10_000)])
def test_what_has_waited_for_long_is_seldom_looked_at(http, farm, waited_s: int, after_ms: int) -> None:
    video = find_video(farm, create(http).json()["id"])
    assert poll_after_ms(video, video.job.created_at + waited_s) == after_ms


def test_a_video_goes_before_batches_if_it_is_not_said_otherwise(http) -> None:
    first = create(http, key="one")
    again = create(http, key="one", interactive="true")
    assert again.json()["id"] == first.json()["id"], "the same request, said in more words"
    assert first.json()["clipmill"]["interactive"]
    assert create(http, key="one", interactive="false").status_code == 422
    later = create(http, seed=1, interactive="false", priority="7").json()
    assert not later["clipmill"]["interactive"]
    job = http.get(f"/v1/jobs/{later['id']}").json()
    assert (job["interactive"], job["priority"]) == (False, 7)
    job = http.get(f"/v1/jobs/{first.json()['id']}").json()
    assert (job["interactive"], job["priority"]) == (True, 0)
