"""When the last of clips that arrive one by one can have ended, all arrivals being known beforehand."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

#: Arrivals that begin an interval of their own; of more, some count as if they came with the one before.
MOST_INTERVALS = 64


def least_end_s(
    seconds: Sequence[Sequence[float]],
    arrivals: Sequence[float],
    cards: Sequence[int],
    *,
    most_intervals: int = MOST_INTERVALS,
) -> float:
    """The earliest end of all jobs where they may be stopped and moved at no cost: no schedule beats it.

    `seconds` of a whole job by job and card kind, infinite where it does not fit; when each job arrives; how many
    `cards` of each kind there are. Raises `ValueError` for a job that fits nowhere.

    Between two arrivals nothing changes, so it is enough to say how long each job is on each kind of card within each
    interval: no job longer than the interval, all jobs on a kind of card no longer than its cards have. Minimise the
    last interval (Lawler & Labetoulle, J. ACM 25, 1978, section 4, for release dates). With more arrivals than
    `most_intervals` it is a bound from below: some are taken to come sooner than they do.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    starts = _starts(arrivals, most_intervals)
    last = len(starts) - 1
    lengths = [*(b - a for a, b in pairwise(starts)), 0.0]
    came = [bisect_right(starts, at) - 1 for at in arrivals]
    jobs = range(len(seconds))
    parts = [
        (job, interval, kind)
        for job in jobs
        for interval in range(came[job], last + 1)
        for kind, number in enumerate(cards)
        if number and seconds[job][kind] < math.inf
    ]
    if len({job for job, *_ in parts}) < len(seconds):
        raise ValueError(f"a job fits on none of {sum(cards)} cards")
    job_of, interval_of, kind_of = np.array(parts).T
    took = np.array([seconds[job][kind] for job, _, kind in parts])
    # Rows: what each kind of card has within each interval, then what each job has.
    by_card = interval_of * len(cards) + kind_of
    by_job = (last + 1) * len(cards) + job_of * (last + 1) + interval_of
    end, column = len(parts), np.arange(len(parts))
    in_last = [last * len(cards) + kind for kind in range(len(cards))]
    whole = [(last + 1) * len(cards) + job * (last + 1) + last for job in jobs]
    rows = np.concatenate([by_card, by_job, in_last, whole])
    columns = np.concatenate([column, column, np.full(len(in_last) + len(whole), end)])
    values = np.concatenate([np.ones(2 * end), -np.array(cards, float), -np.ones(len(whole))])
    most = [length * number for length in lengths for number in cards] + [length for _ in jobs for length in lengths]
    found = linprog(
        np.eye(1, end + 1, end)[0],
        A_ub=coo_matrix((values, (rows, columns)), shape=(len(most), end + 1)),
        b_ub=most,
        A_eq=coo_matrix((1 / took, (job_of, column)), shape=(len(seconds), end + 1)),
        b_eq=np.ones(len(seconds)),
        method="highs",
    )
    if found.x is None:
        raise ValueError(f"the linear program of {len(seconds)} jobs has no solution: {found.message}")
    return starts[-1] + float(found.x[end])


def _starts(arrivals: Sequence[float], most: int) -> list[float]:
    """When intervals begin: at each arrival, or at some where there are more than `most`."""
    found = sorted(set(arrivals))
    if len(found) <= most:
        return found
    return sorted({found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)})
