"""Parameters that a model's code multiplies by itself, as matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.views.linear import LinearView
from prunus.views.protocol import Matrix

__all__ = ["raw_matrices"]


@dataclass(frozen=True)
class RawView(LinearView):
    """The first axis are rows, as `F.linear` takes a weight; the others are columns."""

    shape: tuple[int, ...] = ()

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        return values.reshape(self.shape[0], -1)

    def parameter(self, module: Any, matrix: Tensor) -> Tensor:
        return matrix.reshape(self.shape)


def _hidden(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Nothing: what code does with a parameter, no call of a module shows."""


def raw_matrices(module: nn.Module) -> list[Matrix]:
    """The parameters of a module, not of those inside it, that its own code may multiply by."""
    own = module.named_parameters(recurse=False)
    return [_raw(name, tuple(p.shape)) for name, p in own if p.ndim > 1 and p.numel()]


def _raw(parameter: str, shape: tuple[int, ...]) -> Matrix:
    return Matrix(
        parameter=parameter,
        view=RawView(shape=shape),
        bias=None,
        inputs=_hidden,
        unseen="the model's code multiplies by it without a layer, so that nothing shows what it "
        "reads; recipes without statistics, as magnitude, prune it",
        alone=False,
        hidden=True,
        on_request=True,
    )
