"""`/metrics`: the store's tallies and states in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cluster.store.counters import TALLIES
from cluster.store.gauges import Figures, Gauges, Series

#: Help and labels of every gauge, by its field in `Gauges`.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "jobs": ("Rows that have not ended.", ("state", "resolution_class")),
    "queue_oldest_seconds": (
        "Seconds since the row that waits longest came (back) into the queue.",
        ("resolution_class",),
    ),
    "backlog_gpu_seconds": (
        "Estimated GPU seconds of waiting work, by the smallest card class that holds it.",
        ("card_class",),
    ),
    "jobs_without_card": (
        "Waiting rows that no card heard of lately can hold, by the smallest card class that could.",
        ("card_class",),
    ),
    "storage_writable": ("1 while storage can be written, 0 while the farm or one of its renderers cannot.", ()),
    "webhook_messages_pending": ("Messages to webhooks that are still to be delivered.", ()),
    "webhooks_disabled": ("Webhooks that were disabled: they were gone, or took nothing for days.", ()),
    "cards": ("Cards heard of in the last seconds.", ("card_class", "state")),
}


class StoreCollector(Collector):
    """Reads the store at every scrape: nothing is kept here, so no restart makes a counter fall.

    Every gateway replica exposes the same; scrape one of them, or the Service before them, as one target.
    """

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Every counter and gauge. Raises `sqlalchemy.exc.SQLAlchemyError` where the store cannot be read."""
        for name, series in self._figures.counters().items():
            tally = TALLIES[name]
            yield _filled(CounterMetricFamily(f"clipmill_{name}", tally.help, labels=tuple(tally.labels)), series)
        now: Gauges = self._figures.gauges()
        for name, (text, labels) in GAUGES.items():
            yield _filled(GaugeMetricFamily(f"clipmill_{name}", text, labels=labels), getattr(now, name))


def _filled(family: CounterMetricFamily | GaugeMetricFamily, series: Series) -> Metric:
    for labels, value in sorted(series.items()):
        family.add_metric(labels, value)
    return family


def store_registry(figures: Figures) -> CollectorRegistry:
    """A registry of the store's figures and nothing else; nothing is read before the first scrape."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(figures))
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Body and content type of an answer to a scrape, in the format that `accept`, a scraper's header, asks for."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
