"""What looking for news of batches costs, and how fast messages go out.

    python benchmarks/webhooks.py --check

A store (SQLite in a temporary folder; PostgreSQL by `--database URL` of an empty one) gets `--batches` that have not
ended, one of them with `--rows` rows, and an owner with a webhook: a look as the sender has one every second is timed.
Then `--messages` are sent to receivers on loopback, through the guard and signed, and each is written as delivered.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from report import Aim, Report, parser

from cluster.jobs.model import Draft
from cluster.remote.policy import FetchPolicy
from cluster.remote.poster import MessagePoster
from cluster.store import BatchStore, Database
from cluster.store.webhooks.registry import WebhookStore
from cluster.store.webhooks.telling import tell
from cluster.webhooks.model import DeliveryState
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES
from serve.dispatcher.webhooks import WebhookSender

OWNER = "local"
LOOKS = 50
RECEIVERS = 8
#: Aim: a look at a thousand batches that have not ended, in CPU milliseconds of the process that looks.
LOOK_AIM_MS = 50.0


class Takes(BaseHTTPRequestHandler):
    """A receiver that takes everything."""

    def do_POST(self) -> None:
        """Answer at once."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def fill(database: Database, number: int, rows: int) -> None:
    """`number` batches whose rows wait: one row each, but `rows` of the last."""
    family = FAMILIES["camera"]
    spec = ClipSpec(
        family=family.name, revision=family.revision, prompt="pan", resolution_class=ResolutionClass.P256, width=256,
        height=256, frames=8, fps=8, steps=1, guidance=1, seed=0,
    )  # fmt: skip
    store = BatchStore(database)
    for n in range(number):
        batch_id, _ = store.open_batch(OWNER, name=f"catalog {n}")
        wanted = rows if n == number - 1 else 1
        for first in range(1, wanted + 1, 1000):
            drafts = [
                Draft(
                    number=row,
                    name=f"row{row}",
                    row={"number": row},
                    still="ab" * 32,
                    spec=spec,
                    content_key=f"{n}.{row}",
                )
                for row in range(first, min(first + 1000, wanted + 1))
            ]
            store.add(OWNER, batch_id, drafts)
        store.seal(OWNER, batch_id)


def look_ms(database: Database) -> float:
    """CPU milliseconds of a look that finds nothing, the median of many."""
    taken = []
    for _ in range(LOOKS):
        began = time.process_time()
        if tell(database):
            raise RuntimeError("a batch that has not ended was told")
        taken.append(time.process_time() - began)
    return 1000 * statistics.median(taken)


def messages_a_second(database: Database, number: int) -> float:
    """Messages a second to several receivers, from the outbox to the mark that they were delivered."""
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Takes)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    hooks, port = WebhookStore(database), receiver.server_address[1]
    for n in range(RECEIVERS):
        # Owners of their own: of one owner's only a few are sent at once.
        hook, _ = hooks.create(f"owner{n}", f"http://127.0.0.1:{port}/{n}")
        for _ in range(number // RECEIVERS):
            hooks.test(f"owner{n}", hook.id)
    sender = WebhookSender(database, MessagePoster(FetchPolicy(private_hosts=(f"127.0.0.1:{port}",))).post)
    stop = threading.Event()
    thread = threading.Thread(target=sender.run, args=(stop,))
    began = time.perf_counter()
    thread.start()
    while any(
        one.state is DeliveryState.PENDING for n in range(RECEIVERS) for one in hooks.deliveries(f"owner{n}", limit=1)
    ):
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    stop.set()
    thread.join()
    receiver.shutdown()
    return RECEIVERS * (number // RECEIVERS) / seconds


def main() -> int:
    """Run it; the exit code."""
    options = parser(__doc__)
    options.add_argument("--batches", type=int, default=1000)
    options.add_argument("--rows", type=int, default=20_000)
    options.add_argument("--messages", type=int, default=400)
    options.add_argument("--database", default="")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(given.database or f"sqlite:///{Path(folder) / 'store.db'}")
        database.migrate()
        WebhookStore(database).create(OWNER, "https://receiver.example/")
        fill(database, given.batches, given.rows)
        look, sent = look_ms(database), messages_a_second(database, given.messages)
        database.close()
    figures = {
        "batches that have not ended": given.batches,
        "CPU ms of a look": look,
        "messages a second, to eight receivers": sent,
    }
    aims = [Aim(name="a look at 1,000 batches", value=look * 1000 / given.batches, at_most=LOOK_AIM_MS, unit="CPU ms")]
    return Report(name="webhooks", figures=figures, aims=aims).finish(given)


if __name__ == "__main__":
    sys.exit(main())
