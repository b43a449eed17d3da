"""Webhooks of a store of either kind."""

from __future__ import annotations

import pytest

from cluster.store import Database
from cluster.store.webhooks.registry import WebhookStore


@pytest.fixture
def hooks(database: Database) -> WebhookStore:
    return WebhookStore(database)
