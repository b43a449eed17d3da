import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "ray")


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh interpreter after `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import serve.cli.main",
        "import serve.renderer.worker, pipeline.models.camera, serve.gateway.api, cluster.dispatch.dispatcher",
    ],
)
def test_client_gateway_and_camera_start_without_the_heavy_libraries(statement):
    found = loaded_by(statement)
    assert "typer" in found or "fastapi" in found, "the probe itself must see what is loaded"
    assert found.isdisjoint(HEAVY)


def test_the_ground_floor_is_light():
    assert loaded_by("import pipeline.clips.clip, pipeline.families, pipeline.memory.footprint").isdisjoint(
        {*HEAVY, "fastapi", "sqlalchemy", "cluster", "serve"}
    )


@pytest.mark.parametrize("module", ["serve.renderer.worker", "serve.renderer.deployment"])
def test_a_renderer_starts_without_the_store_s_libraries(module):
    found = loaded_by(f"import {module}")
    assert "cluster" in found, "the probe itself must see what is loaded"
    assert found.isdisjoint({"sqlalchemy", "alembic"})


def test_commands_do_not_load_what_few_need():
    code = "import sys, serve.cli.main; print([name for name in sys.modules if name.startswith(('cluster', 'serve'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "serve.cli.manifests" in done.stdout, "the probe itself must see what is loaded"
    assert "cluster.simulation" not in done.stdout
    assert "serve.deploy_check" not in done.stdout
