"""Which weights, layers and outputs of a masked network still lie on a path through it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.calibration.flow import ones_like_input, path_flow
from prunus.hints import Batch

__all__ = ["Connection", "Disconnected", "connection"]


class Disconnected(RuntimeWarning):
    """Masks leave a layer or an output of a network without a path."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What a set of masks leaves connected.

    Attributes:
        empty_layers: layers without a kept weight.
        dead_layers: layers none of whose kept weights lies on a path from input to output.
        dead_outputs: indices of outputs that no path reaches.
        outputs: number of outputs.
        kept: kept weights of all masked layers.
        live: those of them on a path from input to output.
    """

    empty_layers: tuple[str, ...]
    dead_layers: tuple[str, ...]
    dead_outputs: tuple[int, ...]
    outputs: int
    kept: int
    live: int

    @property
    def collapsed(self) -> bool:
        """True where no path joins input and output, so that training cannot learn anything."""
        return len(self.dead_outputs) == self.outputs

    @property
    def whole(self) -> bool:
        """True where every output is reached and no layer is dead."""
        return not (self.dead_layers or self.dead_outputs)

    def summary(self) -> str:
        """One line."""
        if self.whole:
            return f"connected: {self.live} of {self.kept} kept weights lie on a path"
        said = []
        if self.collapsed:
            said.append("the mask disconnects the network: no path joins input and output")
        elif self.dead_outputs:
            said.append(
                f"{len(self.dead_outputs)} of {self.outputs} outputs have no path from the input"
            )
        if self.empty_layers:
            said.append(f"no weight is kept in {', '.join(self.empty_layers)}")
        said.append(f"{self.live} of {self.kept} kept weights lie on a path")
        return "; ".join(said)


def connection(model: nn.Module, masks: Mapping[str, Tensor], example: Batch) -> Connection:
    """Follow paths through the kept weights.

    Kept weights count as 1 whatever their value, other parameters by their absolute value, biases
    as 0 (an output that only a bias moves is dead). Exact for linear, convolution, pooling, norm
    and ReLU layers.

    Args:
        model: the network.
        masks: {parameter name: True where kept}.
        example: a batch, for the shape of the input.
    """
    # 1/inputs of a unit keeps the flow of a dense network near 1, whatever its width and depth
    ones = {
        name: mask.double() / max(1, mask[0].numel() if mask.ndim > 1 else 1)
        for name, mask in masks.items()
    }
    reached, flow = path_flow(model, ones, ones_like_input(example).to(_device(model)))
    live = {name: (flow[name] > 0) & masks[name].to(flow[name].device) for name in masks}

    def layer(name: str) -> str:
        return name.removesuffix(".weight")

    return Connection(
        empty_layers=tuple(layer(n) for n, mask in masks.items() if not bool(mask.any())),
        dead_layers=tuple(layer(n) for n, on in live.items() if not bool(on.any())),
        dead_outputs=tuple(int(i) for i in (reached <= 0).nonzero()[:, 0]),
        outputs=len(reached),
        kept=sum(int(mask.sum()) for mask in masks.values()),
        live=sum(int(on.sum()) for on in live.values()),
    )


def _device(model: nn.Module) -> torch.device:
    for value in [*model.parameters(), *model.buffers()]:
        return value.device
    return torch.device("cpu")
