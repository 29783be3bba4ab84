"""A prunable weight seen as a matrix W (out × in), with the statistics of its inputs."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import finite
from prunus.views import ConvView, LinearView, View, batched, matrices_of, register_view, view_of

__all__ = [
    "ConvView",
    "Layer",
    "LinearView",
    "View",
    "batched",
    "checked_scores",
    "layer_from",
    "layer_of",
    "register_view",
    "view_of",
]

Statistic = Tensor | None
PANEL = 128  # columns below which splitting a product gains nothing
# Statistics with one entry per convolution group.
PER_GROUP = ("gram", "mean", "diag", "cross", "dense_gram", "dense_mean", "max", "zeros")


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One prunable weight as a matrix, with what calibration knows of its inputs.

    For a convolution `in` is channels × taps and the inputs are its patches; a grouped one has
    one set of statistics per convolution group, stacked along a first axis.

    Attributes:
        name: of the module, or the parameter's path; see `prunus.weights`.
        weight: W (out, in).
        bias: (out,) or None.
        groups: number of convolution groups; 1 for everything else.
        taps: kernel entries per input channel; 1 for a linear layer.
        gram: E[x xᵀ] over samples and positions, float64, (in, in) or (groups, in, in).
        mean: E[x], float64, (in,) or (groups, in).
        diag: E[x²], float64, (in,) or (groups, in).
        cross: E[x_dense xᵀ], shaped as `gram`, where the inputs come from a pruned model.
        dense_gram: E[x_dense x_denseᵀ], shaped as `gram`, beside `cross`.
        dense_mean: E[x_dense], shaped as `mean`, beside `cross`.
        max: max |x|, (in,) or (groups, in).
        zeros: share of inputs that are exactly 0, (in,) or (groups, in).
        grad: E[∂L/∂W] over samples, (out, in), sign kept.
        sensitivity: E Σ_o (∂F_o/∂W)² over samples, summed over the outputs o, (out, in).
        hessian_grad: H g, Hessian times gradient of the mean loss, logits over 200, (out, in).
        flow: ∂R/∂|W| of the flow R along all paths, (out, in).
        samples: number of input vectors averaged (samples × positions).
        producer: the layer whose outputs feed this one, where exactly one does.
    """

    name: str
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None = None
    groups: int = 1
    taps: int = 1
    gram: Statistic = None
    mean: Statistic = None
    diag: Statistic = None
    cross: Statistic = None
    dense_gram: Statistic = None
    dense_mean: Statistic = None
    max: Statistic = None
    zeros: Statistic = None
    grad: Statistic = None
    sensitivity: Statistic = None
    hessian_grad: Statistic = None
    flow: Statistic = None
    samples: int = 0
    producer: "Layer | None" = None

    def blocks(self) -> list["Layer"]:
        """One layer per convolution group, with its own rows and statistics; views, no copies."""
        if self.groups == 1:
            return [self]
        rows = self.weight.shape[0] // self.groups

        def block(g: int) -> Layer:
            own = slice(g * rows, (g + 1) * rows)
            changes: dict[str, Any] = {"weight": self.weight[own], "groups": 1}
            for name in ("bias", "grad", "sensitivity", "hessian_grad", "flow"):
                values = getattr(self, name)
                changes[name] = None if values is None else values[own]
            for name in PER_GROUP:
                values = getattr(self, name)
                changes[name] = None if values is None else values[g]
            return replace(self, **changes)

        return [block(g) for g in range(self.groups)]

    def power(self) -> Float[Tensor, "#out in"]:
        """E[x²] of every weight's input, float64: (1, in), or (out, in) for a grouped convolution.

        Raises:
            ValueError: neither the Gram matrix nor its diagonal was collected.
        """
        diag = self.diag
        if diag is None and self.gram is not None:
            diag = self.gram.diagonal(dim1=-2, dim2=-1)
        if diag is None:
            raise ValueError(
                f"Layer {self.name!r} has no statistics `diag` or `gram`, which this method needs. "
                f"Pass data, or calibrate with statistics=('diag',)."
            )
        if self.groups == 1:
            return diag[None]
        return diag.repeat_interleave(self.weight.shape[0] // self.groups, dim=0)

    def require(self, *statistics: str) -> None:
        """Raise a ValueError that names this layer and the first statistic it lacks."""
        for name in statistics:
            if getattr(self, name) is None:
                raise ValueError(
                    f"Layer {self.name!r} has no statistic {name!r}, which this method needs. "
                    f"Pass data, or calibrate with statistics=({name!r},)."
                )


def layer_of(name: str, module: Any) -> Layer:
    """The layer of a module with one weight, without statistics; nothing is copied.

    Raises:
        ValueError: the weight has a NaN or an infinity; the layer is named.
    """
    sources = matrices_of(module)
    if len(sources) != 1 or "." in sources[0].parameter:
        raise ValueError(f"Layer {name!r} is a {type(module).__name__}, which has no weight view.")
    source = sources[0]
    return layer_from(
        name,
        source.view.matrix(module, getattr(module, source.parameter).detach()),
        None if source.bias is None else getattr(module, source.bias).detach(),
        groups=source.groups,
        taps=source.taps,
    )


def layer_from(
    name: str,
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    *,
    groups: int = 1,
    taps: int = 1,
    path: str | None = None,
) -> Layer:
    """A layer without statistics.

    Raises:
        ValueError: the weight or the bias has a NaN or an infinity; the layer is named.
    """
    finite(path or f"{name}.weight".lstrip("."), weight, "Retrain or reload the model.")
    if bias is not None:
        finite(f"{name}.bias".lstrip("."), bias, "Retrain or reload the model.")
    return Layer(name=name, weight=weight, bias=bias, groups=groups, taps=taps)


def checked_scores(name: str, scores: Any, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """A score's answer, or an error that names the layer."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != tuple(shape):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"The score of layer {name!r} must be a tensor of shape {tuple(shape)}, got {given}."
        )
    if bool(torch.isnan(scores).any()):
        raise ValueError(
            f"The score of layer {name!r} is NaN in {int(torch.isnan(scores).sum())} of "
            f"{scores.numel()} places. Check the score and the data."
        )
    return scores.detach()


def squeeze_groups(values: Tensor, groups: int) -> Tensor:
    """Statistics stacked per convolution group; a single group loses its axis."""
    return values[0] if groups == 1 else values


def add_second_moment(
    total: Float[Tensor, "groups in in"], vectors: Float[Tensor, "positions groups in"]
) -> None:
    """Add Σ x xᵀ over positions to the upper triangle of `total`, in place.

    Panels on and right of the diagonal are 5/8 of the work of the whole product. What stands
    below the diagonal has no meaning until `mirror` fills it.
    """
    groups, width = total.shape[:2]
    if groups > 1:  # many small products: all in one call
        by_group = vectors.transpose(0, 1)
        total.baddbmm_(by_group.transpose(1, 2), by_group)
        return
    step = max(PANEL, -(-width // 4))
    for start in range(0, width, step):
        panel, rest = vectors[:, 0, start : start + step], vectors[:, 0, start:]
        total[0, start : start + step, start:].addmm_(panel.T, rest)


def mirror(total: Float[Tensor, "groups in in"]) -> Float[Tensor, "groups in in"]:
    """The symmetric matrices whose upper triangles `add_second_moment` has summed."""
    upper = total.triu()
    return upper + upper.transpose(1, 2) - torch.diag_embed(upper.diagonal(dim1=1, dim2=2))
