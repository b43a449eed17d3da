"""The durable store: `Desk` for those who hand work in, `Ledger` for the dispatcher, one `Database` beneath."""

from cluster.store.database import Database
from cluster.store.desk import Desk
from cluster.store.ledger import Claim, Ledger, StaleEpochError, Stretch

__all__ = ["Claim", "Database", "Desk", "Ledger", "StaleEpochError", "Stretch"]
