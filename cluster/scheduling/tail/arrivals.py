"""A plan while clips come one by one. Prototype."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.scheduling.tail.schedule import Piece, Place, Schedule, Task, play

P = {"share": 0.3, "costs": 5.0, "order": "spt", "eps": 0.03, "boosts": 20, "mean": 0.15, "mcosts": 5.0}


class Forward:
    def __init__(self, tasks: Sequence[Task], places: Sequence[Place], order, boosted) -> None:
        self.tasks, self.places, self.order, self.boosted = tasks, places, order, boosted
        self.n = len(tasks)
        self.left = [t.steps for t in tasks]
        self.on = [None] * len(places)
        self.free = [p.free_s for p in places]
        self.loaded = [p.family for p in places]
        self.begin = [0.0] * self.n
        self.end = [math.inf] * self.n
        self.where = [None] * self.n
        self.begun = [t.begun for t in tasks]
        self.done = [False] * self.n
        self.ready = [0.0] * self.n
        self.pieces: list[list] = []
        self.last_piece = [None] * self.n
        for i, t in enumerate(tasks):
            if t.at is not None:
                self.loaded[t.at] = t.family
                self._open(i, t.at, self.free[t.at])

    def _open(self, i, p, start):
        t, k = self.tasks[i], self.places[p].kind
        self.on[p], self.where[i], self.begin[i] = i, p, start
        self.end[i] = start + self.left[i] * t.step_s[k] + t.end_s[k]
        self.free[p] = self.end[i]
        self.loaded[p] = t.family
        self.last_piece[i] = len(self.pieces)
        self.pieces.append([i, p, self.left[i]])
        self.begun[i] = True

    def boundary(self, i, now):
        """(time, steps done) at which running i can leave."""
        t, p = self.tasks[i], self.where[i]
        s = t.step_s[self.places[p].kind]
        if now <= self.begin[i] + 1e-9:
            return self.begin[i], 0
        d = math.ceil((now - self.begin[i]) / s - 1e-6)
        return self.begin[i] + d * s, d

    def start_on(self, i, q, est):
        """(start, steps left) of i on q free at est."""
        t = self.tasks[i]
        load = t.warm_s if self.loaded[q] == t.family else t.cold_s
        if self.where[i] is not None:
            b, d = self.boundary(i, est)
            return max(est + t.arrive_s, b + t.pause_s) + load, self.left[i] - d
        if self.begun[i]:
            return max(est + t.arrive_s, self.ready[i]) + load, self.left[i]
        return est + load, self.left[i]

    def decide(self, now):
        places, tasks = self.places, self.tasks
        est = [max(f, now) for f in self.free]
        taken = [False] * len(places)
        for i in self.order:
            if self.done[i]:
                continue
            t, p = tasks[i], self.where[i]
            # candidates: of each kind/family the one free first
            cand = {}
            for q, pl in enumerate(places):
                if q == p or t.step_s[pl.kind] == math.inf:
                    continue
                e, o, pre = est[q], self.on[q], None
                if o is not None and not taken[q] and i in self.boosted and o not in self.boosted:
                    b, d = self.boundary(o, now)
                    if self.left[o] - d > 0 and b + tasks[o].leave_s < e:
                        e, pre = b + tasks[o].leave_s, o
                key = (pl.kind, self.loaded[q])
                # prefer victims with least left... by latest? choose earliest e; ties: occupant with latest priority
                if key not in cand or (e, pre is not None) < cand[key][:2]:
                    cand[key] = (e, pre is not None, q)
            best = None
            for e, pre, q in cand.values():
                s, l = self.start_on(i, q, e)
                if l <= 0:
                    continue
                k = places[q].kind
                end = s + l * t.step_s[k] + t.end_s[k]
                if best is None or (end, pre) < best[:2]:
                    best = (end, pre, q, s, e)
            if p is not None:
                if best is None:
                    continue
                k0, q = places[p].kind, best[2]
                gain = self.end[i] - best[0]
                cost = t.leave_s + t.arrive_s + t.pause_s
                if gain < max(P["costs"] * cost, P["share"] * (self.end[i] - now)):
                    taken[p] = True
                    continue
                if best[1]:
                    self.evict(q, now)
                elif not (self.on[q] is None and est[q] <= now + 1e-9):
                    est[q] = best[0]
                    taken[q] = True
                    continue
                self.leave(i, now)
                s, l = best[3], self.left[i]
                self._open(i, q, s)
                est[q], est[p] = self.free[q], max(self.free[p], now)
                taken[q] = True
                continue
            if best is None:
                continue
            end, pre, q, s, e = best
            if pre:
                self.evict(q, now)
                self._open(i, q, s)
                est[q] = self.free[q]; taken[q] = True
                continue
            if self.on[q] is None and est[q] <= now + 1e-9:
                self._open(i, q, s)
                est[q] = self.free[q]; taken[q] = True
                continue
            est[q] = end; taken[q] = True
            # meanwhile
            m = None
            for e2, pre2, q2 in cand.values():
                if pre2 or self.on[q2] is not None or e2 > now + 1e-9:
                    continue
                s2, l2 = self.start_on(i, q2, e2)
                k2, k = places[q2].kind, places[q].kind
                prog = max(0.0, math.floor((e - s2) / t.step_s[k2])) * t.step_s[k]
                if m is None or prog > m[0]:
                    m = (prog, q2, s2)
            cost = t.leave_s + t.arrive_s + t.pause_s
            if m and m[0] >= max(P["mcosts"] * cost, P["mean"] * t.seconds(places[q].kind)):
                self._open(i, m[1], m[2])
                est[m[1]] = self.free[m[1]]

    def evict(self, q, now):
        o = self.on[q]
        self.leave(o, now)
        self.ready[o] = self.free[q] - self.tasks[o].leave_s + self.tasks[o].pause_s

    def leave(self, i, now):
        t, p = self.tasks[i], self.where[i]
        b, d = self.boundary(i, now)
        pc = self.pieces[self.last_piece[i]]
        pc[2] = d
        self.left[i] -= d
        self.on[p] = None
        self.where[i] = None
        self.free[p] = b + t.leave_s

    def run(self):
        now = 0.0
        for _ in range(20 * self.n + 10):
            self.decide(now)
            nxt = min((f for f in self.free if f > now + 1e-9), default=None)
            if nxt is None:
                break
            now = nxt
            for p in range(len(self.places)):
                i = self.on[p]
                if i is not None and self.free[p] <= now + 1e-9:
                    self.on[p], self.where[i], self.done[i] = None, None, True
            if all(self.done):
                break
        return tuple(Piece(i, p, s) for i, p, s in self.pieces if s > 0)


def forward(tasks: Sequence[Task], places: Sequence[Place], bound=None) -> Schedule:
    def rem(i):
        return tasks[i].shortest_s
    sign = 1 if P["order"] == "spt" else -1
    base = sorted(range(len(tasks)), key=lambda i: (sign * rem(i), i))
    boosted: list[int] = []
    best = None
    for _ in range(int(P["boosts"]) + 1):
        order = sorted(boosted, key=lambda i: -rem(i)) + [i for i in base if i not in boosted]
        f = Forward(tasks, places, order, set(boosted))
        s = f.run()
        pl = play(s, tasks, places)
        if best is None or pl.makespan_s < best.makespan_s * 0.999:
            best = pl
        if bound is None or pl.makespan_s <= bound * (1 + P["eps"]):
            break
        ends = {}
        for pc, (_, e) in zip(s, pl.times):
            ends[pc.task] = max(ends.get(pc.task, 0), e)
        late = [i for i in sorted(ends, key=lambda i: -ends[i]) if i not in boosted]
        if not late or ends[late[0]] <= bound * (1 + P["eps"]):
            break
        boosted.append(late[0])
    return best.schedule
