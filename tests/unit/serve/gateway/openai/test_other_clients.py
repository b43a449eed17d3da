"""Clients of others: LiteLLM where it is installed, and the requests of vLLM-Omni's own examples, written anew."""

from __future__ import annotations

import json
import os
import subprocess
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


#: What a person with LiteLLM writes; it waits for a line before it asks again.
WITH_LITELLM = """
import sys

import litellm

base, picture, target = sys.argv[1:]
there = {"api_base": base, "api_key": "none", "custom_llm_provider": "hosted_vllm"}
with open(picture, "rb") as file:
    asked = {"prompt": "pan left", "input_reference": file, "seconds": "2", "size": "512x512"}
    video = litellm.video_generation(model="hosted_vllm/camera", **asked, **there)
print(video.status, litellm.video_status(video_id=video.id, **there).status, flush=True)
sys.stdin.readline()
print(litellm.video_status(video_id=video.id, **there).status, flush=True)
open(target, "wb").write(litellm.video_content(video_id=video.id, **there))
"""


def test_litellm_makes_polls_and_downloads_a_video(url, cards, tmp_path) -> None:
    python = os.environ.get("CLIPMILL_TEST_LITELLM")
    if not python:
        pytest.skip(
            "CLIPMILL_TEST_LITELLM names no Python with LiteLLM, which asks for other versions of this farm's libraries"
        )
    (tmp_path / "in.png").write_bytes(still_png())
    words = [python, "-c", WITH_LITELLM, f"{url}/v1", str(tmp_path / "in.png"), str(tmp_path / "out.mp4")]
    # It would ask the network for a table of prices.
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        begun = client.stdout.readline().split()
        (found,) = httpx.get(f"{url}/v1/videos").json()["data"]
        finish(cards, url, found["id"])
        ended, _ = client.communicate("go\n", timeout=60)
    assert (begun[0], begun[1] in ("queued", "in_progress"), ended.split()) == ("queued", True, ["completed"])
    assert (tmp_path / "out.mp4").read_bytes() == VIDEO
