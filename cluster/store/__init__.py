"""The durable store: `Desk` for those who hand work in, `Ledger` for the dispatcher, one `Database` beneath."""

from cluster.store.claims import Claim, Stretch
from cluster.store.database import Database
from cluster.store.desk import Desk
from cluster.store.endings import Ending
from cluster.store.ledger import Ledger, StaleEpochError

__all__ = ["Claim", "Database", "Desk", "Ending", "Ledger", "StaleEpochError", "Stretch"]
