"""The priority that a waiting job has now. Pure."""

from __future__ import annotations

from cluster.jobs.model import Job

#: A waiting job rises by one priority each time it has waited so long, in seconds: nobody waits for ever.
AGEING_S = 1800


def effective_priority(job: Job, now: float) -> int:
    """The job's own priority, risen with its waiting; `now` in seconds, on the clock of `Job.created_at`.

    That a job is interactive changes nothing here: placement puts those before all others that it has admitted
    (`Snapshot.admitted`), and takes the rest as any other.
    """
    return job.own_priority + max(0, int(now - job.created_at)) // AGEING_S
