"""`nn.MultiheadAttention`: its projections are raw parameters, used inside one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.ambient import unfused
from prunus.views.linear import LinearView
from prunus.views.protocol import Matrix

__all__ = ["AttentionView", "StackedView"]

ROLES = ("query", "key", "value")
ACROSS = (
    "it attends from one sequence to another, and one parameter holds the projections of both, so "
    "that one set of statistics does not describe its inputs. Use a recipe without statistics"
)


@dataclass(frozen=True)
class StackedView(LinearView):
    """Several projections stacked in rows, each with inputs of its own, given side by side."""

    parts: int = 3

    def vectors(self, module: Any, inputs: Tensor) -> Tensor:
        return inputs.reshape(-1, self.parts, inputs.shape[-1] // self.parts)


@dataclass(frozen=True)
class AttentionView:
    """The projections of query, key and value (together, or one by one), and of the output.

    `in_proj_weight` is read as three groups of rows, as a grouped convolution is: the query's, the
    key's and the value's inputs have a Gram matrix each. That needs attention of a sequence to
    itself; between two sequences the projections of keys and values read another one. What the
    output projection reads is worked out once more, with the unit matrix in its place.
    """

    holds_width: ClassVar[bool] = True  # `embed_dim`, which torch holds its inputs against

    def matrices(self, module: nn.MultiheadAttention) -> Sequence[Matrix]:
        bias = None if module.in_proj_bias is None else "in_proj_bias"
        if module.in_proj_weight is not None:
            projections = [
                Matrix(
                    parameter="in_proj_weight",
                    view=StackedView(),
                    bias=bias,
                    groups=3,
                    inputs=_all_three,
                    unseen=ACROSS,
                    alone=False,
                    on_request=True,
                )
            ]
        else:
            width = module.embed_dim
            projections = [
                Matrix(
                    parameter=f"{role[0]}_proj_weight",
                    view=LinearView(),
                    bias=bias,
                    rows=slice(i * width, (i + 1) * width),
                    inputs=_one(role),
                    alone=False,
                    on_request=True,
                )
                for i, role in enumerate(ROLES)
            ]
        out = Matrix(
            parameter="out_proj.weight",
            view=LinearView(),
            bias=None if module.out_proj.bias is None else "out_proj.bias",
            inputs=_attended,
            alone=False,
            on_request=True,
        )
        return [*projections, out]


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any], role: str) -> Tensor:
    place = ROLES.index(role)
    found: Tensor = args[place] if len(args) > place else kwargs[role]
    return found


def _samples_first(module: nn.MultiheadAttention, inputs: Tensor) -> Tensor:
    return inputs if module.batch_first or inputs.ndim < 3 else inputs.transpose(0, 1)


def _all_three(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """Query, key and value side by side, or None where they are of two sequences."""
    query, key, value = (_given(args, kwargs, role) for role in ROLES)
    if query.shape != key.shape or not any(one is query for one in (key, value)):
        return None
    return _samples_first(module, torch.cat([query, key, value], dim=-1))


def _one(role: str) -> Callable[..., Tensor]:
    def inputs(
        module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        return _samples_first(module, _given(args, kwargs, role))

    return inputs


class _Direct(nn.Module):
    """Runs a module's forward without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def _attended(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """What the heads give, side by side, before the output projection."""
    weight = module.out_proj.weight
    unit = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    swapped = {"module.out_proj.weight": unit}
    if module.out_proj.bias is not None:
        swapped["module.out_proj.bias"] = torch.zeros_like(module.out_proj.bias)
    with unfused(module), torch.no_grad():
        output = functional_call(_Direct(module), swapped, args, dict(kwargs))
    found: Tensor = _samples_first(module, output[0])
    return found
