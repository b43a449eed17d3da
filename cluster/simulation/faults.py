"""What goes wrong in a simulated farm, at its time, and how everything is made whole again."""

from __future__ import annotations

import random
from functools import partial

from cluster.simulation.dispatchers import Dispatchers
from cluster.simulation.journal import What
from cluster.simulation.scenario import Fault, Trouble
from cluster.simulation.world import RESTART_S, SimulatedCard, SimulatedRenderer, World


class Faults:
    """Puts the scenario's faults into cards, dispatchers and the store, and heals them."""

    def __init__(self, world: World, dispatchers: Dispatchers, rng: random.Random) -> None:
        self._world, self._scenario, self._loop = world, world.scenario, world.loop
        self._dispatchers, self._rng = dispatchers, rng

    def begin(self) -> None:
        """Let everything go wrong that the scenario has, each at its time."""
        for fault in self._scenario.faults:
            self._world.at(fault.at, partial(self._strike, fault))

    def _strike(self, fault: Fault) -> None:
        match fault.what:
            case Trouble.NODE_LOST | Trouble.NODE_SILENT:
                how = "lost" if fault.what is Trouble.NODE_LOST else "silent"
                for one in self._world.cards.values():
                    if one.plan.node == fault.target and not one.away:
                        one.end(how, fault.seconds + self._rng.uniform(2, RESTART_S))
            case Trouble.DISPATCHER_KILLED:
                for process in self._world.dispatchers:
                    self._dispatchers.kill(process)
                self._loop.call_later(self._rng.uniform(2, 12), self._dispatchers.start_if_none)
            case Trouble.ROLLING_UPDATE:
                before = self._dispatchers.alive
                self._dispatchers.start()
                for process in before:
                    self._loop.call_later(self._rng.uniform(0.1, 12), self._dispatchers.retire, process)
            case Trouble.STORE_OUT:
                self._dispatchers.set_store(out=True)
                self._loop.call_later(fault.seconds, partial(self._dispatchers.set_store, out=False))
            case _:
                card = self._world.cards[fault.target]
                self._strike_card(fault, card)
                if card.renderer is not None:
                    self._strike_renderer(fault, card, card.renderer)

    def _strike_card(self, fault: Fault, card: SimulatedCard) -> None:
        match fault.what:
            case Trouble.FOREIGN:
                card.take_foreign(int(card.plan.usable_bytes * self._rng.uniform(0.2, 0.7)))
                self._loop.call_later(fault.seconds, card.take_foreign, 0)
            case Trouble.BROKEN:
                card.broken = True
                self._loop.call_later(fault.seconds, setattr, card, "broken", False)

    def _strike_renderer(self, fault: Fault, card: SimulatedCard, renderer: SimulatedRenderer) -> None:
        match fault.what:
            case Trouble.CRASH:
                card.end("died", self._rng.uniform(2, RESTART_S))
            case Trouble.SPOT:
                renderer.draining = True
                self._world.note(What.CLOSED, card=card.name, detail="spot")
                self._loop.call_later(fault.seconds, self._take_spot, card)
            case Trouble.PARTITION | Trouble.PARTITION_DEAF if not renderer.cut:
                renderer.cut_off(deaf=fault.what is Trouble.PARTITION_DEAF)
                self._loop.call_later(fault.seconds, renderer.reconnect)
            case Trouble.HANG:
                renderer.hangs = True
                # Somebody looks after it in the end.
                self._loop.call_later(2 * self._scenario.timing.stall_s, self._restart, card, renderer)

    @staticmethod
    def _take_spot(card: SimulatedCard) -> None:
        if card.renderer is not None and card.renderer.draining:
            card.end("lost", 20.0)

    @staticmethod
    def _restart(card: SimulatedCard, renderer: SimulatedRenderer) -> None:
        if card.renderer is renderer:
            card.end("died", RESTART_S)

    def heal(self) -> None:
        """Everything is whole from here on, but for what ends by itself: hanging threads and foreign memory."""
        self._dispatchers.set_store(out=False)
        for card in self._world.cards.values():
            if card.renderer is None:
                card.away = False
                card.start()
            else:
                if card.renderer.draining:
                    self._world.note(What.OPENED, card=card.name)
                card.renderer.draining = False
                card.renderer.reconnect()
            if card.foreign_bytes:
                card.take_foreign(0)
            card.broken = False
            if card.renderer is not None and card.renderer.hangs:
                card.end("died", RESTART_S)
        self._dispatchers.heal()
        self._world.note(What.HEALED)
