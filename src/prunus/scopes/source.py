"""The inputs of layers in a dense network and in the one that is being pruned, pass by pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from prunus.calibration.batches import to_device
from prunus.calibration.padding import Layout, Padding, padding_of
from prunus.hints import Batch
from prunus.scopes.replay import Replay, Seen

__all__ = ["Pass", "Replayed", "Source", "pass_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Pass:
    """What some layers saw of one part of the data.

    Attributes:
        padding: positions to leave out, or None.
        dense: the inputs of each layer's calls in the dense network.
        pruned: those in the network that is being pruned; None where all statistics are dense.
        outputs: what the layers answered, in the network that is being pruned where there is one;
            empty where outputs were not asked for.
    """

    padding: Padding | None
    dense: Mapping[str, Sequence[Tensor]]
    pruned: Mapping[str, Sequence[Tensor]] | None
    outputs: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """What yields the kept inputs of scopes; the network's own code, or one that reads folders.

    Layers are asked for in order of execution, all of a scope together. Between two scopes
    `changed` names the parameters that are new. Asking in another order is allowed, and costs
    more.
    """

    @property
    def paired(self) -> bool:
        """True where inputs come from the dense network and from the one that is being pruned."""
        ...

    def passes(self, names: Sequence[str], *, outputs: bool = False) -> Iterator[Pass]:
        """The inputs (and outputs) of some layers, with all weights as they are now."""
        ...

    def changed(self, parameters: Sequence[str]) -> None:
        """These parameters of the network that is being pruned have new values."""
        ...


@dataclass(frozen=True, eq=False)
class Replayed:
    """Any network: its forward passes are resumed where they stopped.

    Attributes:
        dense: the passes of the dense network.
        pruned: those of the network that is being pruned, or None.
        parts: the data.
        device: where the networks live.
        layout: how the rows of its layers lie, for the padding.
    """

    dense: Replay
    pruned: Replay | None
    parts: Sequence[Batch]
    device: torch.device
    layout: Layout = field(default_factory=Layout)

    @property
    def paired(self) -> bool:
        """True where there is a network that is being pruned."""
        return self.pruned is not None

    def passes(self, names: Sequence[str], *, outputs: bool = False) -> Iterator[Pass]:
        """The inputs (and outputs) of some layers, part by part."""
        for i, part in enumerate(self.parts):
            padding = padding_of(to_device(part, self.device), self.layout)
            dense = self.dense.seen(i, names, outputs=outputs and self.pruned is None)
            pruned = None
            if self.pruned is not None:
                pruned = self.pruned.seen(i, names, outputs=outputs)
            yield pass_of(names, padding, dense, pruned)

    def changed(self, parameters: Sequence[str]) -> None:
        """What ran before the modules that hold these need not run again."""
        if self.pruned is not None:
            self.pruned.changed(parameters)


def pass_of(
    names: Sequence[str], padding: Padding | None, dense: Seen, pruned: Seen | None
) -> Pass:
    """What was seen, or a ValueError where the two networks' calls do not make pairs."""
    if pruned is None:
        return Pass(padding=padding, dense=dense.inputs, pruned=None, outputs=dense.outputs)
    for name in names:
        shapes = [[tuple(x.shape) for x in own.inputs[name]] for own in (dense, pruned)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Layer {name!r} sees inputs of shapes {shapes[0]} in the dense network and "
                f"{shapes[1]} in the pruned one, so that they do not go together in pairs. Use "
                f"inputs='dense', or exclude it."
            )
    return Pass(padding=padding, dense=dense.inputs, pruned=pruned.inputs, outputs=pruned.outputs)
