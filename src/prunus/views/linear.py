"""Linear layers as matrices."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["LinearView"]


@dataclass(frozen=True)
class LinearView:
    """`nn.Linear`, or a module that stores the transposed weight, as Hugging Face's `Conv1D`."""

    transposed: bool = False

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        return values.T if self.transposed else values

    def parameter(self, module: Any, matrix: Tensor) -> Tensor:
        return matrix.T if self.transposed else matrix

    def vectors(self, module: Any, inputs: Tensor) -> Tensor:
        return inputs.reshape(-1, 1, inputs.shape[-1])

    def responses(self, module: Any, outputs: Tensor) -> Tensor:
        return outputs.reshape(-1, 1, outputs.shape[-1])

    def channels(self, module: Any, inputs: Tensor) -> Tensor:
        return inputs
