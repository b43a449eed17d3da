"""A network's weights on a card, and the host's own copy of them meanwhile. Needs torch."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.devices.emulated import EmulatedDevice, off_card
from pipeline.devices.protocol import Device


class PlacedWeights:
    """While in force, all weights of a network are on the card; afterwards the host's tensors are back in their place.

    The very same tensors, whatever they were rounded to on the card: rendering changes no weight, so nothing is copied
    back, no host memory is taken anew for what was evicted, and weights that are a mapped file stay one.
    """

    def __init__(self, network: nn.Module, device: Device, dtype: torch.dtype | None = None) -> None:
        """Copy the weights to the card and count them there; rounded to `dtype`, where it is given.

        Raises `torch.OutOfMemoryError` where they do not fit; nothing of them is on the card then.
        """
        self._network = network
        self._device = device
        self._dtype = dtype
        # Tensors themselves beside their copies: an id may be used again, a tensor that is kept may not.
        with off_card():
            self._host = [(tensor, tensor.data) for tensor in tensors_of(network) if self._is_on_host(tensor)]
        try:
            if isinstance(device, EmulatedDevice):
                device.put_on(network, dtype)
            else:
                for tensor in tensors_of(network):
                    there = tensor.data.to(device.torch_device, non_blocking=tensor.data.is_pinned())
                    # On the card, one after the other: the host would take seconds to round them.
                    tensor.data = there.to(self._there(tensor))
                    del there
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Take the weights off the card; an emulated card no longer counts them. Ending again changes nothing."""
        kept = {id(tensor): host for tensor, host in self._host}
        self._host = []
        for tensor in tensors_of(self._network):
            host = kept.get(id(tensor))
            if host is not None and tensor.dtype in (host.dtype, self._there(host)) and host.shape == tensor.shape:
                tensor.data = host
            elif isinstance(self._device, EmulatedDevice):
                with off_card():
                    tensor.data = tensor.data.clone()
            else:
                # Made on the card, as a benchmark's random weights are, or laid on while the network was there.
                tensor.data = tensor.data.to("cpu")

    def _there(self, tensor: torch.Tensor) -> torch.dtype:
        """What a tensor of the host is on the card."""
        return self._dtype if self._dtype and tensor.is_floating_point() else tensor.dtype

    def _is_on_host(self, tensor: torch.Tensor) -> bool:
        return isinstance(self._device, EmulatedDevice) or tensor.device.type == "cpu"


def tensors_of(network: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each once."""
    return [*network.parameters(), *network.buffers()]
