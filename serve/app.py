"""The Serve application, built from the arguments in `ray_config.yaml`."""

from __future__ import annotations

from typing import Any

from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from serve.dispatcher.deployment import DispatcherDeployment
from serve.renderer.deployment import Renderer
from serve.settings import CardClassArgs, FarmArgs

#: How often Serve looks at the figures it scales by, in seconds.
_FIGURES = {"metrics_interval_s": 1, "look_back_period_s": 2}


def build(args: dict[str, Any]) -> Application:
    """The application: gateway → dispatcher → one renderer deployment per card class.

    `args` is the `FarmArgs` table under `applications[].args`; raises `pydantic.ValidationError` for a wrong one.
    """
    farm = FarmArgs.model_validate(args)
    plain = farm.model_dump(mode="json")
    renderers = {
        name: _renderer(farm, name, table).bind(farm.without_store(), name)  # type: ignore[attr-defined]
        for name, table in farm.card_classes.items()
    }
    control: dict[str, Any] = {"num_cpus": 0}
    if farm.control_label_selector:
        control["label_selector"] = dict(farm.control_label_selector)
    # The policy reads the dispatcher's figures, and Serve collects figures of autoscaled deployments only.
    one: dict[str, Any] = {"num_replicas": 1}
    if farm.autoscales:
        one = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1, **_FIGURES}}
    dispatcher = ray_serve.deployment(
        name="dispatcher",
        **one,
        max_ongoing_requests=1000,
        ray_actor_options=control,
        graceful_shutdown_timeout_s=farm.drain_s + 5,
        health_check_period_s=2,
    )(DispatcherDeployment).bind(plain, **renderers)
    if not farm.gateway:
        return dispatcher
    # Half a second of imports, which whoever waits for the first clip of `clipmill render` is spared.
    from serve.gateway.deployment import Gateway, ListeningGateway
    from serve.gateway.limits import GATEWAY_REQUESTS

    return ray_serve.deployment(
        name="gateway", num_replicas=1, max_ongoing_requests=GATEWAY_REQUESTS, ray_actor_options=control
    )(ListeningGateway if farm.listen else Gateway).bind(plain, dispatcher)


def _renderer(farm: FarmArgs, name: str, table: CardClassArgs) -> object:
    options: dict[str, Any] = {"num_cpus": table.num_cpus, "num_gpus": table.num_gpus}
    if table.resources:
        options["resources"] = dict(table.resources)
    if table.label_selector:
        options["label_selector"] = dict(table.label_selector)
    size: dict[str, Any] = {"num_replicas": table.replicas}
    if table.max_replicas is not None:
        size = {
            # No `initial_replicas`: Serve would go back to it whenever the farm's arguments change, dropping every
            # card. Without it a new deployment begins at `min_replicas`, a changed one goes on as it is.
            "autoscaling_config": {
                "min_replicas": table.replicas,
                "max_replicas": table.max_replicas,
                "upscale_delay_s": 0,
                "downscale_delay_s": farm.idle_s,
                "downscale_to_zero_delay_s": farm.idle_s,
                **_FIGURES,
            }
        }
    return ray_serve.deployment(
        name=f"renderer-{name}",
        **size,
        # One clip on the card and one being encoded; the rest is room for short calls.
        max_ongoing_requests=4,
        ray_actor_options=options,
        request_router_config=RequestRouterConfig(request_router_class="serve.renderer.router:PinnedRouter"),
        # Serve's default of 20 s would kill running clips.
        graceful_shutdown_timeout_s=max(5.0, 1.5 * farm.longest_clip_s) if farm.gateway else farm.drain_s + 5,
        health_check_period_s=2,
        health_check_timeout_s=30,
    )(Renderer)
