"""Cross-attention over a context of one token: its weight is 1 whoever asks, so the result is a constant.

The network of SVD sees its picture as one embedding. What it would ask (normed hidden states, queries, keys) does not
matter, and what every pixel gets is `to_out(to_v(embedding))`: computed once a clip, added everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from pipeline.models.hooks.kept import KeptByConditions, before_evaluations
from pipeline.models.hooks.rounding import REPEATED


@contextmanager
def one_token_attention(network: nn.Module, *, ahead: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Inside, no cross-attention of `network`, a diffusers UNet, looks at anything but its context.

    `network` must be called with the keyword `encoder_hidden_states` (rows, 1, dim); constants are kept for as long as
    it is given the very same tensor, or two of them in turn. So whatever changes weights is laid on before and taken
    off after. Raises `ValueError`, from the evaluation, for a context of several tokens.

    `ahead`: asked before each evaluation whether constants are computed then, and not by the layer that needs them
    first, so that compiled layers find them; they round as compiled layers may. All weights must be where they compute.
    """
    constants = _Constants(ahead)
    laid: list[nn.Module] = []
    attentions: list[Any] = []
    blocks: Iterable[Any] = network.modules()
    try:
        for block in blocks:
            attention: Any = getattr(block, "attn2", None)
            # Not of a class derived from it: that one may compute something else.
            if type(attention) is Attention:
                attentions.append(attention)
                # By its class, and not by a function set on the object: compiled blocks are for that very function,
                # and so one would be compiled for each of the layers that are alike.
                attention.__class__ = _ConstantAttention
                constants.add(attention)
                laid.append(block.norm2)
                # What it would make is not looked at. Set on the object, where it hides the class's method.
                block.norm2.forward = _unchanged
        with before_evaluations(network, constants.begin):
            yield
    finally:
        for attention in attentions:
            attention.__class__ = Attention
        for module in laid:
            module.__dict__.pop("forward", None)
        constants.forget()


class _Constants:
    """What each attention gives, by context. Holds tensors only between `begin` and `forget`."""

    def __init__(self, ahead: Callable[[], bool]) -> None:
        self._kept = KeptByConditions(["encoder_hidden_states"])
        self._ahead = ahead
        self._were_ahead = False
        self._attentions: list[Any] = []

    def add(self, attention: _ConstantAttention) -> None:
        """Have `attention` find its constants here."""
        # Not as attributes of a module: torch would look for them among its parameters at every call.
        attention.__dict__.update(one_token_constants=self, one_token_given=None)
        self._attentions.append(attention)

    def begin(self, kwargs: Mapping[str, Any]) -> None:
        """Before an evaluation: its context becomes the first of the kept ones."""
        context = kwargs["encoder_hidden_states"]
        if context.shape[1] != 1:
            raise ValueError(f"attention over {context.shape[1]} tokens is no constant")
        if self._were_ahead and not self._ahead():
            # Of so many rows as no layer is given: eager layers would be others than without compiling.
            self._let_go()
        self._kept.begin(kwargs)
        if self._ahead():
            self._were_ahead = True
            spread = context.repeat_interleave(REPEATED, dim=0)
            for attention in self._attentions:
                attention.__dict__["one_token_given"] = self.of(attention, spread)

    def of(self, attention: Any, spread: torch.Tensor) -> torch.Tensor:
        """(rows, 1, dim): what `attention` gives to all that belongs to each row of the context.

        `spread` (rows × n, 1, dim): the context, each row n times.
        """

        def make() -> torch.Tensor:
            # All of it, and the second product on several copies: so both round as in the stock network.
            values = attention.to_v(spread)[:: spread.shape[0] // self._kept.rows]
            made: torch.Tensor = attention.to_out[0](values.repeat(1, REPEATED, 1))[:, :1].clone()
            return made

        return self._kept.of(attention, make)

    def _let_go(self) -> None:
        self._kept.forget()
        self._were_ahead = False
        for attention in self._attentions:
            attention.__dict__["one_token_given"] = None

    def forget(self) -> None:
        """Let go of all tensors, and of the layers."""
        self._kept.forget()
        for attention in self._attentions:
            for name in ("one_token_constants", "one_token_given"):
                attention.__dict__.pop(name, None)
        self._attentions.clear()


class _ConstantAttention(Attention):
    """An attention whose result is a constant."""

    one_token_constants: _Constants
    #: What it gives in this evaluation, where that was computed ahead of it.
    one_token_given: torch.Tensor | None

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        """Shaped like `hidden_states`, whose rows are those of the context, each as often as it has frames or pixels.

        A view: rows are there, tokens are not.
        """
        given = self.one_token_given
        if given is None:
            given = self.one_token_constants.of(self, encoder_hidden_states)
        rows = given.repeat_interleave(hidden_states.shape[0] // given.shape[0], dim=0)
        return rows.expand(-1, hidden_states.shape[1], -1)


def _unchanged(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states
