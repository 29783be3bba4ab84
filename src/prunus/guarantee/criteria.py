"""What two networks really give: their outputs on the data, each in its own dtype."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration import Calibration
from prunus.calibration.batches import Batches, call, first_of, parts, size_of
from prunus.calibration.forward import tensor_of
from prunus.calibration.place import device_of
from prunus.hints import Batch
from prunus.inputs import arguments, mapped
from prunus.modes import evaluating
from prunus.rng import generator_for

__all__ = [
    "Outputs",
    "dtype_of",
    "float_inputs",
    "outputs_of",
    "sampled",
    "size_of_all",
    "split",
]

PIECE = 64  # rows of a piece of the data, which is not split further


class Outputs:
    """The outputs of a network on a sample, to compare pruned networks with.

    Attributes:
        dense: outputs of the dense network, a row per sample, float64.
        samples: how many.
        scale: root mean square of the dense outputs' norm.
    """

    def __init__(self, model: nn.Module, batches: list[Batch]) -> None:
        """Runs the dense network once.

        Raises:
            ValueError: an output is NaN or infinite, or the batches do not fit the model.
        """
        self._batches = batches
        self._dtype = dtype_of(model)
        self.dense = self.of(model)
        if not bool(torch.isfinite(self.dense).all()):
            raise ValueError(
                "The network's outputs on the data are NaN or infinite. Check the data."
            )
        self.samples = len(self.dense)
        self.scale = float(self.dense.square().sum(dim=1).mean().sqrt())

    def of(self, network: nn.Module) -> Tensor:
        """Outputs of a network on the samples, a row each, float64.

        It runs in its own dtype: inputs are rounded to it where it is not the dense network's.
        """
        own = dtype_of(network)
        dtype = None if own == self._dtype else own
        return torch.cat(
            [outputs_of(network, batch, dtype, i) for i, batch in enumerate(self._batches)]
        )

    def square(self, network: nn.Module) -> float:
        """Mean squared gap."""
        value = float((self.of(network) - self.dense).square().sum(dim=1).mean())
        return value if math.isfinite(value) else math.inf

    def changed(self, network: nn.Module) -> int:
        """Predictions that differ.

        Raises:
            ValueError: the network has one output, which predicts no class.
        """
        if self.dense.shape[1] < 2:
            raise ValueError("kind='changed' counts predicted classes, the network has one output.")
        moved = self.of(network).argmax(dim=1) != self.dense.argmax(dim=1)
        return int(moved.sum())


def dtype_of(network: nn.Module) -> torch.dtype:
    """The floating-point dtype of a network's parameters, the first where there are several."""
    found = (p.dtype for p in network.parameters() if p.is_floating_point())
    return next(found, torch.get_default_dtype())


def outputs_of(
    network: nn.Module, batch: Batch, dtype: torch.dtype | None = None, number: int = 0
) -> Tensor:
    """Outputs of a network on one batch, a row per sample, float64 on the CPU.

    Args:
        network: runs in evaluation mode, on its device.
        batch: stays as it is, also where the network writes into its input.
        dtype: to round floating-point inputs to; None leaves them.
        number: of the batch, among its data.
    """
    where = device_of(network)

    def own(tensor: Tensor) -> Tensor:
        rounded = dtype if tensor.is_floating_point() else None
        return tensor.detach().to(where, rounded or tensor.dtype, copy=True)

    with evaluating(network), torch.no_grad():
        output = tensor_of(call(network, mapped(own, batch), number)).detach().cpu().double()
    return output.flatten(1) if output.ndim > 1 else output[:, None]


def sampled(data: Any, largest: int) -> list[Any]:
    """The first `largest` samples of the data, as batches.

    Raises:
        ValueError: the data are empty, or a Calibration.
    """
    if isinstance(data, Calibration):
        raise ValueError(
            "`data` must be the inputs themselves, got a Calibration, which holds their statistics "
            "alone. Pass batches."
        )
    found, count = list[Any](), 0
    for batch in Batches(data):
        for part in parts(batch):
            part = first_of(part, largest - count)
            found.append(part)
            count += size_of(part) or 1
            if count >= largest:
                return found
    return found


def split(batches: list[Batch], first: int) -> tuple[list[Any], list[Any]]:
    """At most `first` samples drawn at random whatever their values, in pieces, and the rest."""
    total = size_of_all(batches)
    rows = max(1, min(PIECE, total // 16))
    pieces = [piece for batch in batches for piece in parts(batch, rows)]
    order = torch.randperm(len(pieces), generator=generator_for(0, "split")).tolist()
    one, other, count = [], [], 0
    for place in order:
        size = size_of(pieces[place]) or 1
        if count + size <= first:
            one.append(pieces[place])
            count += size
        else:
            other.append(pieces[place])
    return one, other


def size_of_all(batches: list[Batch]) -> int:
    """Number of samples in all batches."""
    return sum(size_of(batch) or 1 for batch in batches)


def float_inputs(batches: list[Batch]) -> Tensor | None:
    """The inputs of all batches as one tensor; None where an input is no single float tensor."""
    rows: list[Tensor] = []
    for batch in batches:
        args, kwargs = arguments(batch)
        given = [*args, *kwargs.values()]
        if len(given) != 1 or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
            return None
        rows.append(given[0].detach().cpu())
    return torch.cat(rows) if rows else None
