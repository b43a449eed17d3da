"""The preemptive linear program of a batch on unrelated cards: it bounds every schedule, and says where work belongs.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def shortest(
    seconds: Sequence[Sequence[float]],
    cards: Sequence[int],
    jobs: Sequence[int] | None = None,
    busy_s: Sequence[float] | None = None,
    late_s: Sequence[float] | None = None,
) -> tuple[float, list[list[float]]]:
    """(makespan in seconds, jobs of each kind on each kind of card) where jobs may be stopped and moved at no cost.

    `seconds` of a whole job by job kind and card kind, infinite where it does not fit; how many `cards` of each kind
    there are, and `jobs` of each kind (default: one); `busy_s`: seconds that the cards of a kind are busy before, in
    all; `late_s`: seconds that the jobs of a kind cannot begin before, in all. Raises `ValueError` for a job that fits
    nowhere.

    Minimise T over x >= 0: the x of a job kind add up to its jobs, sum of x * seconds <= cards * T - busy on a card
    kind, and sum of x * seconds <= jobs * T - late for a job kind, as no job runs twice at once (Lawler & Labetoulle,
    J. ACM 25, 1978; equal jobs are averaged, which changes nothing).
    """
    # Imported late: a client that only asks for a status need not wait for it.
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    n, k = len(seconds), len(cards)
    count = list(jobs) if jobs is not None else [1] * n
    busy = list(busy_s) if busy_s is not None else [0.0] * k
    late = list(late_s) if late_s is not None else [0.0] * n
    pairs = [(j, c) for j in range(n) for c in range(k) if seconds[j][c] < math.inf and cards[c] > 0]
    if lost := set(range(n)) - {j for j, _ in pairs}:
        raise ValueError(f"job kind {min(lost)} fits on none of {sum(cards)} cards")
    last = len(pairs)
    took = np.array([seconds[j][c] for j, c in pairs])
    of_job, of_card = np.array([j for j, _ in pairs], int), np.array([c for _, c in pairs], int)
    upper = coo_matrix(
        (
            np.concatenate([took, took, -np.array(cards, float), -np.array(count, float)]),
            (
                np.concatenate([of_card, k + of_job, np.arange(k), k + np.arange(n)]),
                np.concatenate([np.arange(last), np.arange(last), np.full(k + n, last)]),
            ),
        ),
        shape=(k + n, last + 1),
    )
    equal = coo_matrix((np.ones(last), (of_job, np.arange(last))), shape=(n, last + 1))
    cost = np.zeros(last + 1)
    cost[last] = 1.0
    found = linprog(
        cost,
        A_ub=upper,
        b_ub=-np.array([*busy, *late]),
        A_eq=equal,
        b_eq=np.array(count, float),
        method="highs-ds",
    )
    if found.x is None:
        raise ValueError(f"the linear program of {n} job kinds on {k} card kinds has no solution: {found.message}")
    x = [[0.0] * k for _ in range(n)]
    for value, (j, c) in zip(found.x[:last].tolist(), pairs, strict=True):
        x[j][c] = value
    return float(found.x[last]), x
