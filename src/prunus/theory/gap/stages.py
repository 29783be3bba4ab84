"""A network before and after pruning, as a sequence of stages that bounds can follow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from prunus.check import as_float64
from prunus.theory.gap.activations import Activation
from prunus.theory.gap.convolution import Geometry, conv_norm
from prunus.theory.gap.norms import spectral_norm

__all__ = [
    "Branches",
    "LayerNorms",
    "LinearPair",
    "Lipschitz",
    "Pointwise",
    "Stage",
    "apply_linear",
    "bias_shift",
    "check_stages",
    "layer_norms",
    "linear_stages",
    "padded",
    "run",
    "unchanged",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearPair:
    """A linear map before and after pruning; a convolution where `geometry` is given.

    A convolution of sequences (batch, channels, length) is one of images of height 1: its kernel
    is (out, in / groups, 1, taps).

    Attributes:
        name: of the layer.
        weight: W, (out, in), or a kernel (out, in / groups, height, width).
        pruned_weight: V of the same shape.
        bias: b, (out,), or None.
        pruned_bias: c of the same shape, or None.
        geometry: how the kernel meets its images; None for a matrix.
        offsets: (out,), where a batch norm is folded in: the sum of the sizes of all that the
            modules add or subtract, scaled, in the larger of both networks. They may cancel in
            the folded bias, but their rounding does not.
        inner: norms of the rows and sizes of the biases, (out,) each, that the modules have before
            a batch norm that is folded in, in the larger of both networks.
    """

    name: str
    weight: Tensor
    pruned_weight: Tensor
    bias: Tensor | None = None
    pruned_bias: Tensor | None = None
    geometry: Geometry | None = None
    offsets: Tensor | None = None
    inner: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """An activation applied entry by entry."""

    name: str
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class Lipschitz:
    """A map alike in both networks, with a known Lipschitz constant and value 0 at 0.

    Attributes:
        name: for messages; "identity" where the same entries only stand in another shape.
        gain: the Lipschitz constant.
        function: the map on a batch.
        terms: of the longest sum that it computes; 0 where entries are only chosen, moved or
            copied, so that nothing rounds.
    """

    name: str
    gain: float
    function: Callable[[Tensor], Tensor]
    terms: int = 64

    @property
    def moves(self) -> bool:
        """Whether the entries stay what they are."""
        return self.name == "identity"


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Two branches of one value, joined; an empty one is the identity.

    Their sum, where Lipschitz constants and gaps add; or, along `axis`, the shortcut's output
    followed by the branch's, where they are the root of the sum of squares. More than two
    branches nest.

    Attributes:
        name: for messages.
        branch: the second branch.
        shortcut: the first branch.
        axis: along which the two are concatenated (not the batch's 0); None: they are added.
    """

    name: str
    branch: tuple["Stage", ...]
    shortcut: tuple["Stage", ...] = ()
    axis: int | None = None

    def size(self, first: float, second: float) -> float:
        """Norm of the joined value from the norms of the two."""
        return first + second if self.axis is None else math.hypot(first, second)

    def sizes(self, first: Tensor, second: Tensor) -> Tensor:
        """As `size`, for one norm per sample."""
        return first + second if self.axis is None else torch.hypot(first, second)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """The joined value."""
        return first + second if self.axis is None else torch.cat([first, second], dim=self.axis)


Stage = LinearPair | Pointwise | Lipschitz | Branches


@dataclass(frozen=True, kw_only=True)
class LayerNorms:
    """Upper bounds w ≥ ‖W‖, v ≥ ‖V‖, Δ ≥ ‖W − V‖ of one layer."""

    dense: float
    pruned: float
    difference: float


def apply_linear(stage: LinearPair, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """The linear map of a stage on a batch, with the weights given."""
    if stage.geometry is None:
        return F.linear(x, weight, bias)
    shape = stage.geometry
    sequence = x.ndim == 3
    x = padded(shape, x)
    x = F.conv2d(x, weight, bias, shape.stride, 0, shape.dilation, shape.groups)
    return x.squeeze(2) if sequence else x


def padded(shape: Geometry, x: Tensor) -> Float[Tensor, "batch channels height width"]:
    """Images with their border, ready for a kernel; a sequence becomes an image of height 1."""
    x = x[:, :, None] if x.ndim == 3 else x
    (top, bottom), (left, right) = shape.padding
    if not any((top, bottom, left, right)):
        return x
    mode = "constant" if shape.mode == "zeros" else shape.mode
    return F.pad(x, (left, right, top, bottom), mode=mode)


def run(stages: Sequence[Stage], x: Tensor, *, pruned: bool = False) -> Tensor:
    """The network's (or the pruned network's) output on a batch."""
    for stage in stages:
        if isinstance(stage, LinearPair):
            weight = stage.pruned_weight if pruned else stage.weight
            x = apply_linear(stage, weight, stage.pruned_bias if pruned else stage.bias, x)
        elif isinstance(stage, Pointwise):
            x = stage.activation.function(x)
        elif isinstance(stage, Lipschitz):
            x = stage.function(x)
        else:
            first, second = stage.shortcut, stage.branch
            x = stage.join(run(first, x, pruned=pruned), run(second, x, pruned=pruned))
    return x


def linear_stages(stages: Sequence[Stage]) -> list[LinearPair]:
    """All linear maps, those inside residual branches included, in order."""
    found: list[LinearPair] = []
    for stage in stages:
        if isinstance(stage, LinearPair):
            found.append(stage)
        elif isinstance(stage, Branches):
            found += linear_stages(stage.shortcut) + linear_stages(stage.branch)
    return found


def layer_norms(stage: LinearPair) -> LayerNorms:
    """Safe norms of one layer: diagonalised Gram matrices, or frequencies of a convolution."""

    def norm(weight: Tensor) -> float:
        if stage.geometry is None:
            return spectral_norm(weight).value
        return conv_norm(weight, stage.geometry).value

    return LayerNorms(
        dense=norm(stage.weight),
        pruned=norm(stage.pruned_weight),
        difference=norm(stage.weight - stage.pruned_weight),
    )


def bias_shift(stage: LinearPair) -> Tensor | None:
    """b − c, a missing one counted as 0; None where both are missing."""
    if stage.bias is None and stage.pruned_bias is None:
        return None
    zero = torch.zeros(len(stage.weight), dtype=stage.weight.dtype)
    dense = zero if stage.bias is None else stage.bias
    return dense - (zero if stage.pruned_bias is None else stage.pruned_bias)


def check_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with float64 weights, or an error that names the layer.

    Raises:
        ValueError: NaN or infinite weights, or shapes that differ between the two networks.
    """
    checked: list[Stage] = []
    for stage in stages:
        if isinstance(stage, Branches):
            branch, shortcut = check_stages(stage.branch), check_stages(stage.shortcut)
            checked.append(replace(stage, branch=branch, shortcut=shortcut))
        elif isinstance(stage, LinearPair):
            dims = 2 if stage.geometry is None else 4
            fields: dict[str, Tensor | None] = {}
            for field in ("weight", "pruned_weight", "bias", "pruned_bias"):
                value = getattr(stage, field)
                label = f"{stage.name}.{field}"
                expected = dims if "weight" in field else 1
                fields[field] = None if value is None else as_float64(label, value, dims=expected)
            dense, pruned = fields["weight"], fields["pruned_weight"]
            assert dense is not None
            assert pruned is not None
            if dense.shape != pruned.shape:
                raise ValueError(
                    f"layer {stage.name!r} has weights of shape {tuple(dense.shape)} before and "
                    f"{tuple(pruned.shape)} after pruning. Certify the masked, not the compacted "
                    f"network."
                )
            checked.append(replace(stage, **fields))  # type: ignore[arg-type]
        else:
            checked.append(stage)
    return tuple(checked)


def unchanged(pair: LinearPair) -> bool:
    """Whether a layer is the same in both networks; a missing bias counts as 0."""
    same = torch.equal(pair.weight, pair.pruned_weight)
    if pair.bias is None or pair.pruned_bias is None:
        return same and all(b is None or not bool(b.any()) for b in (pair.bias, pair.pruned_bias))
    return same and torch.equal(pair.bias, pair.pruned_bias)
