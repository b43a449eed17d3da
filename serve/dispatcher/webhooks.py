"""The sender of webhooks: beside the dispatcher, for it has the store and is one; several senders send nothing twice.

Threads of its own, which nothing else waits for: a receiver that is slow takes one of them for seconds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from cluster.remote.poster import PostAnswer, PostFailedError
from cluster.store.database import Database
from cluster.store.webhooks.outbox import Outbox, TakenDelivery
from cluster.store.webhooks.telling import tell
from cluster.webhooks.events import EventType, body_of
from cluster.webhooks.schedule import Answered, judge
from cluster.webhooks.signing import signed_headers

log = logging.getLogger("clipmill.webhooks")

#: Seconds between two looks for news and for messages that are due.
LOOK_S = 1.0
#: Messages that are sent at once.
AT_ONCE = 8
#: Seconds between two looks for messages that need not be kept any more.
TIDY_S = 600.0
#: Seconds that a farm which closes takes for messages of what ended last.
LAST_S = 3.0

#: Sends a body with headers to a URL.
Post = Callable[[str, bytes, Sequence[tuple[str, str]]], PostAnswer]
#: Begins to do something beside, and returns.
Start = Callable[[Callable[[], None]], None]


def in_thread(work: Callable[[], None]) -> None:
    """Do `work` in a thread that nobody waits for when the process ends."""
    threading.Thread(target=work, name="clipmill-webhook", daemon=True).start()


class WebhookSender:
    """Writes messages of what has happened, and sends those that are due.

    Lifecycle: `run` in a thread of its own until its event is set, then `finish` once.
    """

    def __init__(
        self,
        database: Database,
        post: Post,
        *,
        base: str = "",
        at_once: int = AT_ONCE,
        start: Start = in_thread,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """`post` sends one message, and raises `PostFailedError` where no answer comes.

        `base` is the farm's address, below which URLs in messages are; `clock` (UTC epoch seconds) dates messages;
        `start` begins to send one.
        """
        self._db, self._post, self._base = database, post, base
        self._outbox = Outbox(database)
        self._at_once, self._start, self._clock = at_once, start, clock
        self._rng = rng or random.Random()  # noqa: S311 (jitter is no secret)
        self._changed = threading.Condition()
        #: Set where a message has gone: the next to its URL may be due.
        self._gone = threading.Event()
        self._in_hand = 0

    def run(self, stop: threading.Event) -> None:
        """Look every second, and at once where a message has gone, until `stop`.

        A store that does not answer is waited for.
        """
        tidied = time.monotonic()
        while not stop.is_set():
            try:
                more = self.step()
                if time.monotonic() - tidied > TIDY_S:
                    tidied = time.monotonic()
                    self._outbox.tidy()
            except Exception as error:
                log.warning("webhooks were not looked after, the next look is in a second: %s", error)
                more = False
            if not more:
                self._gone.wait(LOOK_S)
                self._gone.clear()

    def step(self) -> bool:
        """Tell what is new, and begin to send what is due; whether there may be more of either at once."""
        told = tell(self._db)
        with self._changed:
            free = self._at_once - self._in_hand
        taken = self._outbox.take(free) if free > 0 else []
        for one in taken:
            with self._changed:
                self._in_hand += 1
            self._start(lambda one=one: self._send(one))  # type: ignore[misc]
        return bool(told or taken)

    def finish(self, within_s: float = LAST_S) -> None:
        """Send what is due once more, for at most `within_s` seconds: what is left is for the next farm's sender."""
        end = time.monotonic() + within_s
        while time.monotonic() < end and self.step():
            self._wait(end)
        self._wait(end)

    def _wait(self, end: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._in_hand, timeout=max(0.0, end - time.monotonic()))

    def _send(self, taken: TakenDelivery) -> None:
        try:
            self._deliver(taken)
        except Exception as error:
            # It is sent again when its lease has run out.
            log.warning("how %s went was not written: %s", taken.delivery.id, error)
        finally:
            with self._changed:
                self._in_hand -= 1
                self._changed.notify_all()
            self._gone.set()

    def _deliver(self, taken: TakenDelivery) -> None:
        delivery, answered = taken.delivery, self._ask(taken)
        once = delivery.type is EventType.WEBHOOK_TEST
        verdict = judge(answered, delivery.attempts + 1, self._rng.random, once=once)
        self._outbox.record(taken, verdict, answered.status)

    def _ask(self, taken: TakenDelivery) -> Answered:
        delivery = taken.delivery
        if not taken.secrets:
            return Answered(error="there is no secret to sign it with")
        body = body_of(delivery.payload, self._base)
        try:
            headers = signed_headers(taken.secrets, delivery.event_id, body, self._clock())
            answer = self._post(delivery.url, body, headers)
        except PostFailedError as error:
            return Answered(error=str(error))
        except Exception as error:
            # Whatever it is, it counts as an attempt: unwritten, it would be made again every minute.
            log.warning("%s could not be sent: %r", delivery.id, error)
            return Answered(error=f"it could not be sent ({type(error).__name__})")
        return Answered(status=answer.status, retry_after_s=answer.retry_after_s)
