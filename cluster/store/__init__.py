"""The durable store: `BatchStore` for owners, `DispatchStore` for the dispatcher, one `Database` beneath."""

from cluster.jobs.model import Claim, Stretch
from cluster.store.batches import BatchStore
from cluster.store.completions import Completion
from cluster.store.database import Database
from cluster.store.dispatch import DispatchStore, StaleEpochError
from cluster.store.office import OfficeTakenError

__all__ = [
    "BatchStore",
    "Claim",
    "Completion",
    "Database",
    "DispatchStore",
    "OfficeTakenError",
    "StaleEpochError",
    "Stretch",
]
