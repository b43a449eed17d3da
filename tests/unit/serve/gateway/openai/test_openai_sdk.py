"""OpenAI's own client, unmodified, through its whole surface of videos, files and models."""

from __future__ import annotations

import base64
import threading
import time
import warnings
from collections.abc import Iterator

import openai
import pytest

from cluster.jobs.model import Outcome
from tests.building import still_png
from tests.unit.serve.gateway.openai.conftest import POSTER, SHEET, VIDEO, served

PROMPT = "zoom in slowly"


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with warnings.catch_warnings():
        # OpenAI has ended its own service; the client is what shops have.
        warnings.simplefilter("ignore", DeprecationWarning)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield client


def create(client: openai.OpenAI, seed: int = 0, **changes):
    values = {"prompt": PROMPT, "input_reference": ("still.png", still_png(seed=seed), "image/png"), "size": "512x512"}
    return client.videos.create(**(values | changes))


def test_a_video_from_request_to_file(client, cards) -> None:
    video = create(client, seconds="2")
    assert (video.object, video.status, video.progress, video.prompt) == ("video", "queued", 0, PROMPT)
    assert (video.size, video.seconds, video.model) == ("512x512", "2", "camera")
    claim = cards.start(video.id)
    assert client.videos.retrieve(video.id).status == "in_progress"
    cards.complete(claim)
    done = client.videos.retrieve(video.id)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert done.created_at <= done.completed_at <= done.expires_at
    for variant, data in (("video", VIDEO), ("thumbnail", POSTER), ("spritesheet", SHEET)):
        assert client.videos.download_content(video.id, variant=variant).read() == data


def test_create_and_poll_waits_for_the_end(client, cards) -> None:
    def render() -> None:
        deadline = time.monotonic() + 60
        while not (found := client.videos.list().data) and time.monotonic() < deadline:
            time.sleep(0.02)
        cards.finish(found[0].id)

    thread = threading.Thread(target=render)
    thread.start()
    still = ("still.png", still_png(), "image/png")
    video = client.videos.create_and_poll(prompt=PROMPT, input_reference=still, poll_interval_ms=50)
    thread.join()
    assert video.status == "completed"
    # Without an interval of its own it asks when the answer says so.
    assert client.videos.poll(video.id).id == video.id
    raw = client.videos.with_raw_response.retrieve(video.id)
    assert 100 <= int(raw.headers["openai-poll-after-ms"]) <= 10_000


def test_a_still_in_all_its_forms_is_one_video(client, cards) -> None:
    data = still_png()
    file = client.files.create(file=("still.png", data), purpose="vision")
    assert (file.bytes, file.purpose) == (len(data), "vision")
    coded = "data:image/png;base64," + base64.b64encode(data).decode()
    first = create(client)
    cards.finish(first.id)
    for reference in ({"file_id": file.id}, {"image_url": coded}, data):
        # The client takes files only where its own signature says more.
        sent = {"input_reference": data} if reference is data else {"extra_body": {"input_reference": reference}}
        again = create(client, **({"input_reference": openai.omit} | sent))
        assert again.id != first.id
        assert again.status == "completed", "an equal clip is not rendered twice"
        assert client.videos.download_content(again.id).read() == VIDEO


def test_lists_page_by_page_both_ways(client) -> None:
    made = [create(client, seed=n).id for n in range(5)]
    assert [one.id for one in client.videos.list(limit=2)] == made[::-1]
    assert [one.id for one in client.videos.list(limit=2, order="asc")] == made
    page = client.videos.list(limit=2, after=made[3])
    assert ([one.id for one in page.data], page.has_more) == ([made[2], made[1]], True)


def test_errors_are_the_clients_own_classes(client, cards) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.retrieve("video_00")
    assert missing.value.code == "not_found"
    with pytest.raises(openai.BadRequestError) as none:
        client.videos.create(prompt="x")
    assert none.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError) as size:
        create(client, size="large")
    assert size.value.param == "size"
    with pytest.raises(openai.BadRequestError) as still:
        create(client, input_reference=("x.png", b"no picture", "image/png"))
    assert still.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError) as unknown:
        create(client, extra_body={"sizes": 1})
    assert unknown.value.param == "sizes"
    video = create(client)
    with pytest.raises(openai.NotFoundError) as early:
        client.videos.download_content(video.id)
    assert early.value.code == "not_ready"
    with pytest.raises(openai.UnprocessableEntityError) as variant:
        client.videos.download_content(video.id, variant="audio")
    assert "variant" in str(variant.value.param)


def test_a_failed_video_says_why(client, cards) -> None:
    video = create(client)
    cards.fail(cards.start(video.id), Outcome.INVALID, detail="x")
    failed = client.videos.retrieve(video.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "invalid"
    assert failed.error.message


def test_extensions_and_notes(client) -> None:
    video = create(
        client, size="500x300", extra_body={"tier": "draft", "extra_params": {"priority": 5}, "flow_shift": 3}
    )
    notes = [note["code"] for note in video.model_dump()["clipmill"]["notes"]]
    assert "size_adjusted" in notes
    assert "unused" in notes


def test_files(client) -> None:
    data = still_png()
    file = client.files.create(file=("still.png", data), purpose="vision")
    assert client.files.retrieve(file.id).id == file.id
    assert [one.id for one in client.files.list()] == [file.id]
    assert client.files.content(file.id).read() == data
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError) as unknown:
        create(client, input_reference=openai.omit, extra_body={"input_reference": {"file_id": file.id}})
    assert unknown.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError) as bad:
        client.files.create(file=("x.png", b"no picture"), purpose="vision")
    assert bad.value.param == "file"
    with pytest.raises(openai.BadRequestError) as purpose:
        client.files.create(file=("still.png", data), purpose="fine-tune")
    assert purpose.value.param == "purpose"


def test_models(client) -> None:
    names = [one.id for one in client.models.list()]
    assert {"camera", "wan2.2-5b", "i2vgen-xl", "svd-xt"} <= set(names)
    assert client.models.retrieve("camera").id == "camera"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("sora-2")
    assert missing.value.code == "model_not_found"


def test_deleting(client, cards) -> None:
    video = create(client)
    cards.finish(video.id)
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_another_gateway_after_a_restart_answers_the_same(client, farm, nudge, cards) -> None:
    video = create(client)
    with served(farm, nudge) as other, openai.OpenAI(base_url=f"{other}/v1", api_key="none") as second:
        assert second.videos.retrieve(video.id) == client.videos.retrieve(video.id)
        cards.finish(video.id)
        assert second.videos.retrieve(video.id).status == "completed"
        assert second.videos.download_content(video.id).read() == VIDEO
