"""The application's autoscaling policy: replicas of every card class as the dispatcher wants them.

Named in `ray_config.yaml` by `applications[].autoscaling_policy.policy_function: serve.autoscaling:policy`. Serve's own
policies see only requests that wait in handles, and the dispatcher never lets one wait.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingContext

_PREFIX = "renderer-"


def wanted_name(card_class: str) -> str:
    """Name of the dispatcher's figure for how many replicas a class's backlog calls for."""
    return f"wanted_{card_class}"


def kept_name(card_class: str) -> str:
    """Name of the dispatcher's figure for how many replicas of a class may not be taken."""
    return f"kept_{card_class}"


def policy(
    contexts: dict[DeploymentID, AutoscalingContext],
) -> tuple[dict[DeploymentID, int], dict[DeploymentID, dict[str, Any]]]:
    """Target replicas of every autoscaled deployment.

    Where the dispatcher has said nothing (it is starting, or being replaced) a deployment stays as it is: a farm that
    forgot its figures must not drop its cards.
    """
    figures = _latest(contexts)
    targets: dict[DeploymentID, int] = {}
    for deployment, context in contexts.items():
        card_class = deployment.name.removeprefix(_PREFIX)
        wanted = figures.get(wanted_name(card_class)) if deployment.name.startswith(_PREFIX) else None
        # What is kept never raises the target: a renderer that Serve has told to go is still among them while its
        # last clip runs, and would be replaced again and again.
        kept = min(figures.get(kept_name(card_class), 0), context.target_num_replicas)
        targets[deployment] = context.target_num_replicas if wanted is None else int(max(wanted, kept))
    return targets, {}


def _latest(contexts: dict[DeploymentID, AutoscalingContext]) -> dict[str, float]:
    """The newest value of every figure of the dispatcher; during a rolling update the newer dispatcher's."""
    found: dict[str, tuple[float, float]] = {}
    for deployment, context in contexts.items():
        if deployment.name != "dispatcher":
            continue
        for name, by_replica in (context.raw_metrics or {}).items():
            for series in by_replica.values():
                for point in series:
                    if name not in found or point.timestamp >= found[name][0]:
                        found[name] = (point.timestamp, point.value)
    return {name: value for name, (_, value) in found.items()}
