"""The autoscaling policy, on contexts as Serve makes them."""

from __future__ import annotations

from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.fleet.demand import ClassState, replicas_kept, replicas_wanted
from serve.app import build
from serve.autoscaling import kept_name, policy, wanted_name

C8 = DeploymentID(name="renderer-c8", app_name="clipmill")
DISPATCHER = DeploymentID(name="dispatcher", app_name="clipmill")


def context(deployment: DeploymentID, target: int, figures: dict[str, list[tuple[float, float]]]) -> AutoscalingContext:
    raw = {
        name: {
            ReplicaID(unique_id=str(at), deployment_id=deployment): [TimeStampedValue(timestamp=at, value=value)]
            for at, value in points
        }
        for name, points in figures.items()
    }
    return AutoscalingContext(
        config=AutoscalingConfig(min_replicas=0, max_replicas=8),
        deployment_id=deployment,
        deployment_name=deployment.name,
        app_name=deployment.app_name,
        current_num_replicas=target,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=0,
        total_queued_requests=0,
        aggregated_metrics={},
        raw_metrics=raw,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0,
    )


def decide(target: int, figures: dict[str, list[tuple[float, float]]]) -> int:
    targets, _ = policy({C8: context(C8, target, {}), DISPATCHER: context(DISPATCHER, 1, figures)})
    assert targets[DISPATCHER] == 1
    return targets[C8]


def test_without_a_word_of_the_dispatcher_all_stays() -> None:
    assert decide(3, {}) == 3


def test_the_newest_word_counts() -> None:
    assert decide(1, {wanted_name("c8"): [(10.0, 5.0), (20.0, 2.0)]}) == 2


def test_cards_of_a_class_with_work_are_kept() -> None:
    assert decide(4, {wanted_name("c8"): [(1.0, 1.0)], kept_name("c8"): [(1.0, 4.0)]}) == 4
    assert decide(4, {wanted_name("c8"): [(1.0, 0.0)], kept_name("c8"): [(1.0, 0.0)]}) == 0


def test_a_renderer_that_finishes_its_last_clip_is_not_replaced_again_and_again() -> None:
    # A rolling update: one of two renderers was told to go and renders on for half an hour.
    target, leaving = 2, 1
    for _ in range(10):
        state = ClassState(backlog_gpu_seconds=0, present=target + leaving, busy=2, minimum=0, maximum=8)
        wanted, kept = float(replicas_wanted(state, target_s=300)), float(replicas_kept(state))
        target = decide(target, {wanted_name("c8"): [(1.0, wanted)], kept_name("c8"): [(1.0, kept)]})
    assert target == 2


def test_a_changed_config_keeps_the_cards_a_class_has() -> None:
    """Serve goes back to `initial_replicas`, where it is set, at every change of the deployment."""
    app = build(
        {"emulate": True, "card_classes": {"c8": {"replicas": 0, "max_replicas": 8, "num_gpus": 0}}, "gateway": False}
    )
    [renderer] = app._bound_deployment.init_kwargs.values()
    config = renderer._bound_deployment._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (0, 8)
    assert config.initial_replicas is None
