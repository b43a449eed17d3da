"""How keys, sessions and quotas look in the API and in `--json`."""

from __future__ import annotations

from typing import Any

from cluster.access.keys import AccessKey, KeyText
from cluster.access.quotas import OwnerQuota, OwnerUse


def key_view(key: AccessKey, now: int, text: KeyText | None = None) -> dict[str, Any]:
    """A key as the API and `--json` show it; with its `text` once, to whoever makes it."""
    view = {
        "id": key.id,
        "object": "key",
        "owner": key.owner,
        "name": key.name,
        "scopes": sorted(scope.value for scope in key.scopes),
        "status": key.state(now).value,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "used_at": key.used_at,
        "replaced_by": key.replaced_by,
    }
    return view if text is None else view | {"key": text.text}


def quota_view(owner: str, quota: OwnerQuota, use: OwnerUse) -> dict[str, Any]:
    """An owner's quota and use as the API and `--json` show them."""
    used = {
        "queued_jobs": use.queued_jobs,
        "gpu_seconds_day": round(use.gpu_seconds_day, 3),
        "cost_month": round(use.cost_month, 4),
    }
    return {"object": "quota", "owner": owner, **quota.model_dump(), "used": used}
