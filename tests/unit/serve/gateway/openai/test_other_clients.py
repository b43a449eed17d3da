"""Clients of others: LiteLLM where it is installed, and the requests of vLLM-Omni's own examples, written anew."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.building import still_png
from tests.unit.serve.gateway.openai.conftest import VIDEO

#: Fields of vLLM-Omni's text-to-video and image-to-video examples, as its clients send them in forms.
OMNI = {
    "prompt": "a bag turns slowly on a table",
    "width": "832",
    "height": "480",
    "num_frames": "33",
    "fps": "16",
    "num_inference_steps": "40",
    "guidance_scale": "1.0",
    "guidance_scale_2": "1.0",
    "boundary_ratio": "0.875",
    "flow_shift": "5.0",
    "seed": "42",
    "negative_prompt": "blurry",
}


def finish(cards: Any, url: str, video_id: str) -> None:
    cards.finish(video_id)
    assert httpx.get(f"{url}/v1/videos/{video_id}").json()["status"] == "completed"


@pytest.mark.parametrize("way", ["file", "url", "json"])
def test_requests_of_vllm_omni_s_examples_are_taken_polled_and_downloaded(url, cards, way) -> None:
    endpoint = f"{url}/v1/videos"
    if way == "file":
        answer = httpx.post(endpoint, data=OMNI, files={"input_reference": ("in.png", still_png(), "image/png")})
    else:
        file = httpx.post(f"{url}/v1/files", data={"purpose": "vision"}, files={"file": still_png()}).json()["id"]
        reference = {"file_id": file}
        if way == "url":
            fields = OMNI | {"image_reference": json.dumps(reference)}
            answer = httpx.post(endpoint, files={name: (None, value) for name, value in fields.items()})
        else:
            numbers = {name: json.loads(value) if value[0].isdigit() else value for name, value in OMNI.items()}
            blocks = {"video_params": {n: numbers.pop(n) for n in ("width", "height", "num_frames", "fps")}}
            others = {"input_reference": reference, "extra_params": {"tier": "draft"}}
            answer = httpx.post(endpoint, json=numbers | blocks | others)
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert (video["status"], video["clipmill"]["fps"]) == ("queued", 16)
    finish(cards, url, video["id"])
    assert httpx.get(f"{endpoint}/{video['id']}/content").content == VIDEO
    assert httpx.delete(f"{endpoint}/{video['id']}").json()["deleted"]


def test_litellm_makes_polls_and_downloads_a_video(url, cards, tmp_path) -> None:
    reason = "LiteLLM is not installed: it asks for other versions of this farm's own libraries"
    litellm = pytest.importorskip("litellm", reason=reason)
    (tmp_path / "in.png").write_bytes(still_png())
    there = {"api_base": f"{url}/v1", "api_key": "none", "custom_llm_provider": "hosted_vllm"}
    with (tmp_path / "in.png").open("rb") as picture:
        video = litellm.video_generation(
            model="hosted_vllm/camera", prompt="pan left", input_reference=picture, seconds="2", size="512x512", **there
        )
    assert video.status == "queued"
    assert litellm.video_status(video_id=video.id, **there).status in ("queued", "in_progress")
    (found,) = httpx.get(f"{url}/v1/videos").json()["data"]
    finish(cards, url, found["id"])
    assert litellm.video_status(video_id=video.id, **there).status == "completed"
    assert litellm.video_content(video_id=video.id, **there) == VIDEO
