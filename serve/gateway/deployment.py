"""The gateway deployment: an ASGI application on one replica or many, all on the same store."""

from __future__ import annotations

from typing import Any

from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import Database, Desk
from cluster.store.figures import Figures
from serve.gateway.api import create_api
from serve.metrics import store_registry
from serve.settings import STORE_PATIENCE_S, FarmArgs


@ray_serve.ingress()
class Gateway:
    """Answers from the store, so any replica can answer for any other, before and after any restart."""

    def __init__(self, args: dict[str, Any], dispatcher: DeploymentHandle) -> None:
        self._args = FarmArgs.model_validate(args)
        settings = self._args.settings()
        database = Database(settings.database_url)
        database.migrate(patience_s=STORE_PATIENCE_S)
        self._farm = Farm(Desk(database), Storage(settings.storage_url), accepted=settings.accepted)
        self._registry = store_registry(Figures(database, self._args.fleet()))
        self._dispatcher = dispatcher

    def __serve_build_asgi_app__(self) -> Any:
        async def nudge() -> None:
            await self._dispatcher.nudge.remote()

        return create_api(
            self._farm,
            default_model=self._args.default_model,
            nudge=nudge,
            registry=self._registry,
            few_step=self._args.few_step,
            rules=self._args.rules(),
        )
