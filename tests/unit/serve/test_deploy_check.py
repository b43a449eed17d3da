"""The Serve config against the worker groups: each disagreement a person can make is found, and said where."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serve.deploy_check import CARD_CLASS_LABEL, check, check_config, selects, serve_configs

Config = dict[str, Any]

BASE = yaml.safe_load("""
proxy_location: HeadOnly
http_options: {host: 0.0.0.0, port: 8000}
applications:
  - name: clipmill
    import_path: serve.app:build
    route_prefix: /
    autoscaling_policy: {policy_function: "serve.autoscaling:policy"}
    args:
      control_label_selector: {clipmill.io/role: control}
      longest_clip_s: 600
      drain_s: 20
      card_classes:
        c8: {replicas: 0, max_replicas: 6, label_selector: {clipmill.io/card-class: c8}}
        c24: {replicas: 1, max_replicas: 4, label_selector: {clipmill.io/card-class: c24}}
""")


def group(name: str, pods: int) -> dict[str, Any]:
    return {
        "groupName": name,
        "labels": {CARD_CLASS_LABEL: name},
        "minReplicas": 0,
        "maxReplicas": pods,
        "rayStartParams": {},
        "template": {
            "spec": {
                "terminationGracePeriodSeconds": 60,
                "containers": [{"name": "ray", "resources": {"limits": {"cpu": "4", "nvidia.com/gpu": 1}}}],
            }
        },
    }


def cluster() -> dict[str, Any]:
    return {
        "kind": "RayCluster",
        "metadata": {"name": "clipmill"},
        "spec": {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2"},
            "headGroupSpec": {
                "labels": {"clipmill.io/role": "control"},
                "template": {
                    "spec": {
                        "terminationGracePeriodSeconds": 60,
                        "containers": [{"name": "head", "ports": [{"name": "serve", "containerPort": 8000}]}],
                    }
                },
            },
            "workerGroupSpecs": [group("c8", 6), group("c24", 4)],
        },
    }


SERVICE = {
    "kind": "Service",
    "metadata": {"name": "gateway"},
    "spec": {"selector": {"ray.io/cluster": "clipmill"}, "ports": [{"port": 80, "targetPort": "serve"}]},
}


@pytest.fixture
def config() -> Config:
    return copy.deepcopy(BASE)


def wheres(config: Config, cluster_: dict[str, Any] | None = None) -> list[str]:
    return [finding.where for finding in check(config, [cluster_ or cluster(), SERVICE])]


@pytest.mark.parametrize(
    ("memory", "enough"),
    [
        ("24Gi", False),
        ("28Gi", False),
        ("31G", False),
        ("30Gi", True),
        ("32000M", True),
        (32 * 2**30, True),
        (None, True),
    ],
)
def test_pods_hold_the_weights_of_the_largest_family(config: Config, memory: Any, enough: bool) -> None:
    """Of Wan2.2 22.5 GiB (11.36, 10.02 and 2.82 GB), 2.3 of them twice, and 3 GiB of the process: 95 % of 29.3 GiB."""
    pods = cluster()
    limits = pods["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    if memory is not None:
        limits["memory"] = memory
    found = [f for f in check(config, [pods, SERVICE]) if f.where.endswith("limits.memory")]
    assert (not found) is enough
    for finding in found:
        assert "29.3 GiB that 1 renderer(s) of wan2.2-5b" in finding.message
        assert "30Gi" in finding.remedy


def test_manifests_that_agree_have_no_findings(config: Config) -> None:
    assert wheres(config) == []


TYPOS: list[tuple[str, Callable[[Config], Any], str]] = [
    ("top", lambda c: c.update(http_option={}), "http_option"),
    ("http", lambda c: c["http_options"].update(prot=8000), "http_options.prot"),
    ("application", lambda c: c["applications"][0].update(route_prefx="/x"), "applications[0].route_prefx"),
    (
        "policy",
        lambda c: c["applications"][0]["autoscaling_policy"].update(policy_fun="x"),
        "applications[0].autoscaling_policy.policy_fun",
    ),
    (
        "deployment",
        lambda c: c["applications"][0].update(deployments=[{"name": "dispatcher", "max_ongoing_request": 5}]),
        "applications[0].deployments[0].max_ongoing_request",
    ),
    (
        "actor options",
        lambda c: c["applications"][0].update(
            deployments=[{"name": "renderer-c8", "ray_actor_options": {"label_selectors": {}}}]
        ),
        "applications[0].deployments[0].ray_actor_options.label_selectors",
    ),
    (
        "autoscaling",
        lambda c: c["applications"][0].update(
            deployments=[{"name": "renderer-c8", "autoscaling_config": {"max_replica": 5}}]
        ),
        "applications[0].deployments[0].autoscaling_config.max_replica",
    ),
    ("args", lambda c: c["applications"][0]["args"].update(drian_s=1), "applications[0].args.drian_s"),
    (
        "card class",
        lambda c: c["applications"][0]["args"]["card_classes"]["c8"].update(max_replica=1),
        "applications[0].args.card_classes.c8.max_replica",
    ),
]


@pytest.mark.parametrize(("break_it", "where"), [(t[1], t[2]) for t in TYPOS], ids=[t[0] for t in TYPOS])
def test_a_misspelt_key_is_found_at_every_level(config: Config, break_it: Callable[[Config], Any], where: str) -> None:
    break_it(config)
    findings = check_config(config)
    assert [f.where for f in findings] == [where]


def test_a_misspelt_key_comes_with_the_right_word(config: Config) -> None:
    config["applications"][0]["route_prefx"] = "/x"
    (finding,) = check_config(config)
    assert "'route_prefix'" in finding.remedy


def test_serve_itself_says_nothing_about_such_a_key(config: Config) -> None:
    """The reason for the check: were this to fail one day, Serve has learned to refuse and ours could go."""
    from ray.serve.schema import ServeDeploySchema

    config["applications"][0]["route_prefx"] = "/x"
    config["http_options"]["prot"] = 1
    ServeDeploySchema.model_validate(config)


def test_values_that_serve_refuses_are_found(config: Config) -> None:
    config["proxy_location"] = "Sometimes"
    assert wheres(config) == ["proxy_location"]


def test_an_application_without_our_import_path_is_no_farm(config: Config) -> None:
    config["applications"][0]["import_path"] = "serve.app:biuld"
    assert "applications" in wheres(config)


def test_a_database_url_would_reach_the_renderers(config: Config) -> None:
    config["applications"][0]["args"]["database_url"] = "postgresql://user:secret@db/clipmill"
    assert wheres(config) == ["applications[0].args.database_url"]


def test_classes_that_grow_need_our_policy(config: Config) -> None:
    del config["applications"][0]["autoscaling_policy"]
    assert wheres(config) == ["applications[0].autoscaling_policy"]


def test_overrides_name_deployments_that_exist(config: Config) -> None:
    config["applications"][0]["deployments"] = [{"name": "renderer-c80", "max_ongoing_requests": 4}]
    assert wheres(config) == ["applications[0].deployments[0].name"]


@pytest.mark.parametrize(("seconds", "found"), [(899, True), (900, False)])
def test_graceful_shutdown_leaves_one_and_a_half_of_the_longest_clip(config: Config, seconds: int, found: bool) -> None:
    config["applications"][0]["deployments"] = [{"name": "renderer-c8", "graceful_shutdown_timeout_s": seconds}]
    assert bool(wheres(config)) is found


def test_a_class_without_a_group(config: Config) -> None:
    config["applications"][0]["args"]["card_classes"]["c80"] = {"label_selector": {CARD_CLASS_LABEL: "c80"}}
    assert wheres(config) == ["card_classes.c80"]


def test_a_group_without_a_deployment(config: Config) -> None:
    it = cluster()
    it["spec"]["workerGroupSpecs"].append(group("c48", 1))
    assert wheres(config, it) == ["RayCluster clipmill, group c48, labels"]


def test_two_groups_of_one_class(config: Config) -> None:
    it = cluster()
    it["spec"]["workerGroupSpecs"].append(group("c8", 6) | {"groupName": "c8-spot"})
    assert wheres(config, it) == ["card_classes.c8"]


def test_a_misspelt_label_is_found_on_both_sides(config: Config) -> None:
    it = cluster()
    it["spec"]["workerGroupSpecs"][0]["labels"] = {"clipmill.io/card-clas": "c8"}
    assert wheres(config, it) == ["RayCluster clipmill, group c8, labels", "card_classes.c8"]


def test_a_label_in_ray_start_params_is_not_enough(config: Config) -> None:
    it = cluster()
    first = it["spec"]["workerGroupSpecs"][0]
    first["rayStartParams"]["labels"] = f"{CARD_CLASS_LABEL}=c8"
    del first["labels"]
    assert "RayCluster clipmill, group c8, labels" in wheres(config, it)


@pytest.mark.parametrize("selector", ["c24", "in(c8,c24)", "!c80", "c9"])
def test_a_selector_that_picks_other_groups(config: Config, selector: str) -> None:
    config["applications"][0]["args"]["card_classes"]["c8"]["label_selector"] = {CARD_CLASS_LABEL: selector}
    assert wheres(config) == ["card_classes.c8.label_selector"]


def test_an_empty_selector(config: Config) -> None:
    config["applications"][0]["args"]["card_classes"]["c8"]["label_selector"] = {}
    assert wheres(config) == ["card_classes.c8.label_selector"]


@pytest.mark.parametrize(("pods", "found"), [(5, True), (6, False), (7, True)])
def test_pods_agree_with_renderers(config: Config, pods: int, found: bool) -> None:
    it = cluster()
    it["spec"]["workerGroupSpecs"][0]["maxReplicas"] = pods
    assert wheres(config, it) == (["RayCluster clipmill, group c8, maxReplicas"] if found else [])


@pytest.mark.parametrize(("pods", "found"), [(1, True), (2, False), (6, True)])
def test_pods_with_four_cards_hold_four_renderers(config: Config, pods: int, found: bool) -> None:
    it = cluster()
    first = it["spec"]["workerGroupSpecs"][0]
    first["maxReplicas"] = pods
    first["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "4"
    assert bool(wheres(config, it)) is found


@pytest.mark.parametrize("limits", [{"cpu": "4"}, {"cpu": 0, "nvidia.com/gpu": 1}])
def test_a_pod_too_small_for_its_renderer(config: Config, limits: dict[str, Any]) -> None:
    it = cluster()
    it["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"] = limits
    assert wheres(config, it) == ["RayCluster clipmill, group c8"]


def test_pods_that_stay_up_for_nothing(config: Config) -> None:
    it = cluster()
    it["spec"]["workerGroupSpecs"][0]["minReplicas"] = 1
    it["spec"]["workerGroupSpecs"][1]["minReplicas"] = 1
    assert wheres(config, it) == ["RayCluster clipmill, group c8, minReplicas"]


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"enableInTreeAutoscaling": False}, "RayCluster clipmill.enableInTreeAutoscaling"),
        ({"autoscalerOptions": {"version": "v1"}}, "RayCluster clipmill.autoscalerOptions"),
    ],
)
def test_growing_needs_the_autoscaler(config: Config, spec: dict[str, Any], where: str) -> None:
    it = cluster()
    it["spec"] |= spec
    assert wheres(config, it) == [where]


@pytest.mark.parametrize(("seconds", "found"), [(24, True), (25, False), (None, False)])
def test_termination_grace_is_as_long_as_draining(config: Config, seconds: int | None, found: bool) -> None:
    it = cluster()
    pod = it["spec"]["workerGroupSpecs"][1]["template"]["spec"]
    if seconds is None:
        del pod["terminationGracePeriodSeconds"]  # Kubernetes' default of 30 s is enough here
    else:
        pod["terminationGracePeriodSeconds"] = seconds
    assert bool(wheres(config, it)) is found


@pytest.mark.parametrize(
    "leak",
    [
        {"env": [{"name": "CLIPMILL_DATABASE_URL", "value": "x"}]},
        {"envFrom": [{"secretRef": {"name": "clipmill-secrets"}}]},
    ],
)
def test_pods_with_a_card_get_no_store_credentials(config: Config, leak: dict[str, Any]) -> None:
    it = cluster()
    it["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0] |= leak
    assert wheres(config, it) == ["RayCluster clipmill, group c8, container ray"]


def test_dispatcher_and_gateway_are_held_to_the_head(config: Config) -> None:
    it = cluster()
    it["spec"]["headGroupSpec"]["labels"] = {"clipmill.io/role": "contorl"}
    assert wheres(config, it) == ["control_label_selector"]


def test_the_service_points_at_the_proxy(config: Config) -> None:
    config["http_options"]["port"] = 8500
    assert wheres(config) == ["Service gateway, targetPort serve"]
    config["http_options"] = {"host": "127.0.0.1", "port": 8000}
    assert wheres(config) == ["http_options.host"]


def test_a_config_for_no_cluster(config: Config) -> None:
    assert [f.where for f in check(config, [SERVICE])] == ["manifests"]


def test_configs_are_found_in_config_maps() -> None:
    documents = [
        {"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"ray_config.yaml": yaml.safe_dump(BASE)}},
        {"kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"other.yaml": "x: 1"}},
        {"kind": "Secret", "metadata": {"name": "c"}, "data": {"ray_config.yaml": "x"}},
    ]
    assert serve_configs(documents) == {"a": BASE}


CLASSES = st.sampled_from(["c8", "c16", "c24", "c48"])


@given(CLASSES, st.lists(CLASSES, min_size=1, max_size=3))
def test_selectors_mean_what_ray_means(label: str, listed: list[str]) -> None:
    """Ray's own evaluation of the same selector is the reference."""
    from ray._private.label_utils import validate_label_selector

    key = CARD_CLASS_LABEL
    for selector, expected in (
        (listed[0], label == listed[0]),
        (f"!{listed[0]}", label != listed[0]),
        (f"in({','.join(listed)})", label in listed),
        (f"!in({', '.join(listed)})", label not in listed),
    ):
        assert validate_label_selector({key: selector}) is None
        assert selects({key: selector}, {key: label}) is expected
    assert not selects({key: label}, {})
    assert selects({key: f"!{label}"}, {})
    assert selects({}, {key: label})


def test_the_check_needs_no_checkout(tmp_path: Path) -> None:
    """`clipmill manifests check` on plain YAML, where kubectl may be absent: exit 0, 1, 2."""
    from typer.testing import CliRunner

    from serve.cli.main import app

    config_map = {"kind": "ConfigMap", "metadata": {"name": "s"}, "data": {"ray_config.yaml": yaml.safe_dump(BASE)}}
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all([config_map, cluster(), SERVICE]))
    run = CliRunner().invoke
    assert run(app, ["manifests", "check", "--manifests", str(file)]).exit_code == 0
    other = tmp_path / "ray_config.yaml"
    other.write_text(yaml.safe_dump(BASE | {"http_option": {}}))
    refused = run(app, ["manifests", "check", "--manifests", str(file), "--config", str(other), "--json"])
    assert refused.exit_code == 1
    assert "'http_option'" in refused.stdout
    assert run(app, ["manifests", "check", "--manifests", str(tmp_path / "none")]).exit_code == 2
    assert run(app, ["manifests", "check", "--manifests", str(file), "--config", str(tmp_path / "no")]).exit_code == 2
    file.write_text("a: [")
    assert run(app, ["manifests", "check", "--manifests", str(file)]).exit_code == 2


@pytest.mark.parametrize(
    ("key", "value"), [("deployments", ["renderer-c8"]), ("autoscaling_policy", "serve.autoscaling:policy")]
)
def test_tables_of_the_wrong_kind_are_findings_not_faults(config: Config, key: str, value: Any) -> None:
    config["applications"][0][key] = value
    assert any(f.where.startswith("applications") for f in check(config, [cluster()]))


def test_the_control_label_is_the_heads_alone(config: Config) -> None:
    made = cluster()
    made["spec"]["workerGroupSpecs"][0]["labels"]["clipmill.io/role"] = "control"
    [finding] = check(config, [made])
    assert "group c8" in finding.where
    assert "control_label_selector" in finding.message
