"""What is known of each module: a linear map, an activation, or a Lipschitz constant."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.guarantee.pooling import (
    Average,
    Maximum,
    WholeAverage,
    adaptive_gain,
    average_gain,
    maximum_gain,
    per_axis,
)
from prunus.theory.gap.activations import Activation, activation, leaky_relu
from prunus.theory.gap.convolution import Geometry
from prunus.theory.gap.stages import LinearPair, Lipschitz, Pointwise, Stage

__all__ = [
    "AVAILABLE",
    "Unsupported",
    "fold_batch_norm",
    "identity",
    "linear_stage",
    "module_stage",
    "reason_of",
]

AVAILABLE = "Held-out statements remain available: pass `data`."
EXACT_SOFTPLUS = 20.0  # beyond, torch replaces softplus by x: an error of at most e⁻²⁰
PADDINGS = ("zeros", "circular", "reflect", "replicate")
ITSELF = (  # their forward is the rule; a subclass with another one has none
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d,
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Hardtanh,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.Flatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


class Unsupported(TypeError, ValueError):
    """No bound over a ball can be made of the network; names the module.

    A TypeError where a module has no rule, and a ValueError where the rules do not describe what
    the network computes: callers may catch either.
    """


def reason_of(error: Unsupported) -> str:
    """Which part has no rule, without the advice to pass data."""
    return str(error).partition(" Held-out statements")[0].rstrip(".")


def own_forward(module: nn.Module) -> bool:
    """Whether a module runs the forward of the type that its rule describes."""
    kinds = [kind for kind in ITSELF if isinstance(module, kind)]
    if not kinds or "forward" in vars(module):
        return False
    names = ("forward", "_conv_forward", "_check_input_dim")
    return all(getattr(type(module), n, None) is getattr(kinds[0], n, None) for n in names)


def identity(function: Callable[[Tensor], Tensor] = lambda x: x) -> Lipschitz:
    """A stage that moves entries about and changes none."""
    return Lipschitz(name="identity", gain=1.0, function=function, terms=0)


def linear_stage(name: str, one: Any, other: Any, at: Tensor) -> LinearPair:
    """A linear layer or convolution before and after pruning; `at` is one input of it."""
    weight, pruned = _double(one.weight), _double(other.weight)
    assert weight is not None
    assert pruned is not None
    geometry = None
    wanted = 2 if isinstance(one, nn.Linear) else weight.ndim
    if at.ndim != wanted:
        raise Unsupported(
            f"{name!r} ({type(one).__name__}) is applied to values of {at.ndim} axes, not {wanted}:"
            f" no rule. {AVAILABLE}"
        )
    if not isinstance(one, nn.Linear):
        if one.padding_mode not in PADDINGS:
            raise Unsupported(
                f"{name!r} pads by {one.padding_mode!r}, which has no rule. {AVAILABLE}"
            )
        geometry = Geometry(
            size=_image(at),
            stride=_both(one.stride, 1),
            padding=_padding(one),
            dilation=_both(one.dilation, 1),
            groups=one.groups,
            mode=one.padding_mode,
        )
        if weight.ndim == 3:  # sequences are images of height 1
            weight, pruned = weight[:, :, None], pruned[:, :, None]
    return LinearPair(
        name=name,
        weight=weight,
        pruned_weight=pruned,
        bias=_double(one.bias),
        pruned_bias=_double(other.bias),
        geometry=geometry,
    )


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().cpu().double()


def _image(at: Tensor) -> tuple[int, int]:
    """Height and width of the values; sequences have height 1."""
    return (1, at.shape[2]) if at.ndim == 3 else (at.shape[2], at.shape[3])


def _both(value: Any, missing: int) -> tuple[int, int]:
    """A parameter per axis as (height, width); 1-d modules have `missing` along the height."""
    if isinstance(value, int):
        return (value, value)
    given = [int(v) for v in value]
    return (missing, given[0]) if len(given) == 1 else (given[0], given[1])


def _padding(conv: nn.Conv1d | nn.Conv2d) -> Any:
    if conv.padding == "valid":
        return ((0, 0), (0, 0))
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in totals]
    else:
        sides = [(int(p), int(p)) for p in conv.padding]
    return ((0, 0), sides[0]) if len(sides) == 1 else tuple(sides)


def fold_batch_norm(
    name: str, one: Any, other: Any, at: Tensor, before: Stage | None
) -> LinearPair:
    """The linear map before a batch norm with the norm folded in, or the norm's own map."""
    if one.training or other.training or one.running_var is None or other.running_var is None:
        raise Unsupported(
            f"{name!r} ({type(one).__name__}) is in training mode, or has no running statistics: "
            f"call .eval() on both models. {AVAILABLE}"
        )
    if at.ndim > 4 or (at.ndim == 2 and isinstance(one, nn.BatchNorm2d)):
        raise Unsupported(f"{name!r} normalises values of {at.ndim} axes: no rule. {AVAILABLE}")
    scale, shift, size = _affine(one)
    pruned_scale, pruned_shift, pruned_size = _affine(other)
    if isinstance(before, LinearPair):
        shape = (-1, *[1] * (before.weight.ndim - 1))
        zero = torch.zeros_like(scale)
        bias = zero if before.bias is None else before.bias
        pruned_bias = zero if before.pruned_bias is None else before.pruned_bias
        first, second = bias.abs(), pruned_bias.abs()
        if before.offsets is not None:
            first = second = before.offsets
        rows = (w.flatten(1).norm(dim=1) for w in (before.weight, before.pruned_weight))
        own = (torch.maximum(*rows), torch.maximum(first, second))
        inner = before.inner or own
        return replace(
            before,
            inner=(torch.maximum(inner[0], own[0]), torch.maximum(inner[1], own[1])),
            offsets=torch.maximum(
                first * scale.abs() + size, second * pruned_scale.abs() + pruned_size
            ),
            weight=before.weight * scale.reshape(shape),
            pruned_weight=before.pruned_weight * pruned_scale.reshape(shape),
            bias=bias * scale + shift,
            pruned_bias=pruned_bias * pruned_scale + pruned_shift,
        )
    if at.ndim == 2:
        weight, pruned_weight, geometry = torch.diag(scale), torch.diag(pruned_scale), None
    else:
        weight, pruned_weight = (s.reshape(-1, 1, 1, 1) for s in (scale, pruned_scale))
        geometry = Geometry(size=_image(at), groups=len(scale))
    return LinearPair(
        name=name,
        weight=weight,
        pruned_weight=pruned_weight,
        bias=shift,
        pruned_bias=pruned_shift,
        geometry=geometry,
        offsets=torch.maximum(size, pruned_size),
    )


def _affine(norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift of a batch norm, and the sum of the sizes of what it adds."""
    deviation = (norm.running_var.detach().cpu().double() + norm.eps).sqrt()
    scale = 1 / deviation
    shift = -norm.running_mean.detach().cpu().double() / deviation
    if norm.affine:
        weight, bias = norm.weight.detach().cpu().double(), norm.bias.detach().cpu().double()
        size = (shift * weight).abs() + bias.abs()
        return scale * weight, shift * weight + bias, size
    return scale, shift, shift.abs()


def _activation(module: nn.Module) -> Activation | None:
    """The row of the table for an activation module with the parameters the table covers."""
    plain = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}
    for kind, name in plain.items():
        if isinstance(module, kind):
            return activation(name)
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return activation("gelu")
    if isinstance(module, nn.LeakyReLU) and 0 <= module.negative_slope <= 1:
        return leaky_relu(module.negative_slope)
    if isinstance(module, nn.ELU) and module.alpha == 1:
        return activation("elu")
    if isinstance(module, nn.Softplus) and module.beta == 1 and module.threshold >= EXACT_SOFTPLUS:
        return activation("softplus")
    if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (-1, 1):
        return activation("hardtanh")
    return None


Dropout = nn.Dropout | nn.Dropout1d | nn.Dropout2d


def module_stage(name: str, module: nn.Module, at: Tensor) -> Stage:
    """The stage of a module without weights; `at` is one input of it.

    Raises:
        Unsupported: no rule for the module, or one with these parameters.
    """
    known = own_forward(module)
    found = _activation(module) if known else None
    if found is not None:
        return Pointwise(name=name, activation=found)
    if known and isinstance(module, Dropout):
        if module.training and module.p > 0:
            raise Unsupported(
                f"{name!r} ({type(module).__name__}) is in training mode: call .eval() on both "
                f"models. {AVAILABLE}"
            )
        return identity()
    if known and isinstance(module, nn.Identity):
        return identity()
    if known and isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return identity(lambda x: x.flatten(1))
    batched = at.ndim == (3 if isinstance(module, nn.MaxPool1d | nn.AvgPool1d) else 4)
    if known and batched and isinstance(module, Maximum) and not module.return_indices:
        gain = maximum_gain(module, at)
        return Lipschitz(name=name, gain=gain, function=copy.deepcopy(module), terms=0)
    if known and batched and isinstance(module, Average):
        terms = math.prod(per_axis(module.kernel_size, at.ndim - 2))
        gain = average_gain(module, at)
        return Lipschitz(name=name, gain=gain, function=copy.deepcopy(module), terms=terms)
    axes = 3 if isinstance(module, nn.AdaptiveAvgPool1d) else 4
    if known and isinstance(module, WholeAverage) and at.ndim == axes:
        terms = math.prod(at.shape[2:])
        gain = adaptive_gain(module, at)
        return Lipschitz(name=name, gain=gain, function=copy.deepcopy(module), terms=terms)
    raise Unsupported(f"{name!r} ({type(module).__name__}) has no rule for a bound. {AVAILABLE}")


def spread(left: Tensor, right: Tensor, name: str) -> tuple[Lipschitz | None, Lipschitz | None]:
    """What a sum does to each of its two values first: repeat it, where it broadcasts.

    Repeating r times has norm √r exactly.

    Raises:
        Unsupported: the values have different numbers of axes, so that samples mix.
    """
    if left.ndim != right.ndim or left.shape[0] != right.shape[0]:
        raise Unsupported(
            f"{name!r} adds values of shapes {tuple(left.shape)} and {tuple(right.shape)}, which "
            f"mixes samples: no rule. {AVAILABLE}"
        )
    whole = (left[:1] + right[:1]).shape

    def repeated(value: Tensor) -> Lipschitz | None:
        if value.shape == whole:
            return None
        gain = math.sqrt(math.prod(whole) / value.numel())

        def function(x: Tensor) -> Tensor:
            return x.expand(-1, *whole[1:])

        return Lipschitz(name=f"{name}, repeated", gain=gain, function=function, terms=0)

    return repeated(left), repeated(right)
