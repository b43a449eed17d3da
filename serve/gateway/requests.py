"""Bodies of requests that command a batch, a job or a card, and the fields that say when a batch is held."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from cluster.catalog.cells import MAX_CANDIDATES, JsonNumbers, texts_of
from cluster.catalog.manifest import MAX_PRIORITY
from cluster.catalog.names import clip_names
from cluster.jobs.model import Limits
from cluster.jobs.review import ReviewChange
from cluster.jobs.transitions import Verb
from cluster.store.batches import Terms
from cluster.webhooks.model import MAX_WEBHOOK_URL_CHARACTERS, check_webhook_url
from pipeline.clips.clip import MAX_GUIDANCE, MAX_PROMPT_CHARACTERS
from pipeline.problems import BadInputError

#: The largest number that a row can have, and so the most failures of a batch.
MAX_ROW_NUMBER = 2**31 - 1


class LimitFields(JsonNumbers):
    """Where a batch stops by itself."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    max_failures: int | None = Field(default=None, ge=1)
    """It stops once so many rows have failed."""
    max_gpu_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """It stops once so many GPU hours are used."""
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """It stops once it has cost so much, in US dollars by the table of rates."""

    def limits(self) -> Limits:
        """The limits in the units that the store counts: seconds of GPU time, and cost."""
        seconds = None if self.max_gpu_hours is None else self.max_gpu_hours * 3600
        # More than a batch can have rows is no limit at all.
        failures = None if self.max_failures is None else min(self.max_failures, MAX_ROW_NUMBER)
        return Limits(failures=failures, gpu_seconds=seconds, cost=self.max_cost)


class BatchCommand(LimitFields):
    """Body of `POST /v1/batches/{id}/{verb}`; all of it may be left out."""

    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """For `prioritize`: the new priority."""
    cancelled: bool = False
    """For `retry`: whether cancelled rows are put back too."""


class JobCommand(JsonNumbers):
    """Body of `POST /v1/jobs/{id}/{verb}`; all of it may be left out."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """For `prioritize`: the new priority."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """For `reroll`: the seed of another clip; where nothing is said, another than before."""
    prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARACTERS)
    """For `reroll`, and for `reject` where another clip is to take the place of this one: its prompt."""
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARACTERS)
    """For `reroll` and `reject`: what the other clip shall not show."""
    guidance: float | None = Field(default=None, ge=1, le=MAX_GUIDANCE)
    """For `reroll` and `reject`: how closely the other clip follows prompt and picture."""

    def change(self) -> ReviewChange:
        """What is to be different in another clip."""
        return ReviewChange(
            seed=self.seed, prompt=self.prompt, negative_prompt=self.negative_prompt, guidance=self.guidance
        )


class CardCommand(JsonNumbers):
    """Body of `POST /v1/cards/{id}/{verb}`; all of it may be left out."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    reason: str = Field(default="", max_length=500)
    """For people."""
    for_s: int | None = Field(default=None, ge=1, le=10**9)
    """Seconds after which the order ends by itself; None: it stands until it is released."""


class TermFields(LimitFields):
    """The fields of a new batch that say when it is held."""

    paused: bool = False
    """The batch is held until somebody resumes it."""
    needs_approval: bool = False
    """The batch's rows wait for an approval, all but the first `proof`."""
    proof: int = Field(default=0, ge=0, lt=2**31)
    """With `needs_approval`: so many rows start at once, as a proof."""
    comment: str = Field(default="", max_length=2000)
    """A note for people."""
    webhook_url: str | None = Field(default=None, max_length=MAX_WEBHOOK_URL_CHARACTERS)
    """An https or http URL that is told of the batch's first failure, drafts and end (docs/webhooks.md)."""

    def terms(self) -> Terms:
        """The fields as the store takes them. Raises `BadInputError` for a URL that nothing can be sent to."""
        return Terms(
            paused=self.paused,
            needs_approval=self.needs_approval,
            proof=self.proof,
            limits=self.limits(),
            comment=self.comment,
            webhook_url=check_webhook_url(self.webhook_url, "webhook_url") if self.webhook_url else None,
        )


def priority_of(verb: Verb, given: int | None) -> int:
    """The priority that goes with a verb: only `prioritize` needs one. Raises `BadInputError` where it has none."""
    if verb is Verb.PRIORITIZE and given is None:
        raise BadInputError(
            "priority", "no priority was given", f"Give a number from -{MAX_PRIORITY} to {MAX_PRIORITY}."
        )
    return given or 0


#: Fields of a row on its way; all others are columns of its manifest row.
_OF_INCOMING = frozenset({"position", "name", "still", "number", "line"})
#: A flat row that says one of these is one clip of a row that somebody else has spread out.
_OF_ONE_CLIP = frozenset({"number", "candidate", "prompts", "prompt_number"})
#: Rows of one request at most.
MAX_BATCH_ROWS = 100_000


def filled_rows(rows: list[Any]) -> list[Any]:
    """Rows of a new batch: those that are written flat (`{"still": …, "prompt": …}`) as `IncomingRow` has them.

    A flat row is called as its `name` or `id`, else by its place. One with a list as `prompt`, or with `candidates`,
    becomes as many rows as it asks for clips, called as a manifest's are (`NAME-p2-c1`); where the list is none of
    texts, it becomes a row with that problem. Rows with a `row` or with `problems`, and what is no object, are left as
    they are. No more than one row above `MAX_BATCH_ROWS` are made, so that whoever counts them refuses.
    """
    found: list[Any] = []
    for place, row in enumerate(rows, start=1):
        if len(found) > MAX_BATCH_ROWS:
            break
        if not isinstance(row, dict) or "row" in row or "problems" in row:
            found.append(row)
        else:
            found += _filled(place, len(found) + 1, row)
    return found[: MAX_BATCH_ROWS + 1]


def _filled(place: int, position: int, given: dict[str, Any]) -> list[dict[str, Any]]:
    row = {name: value for name, value in given.items() if name in _OF_INCOMING}
    columns = {name: value for name, value in given.items() if name not in _OF_INCOMING}
    if isinstance(still := row.get("still"), str):
        # The id of a file that was handed in names it as well.
        row["still"] = still.removeprefix("file-")
    name = row.setdefault("name", columns.get("id") or f"row-{place}")
    number = row.setdefault("number", row.get("position", place))
    first = row.setdefault("position", position)
    whole = {"number": number, "id": name, "image": row.get("still") or name} | columns
    try:
        prompts, count = _clips_of(given)
    except BadInputError as error:
        return [{key: row[key] for key in row if key != "still"} | {"problems": [error.problem.model_dump()]}]
    names = clip_names(name, count, len(prompts)) if isinstance(name, str) and type(first) is int else []
    if len(names) <= 1:
        return [row | {"row": whole | ({"prompt": prompts[0]} if prompts[0] is not None else {})}]
    return [
        row
        | {
            "position": first + at,
            "name": one,
            "row": whole
            | {"id": one, "prompt": prompts[at // count], "candidates": count, "candidate": at % count}
            | {"prompts": len(prompts), "prompt_number": at // count},
        }
        for at, one in enumerate(names)
    ]


def _clips_of(given: dict[str, Any]) -> tuple[tuple[str | None, ...], int]:
    """(prompts of a flat row, how many clips of each). Raises `BadInputError` for a list that is none of texts."""
    prompt, count = given.get("prompt"), given.get("candidates", 1)
    prompts = texts_of("prompt", prompt, []) if isinstance(prompt, list) else prompt
    alone = bool(_OF_ONE_CLIP & given.keys()) or type(count) is not int or not 1 <= count <= MAX_CANDIDATES
    return prompts if isinstance(prompts, tuple) else (prompts,), 1 if alone else count
