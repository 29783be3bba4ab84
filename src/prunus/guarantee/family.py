"""The networks that one method makes of a model, by how much every layer keeps."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prunus.calibration.reasons import listed
from prunus.calibration.select import prunable
from prunus.modes import copied
from prunus.weights import weight_at

__all__ = ["EdgeFamily", "Family", "magnitude_family"]


@runtime_checkable
class Family(Protocol):
    """A pruning method with its counts left open.

    Attributes:
        sizes: {name: units that can be kept}, of layers or of groups of nodes.
        smallest: {name: units that are always kept}.
        step: counts are multiples of this, or whole.
        method: the method in words.
    """

    @property
    def sizes(self) -> Mapping[str, int]: ...

    @property
    def smallest(self) -> Mapping[str, int]: ...

    @property
    def step(self) -> int: ...

    @property
    def method(self) -> str: ...

    def network(self, kept: Mapping[str, int]) -> nn.Module:
        """The pruned network; names left out stay whole. Valid until the next call."""
        ...

    def cost(self, kept: Mapping[str, int]) -> float:
        """What is kept, in single weights; of a network whose other names stay whole."""
        ...


class EdgeFamily:
    """Single weights removed from layers that are pruned independently of each other."""

    step = 1

    def __init__(
        self,
        model: nn.Module,
        sizes: Mapping[str, int],
        make: Callable[[str, int], tuple[Tensor, Tensor | None]],
        *,
        method: str,
        smallest: Mapping[str, int] | None = None,
    ) -> None:
        """A family over a copy of `model`.

        Args:
            model: the dense network.
            sizes: weights of each layer.
            make: new weight matrix, and bias (None: as it was), of a layer that keeps so many.
            method: in words.
            smallest: weights that are kept at least; none where None.
        """
        self.sizes: Mapping[str, int] = dict(sizes)
        self.smallest: Mapping[str, int] = dict(smallest or dict.fromkeys(sizes, 0))
        self.method = method
        self._make = make
        self._model = copied(model)
        self._whole = {name: self._parts(name) for name in sizes}
        self._now = dict(self.sizes)

    def _parts(self, name: str) -> tuple[Tensor, Tensor | None]:
        weight = weight_at(self._model, name)
        bias = weight.bias()
        return weight.matrix().clone(), None if bias is None else bias.clone()

    def network(self, kept: Mapping[str, int]) -> nn.Module:
        """The copy with these counts; valid until the next call."""
        for name, size in self.sizes.items():
            count = kept.get(name, size)
            if count == self._now[name]:
                continue
            matrix, bias = self._whole[name]
            if count < size:
                matrix, moved = self._make(name, count)
                bias = bias if moved is None else moved
            weight_at(self._model, name).put(matrix, bias)
            self._now[name] = count
        return self._model

    def cost(self, kept: Mapping[str, int]) -> float:
        """Number of weights kept."""
        return float(sum(kept.get(name, size) for name, size in self.sizes.items()))


def magnitude_family(model: nn.Module) -> EdgeFamily:
    """The largest weights of every layer that can be pruned; ties go to the lower index.

    Raises:
        ValueError: the model has no such layer, or NaN or infinite weights.
    """
    found, refused = prunable(model)
    if not found:
        reasons = listed(refused) or "none has weights"
        raise ValueError(f"The model has no layer to prune ({reasons}).")
    weights = {name: weight.layer().weight for name, weight in found.items()}
    order = {
        name: w.abs().flatten().argsort(descending=True, stable=True) for name, w in weights.items()
    }

    def make(name: str, count: int) -> tuple[Tensor, None]:
        kept = torch.zeros(weights[name].numel(), dtype=torch.bool, device=weights[name].device)
        kept[order[name][:count]] = True
        return weights[name] * kept.reshape(weights[name].shape), None

    sizes = {name: w.numel() for name, w in weights.items()}
    return EdgeFamily(model, sizes, make, method="magnitude")
