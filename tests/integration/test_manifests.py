"""The manifests as a cluster would get them: kustomize builds them, strict schemas accept them, typos are refused."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serve.deploy_check import check, serve_configs

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
#: Strict schemas of KubeRay's and prometheus-operator's kinds; they live beside the checkout, if at all.
CRDS = Path(__file__).parents[3] / "shared/crds"
SCHEMAS = {
    "RayCluster": "raycluster-ray-v1.json",
    "PodMonitor": "podmonitor-monitoring-v1.json",
    "ServiceMonitor": "servicemonitor-monitoring-v1.json",
    "PrometheusRule": "prometheusrule-monitoring-v1.json",
}
KUBERNETES = "1.32"
TARGETS = ["base", "overlays/gpu-box", "overlays/cpu-dev"]

Documents = list[dict[str, Any]]


def _kubectl() -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    version = subprocess.run([kubectl, "version", "--client", "--output=json"], capture_output=True, check=True)
    if int("".join(filter(str.isdigit, json.loads(version.stdout)["clientVersion"]["minor"]))) < 27:
        pytest.skip("this kubectl's kustomize is older than components and labels (1.27 is needed)")
    return kubectl


@pytest.fixture(scope="module", params=TARGETS)
def built(request: pytest.FixtureRequest) -> tuple[str, Documents]:
    """A target's name and its documents."""
    done = subprocess.run(
        [_kubectl(), "kustomize", str(MANIFESTS / request.param)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return request.param, list(yaml.safe_load_all(done.stdout))


def one(documents: Documents, kind: str) -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == kind]
    return found


def refuse(document: dict[str, Any]) -> None:
    """Raises where the API server would refuse the document, or drop a field of it."""
    if document["kind"] not in SCHEMAS:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    path = CRDS / SCHEMAS[document["kind"]]
    if not path.is_file():
        pytest.skip(f"no schemas in {CRDS}")
    as_served = copy.deepcopy(document)
    jsonschema.Draft7Validator(json.loads(path.read_text())).validate(as_served)


def test_every_document_is_accepted(built: tuple[str, Documents]) -> None:
    name, documents = built
    kinds = {d["kind"] for d in documents}
    assert {"RayCluster", "Job", "Service", "NetworkPolicy", "ConfigMap", "Namespace"} <= kinds
    assert ({"PodMonitor", "ServiceMonitor", "PrometheusRule"} <= kinds) is (name != "overlays/cpu-dev")
    for document in documents:
        refuse(document)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "clipmill"


def test_config_and_cluster_agree(built: tuple[str, Documents]) -> None:
    _, documents = built
    (config,) = serve_configs(documents).values()
    assert check(config, documents) == []


def test_the_job_mounts_the_config_and_has_the_clusters_token(built: tuple[str, Documents]) -> None:
    _, documents = built
    cluster, job = one(documents, "RayCluster"), one(documents, "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] in serve_configs(documents)
    env = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    # KubeRay names the token's Secret like the cluster, and the head's Service after it.
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": cluster["metadata"]["name"],
        "key": "auth_token",
    }
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert env["RAY_DASHBOARD_ADDRESS"]["value"] == f"http://{cluster['metadata']['name']}-head-svc:8265"


def _pods(documents: Documents) -> dict[str, dict[str, Any]]:
    found = {}
    for document in documents:
        if document["kind"] in ("Job", "StatefulSet"):
            found[document["kind"]] = document["spec"]["template"]["spec"]
        if document["kind"] == "RayCluster":
            found["head"] = document["spec"]["headGroupSpec"]["template"]["spec"]
            for group in document["spec"]["workerGroupSpecs"]:
                found[f"group {group['groupName']}"] = group["template"]["spec"]
    return found


def test_every_pod_passes_the_restricted_standard(built: tuple[str, Documents]) -> None:
    """What the namespace's label enforces: https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    _, documents = built
    enforced = one(documents, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"
    for name, pod in _pods(documents).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        assert all(volume.keys() - {"name"} <= allowed for volume in pod.get("volumes", [])), name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def test_only_the_head_knows_the_store(built: tuple[str, Documents]) -> None:
    _, documents = built
    for name, pod in _pods(documents).items():
        names = {entry["name"] for container in pod["containers"] for entry in container.get("env", [])}
        assert ("CLIPMILL_DATABASE_URL" in names) is (name == "head"), name
        if name == "head" or name.startswith("group"):
            assert {"CLIPMILL_STORAGE_URL", "RAY_SERVE_USE_GRPC_BY_DEFAULT"} <= names


def test_cheaper_cards_are_preferred(built: tuple[str, Documents]) -> None:
    _, documents = built
    groups = one(documents, "RayCluster")["spec"]["workerGroupSpecs"]
    sizes = [int(group["labels"]["clipmill.io/card-class"].removeprefix("c")) for group in groups]
    by_priority = sorted(zip(sizes, (group["priority"] for group in groups), strict=True), key=lambda pair: -pair[1])
    assert [size for size, _ in by_priority] == sorted(sizes)
    assert all(group["minReplicas"] == 0 for group in groups)


def _mistype_group(cluster: dict[str, Any]) -> None:
    group = cluster["spec"]["workerGroupSpecs"][0]
    group["maxReplica"] = group.pop("maxReplicas")


def _mistype_container(cluster: dict[str, Any]) -> None:
    container = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")


def _mistype_option(cluster: dict[str, Any]) -> None:
    cluster["spec"]["enableInTreeAutoscale"] = cluster["spec"].pop("enableInTreeAutoscaling")


@pytest.mark.parametrize("mistype", [_mistype_group, _mistype_container, _mistype_option])
def test_a_typo_in_the_cluster_is_refused(
    built: tuple[str, Documents], mistype: Callable[[dict[str, Any]], None]
) -> None:
    cluster = copy.deepcopy(one(built[1], "RayCluster"))
    mistype(cluster)
    with pytest.raises(jsonschema.ValidationError):
        refuse(cluster)


def test_a_typo_in_a_core_kind_is_refused(built: tuple[str, Documents]) -> None:
    job = copy.deepcopy(one(built[1], "Job"))
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")
    with pytest.raises(kubernetes_validate.ValidationError):
        refuse(job)


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor", "PrometheusRule"])
def test_a_typo_in_a_monitor_is_refused(built: tuple[str, Documents], kind: str) -> None:
    name, documents = built
    if name == "overlays/cpu-dev":
        pytest.skip("monitors are left out of cpu-dev")
    document = copy.deepcopy(one(documents, kind))
    document["spec"]["planted"] = 1
    with pytest.raises(jsonschema.ValidationError):
        refuse(document)


def _copy(tmp_path: Path, file: str, old: str, new: str) -> Path:
    """The manifests with one word changed."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    path = tmp_path / "manifests" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return tmp_path / "manifests"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("base/ray_config.yaml", "route_prefix", "route_prefx", "route_prefx"),
        ("base/ray_config.yaml", "max_replicas: 16", "max_replica: 16", "card_classes.c24.max_replica"),
        ("base/raycluster.yaml", "clipmill.io/card-class: c48", "clipmill.io/card-clas: c48", "group c48, labels"),
        ("base/raycluster.yaml", "maxReplicas: 16", "maxReplicas: 61", "group c24, maxReplicas"),
        ("base/raycluster.yaml", "clipmill.io/role: control", "clipmill.io/role: contorl", "control_label_selector"),
        (
            "base/raycluster.yaml",
            'limits: {cpu: "4", memory: 30Gi, nvidia.com/gpu: 1}',
            'limits: {cpu: "4"}',
            "too small",
        ),
    ],
)
def test_the_command_refuses_a_typo(tmp_path: Path, file: str, old: str, new: str, said: str) -> None:
    _kubectl()
    clipmill = shutil.which("clipmill", path=str(ROOT / ".venv/bin")) or shutil.which("clipmill")
    if clipmill is None:
        pytest.skip("clipmill is not installed")
    manifests = _copy(tmp_path, file, old, new)
    done = subprocess.run(
        [clipmill, "manifests", "check", "--manifests", str(manifests)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert said in done.stderr


def test_the_command_accepts_what_is_here() -> None:
    _kubectl()
    clipmill = shutil.which("clipmill", path=str(ROOT / ".venv/bin")) or shutil.which("clipmill")
    if clipmill is None:
        pytest.skip("clipmill is not installed")
    done = subprocess.run(
        [clipmill, "manifests", "check", "--manifests", str(MANIFESTS), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert len(json.loads(done.stdout)["checked"]) == len(TARGETS)
