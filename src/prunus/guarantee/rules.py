"""What is known of each module and operation: a linear map, an activation, or a constant."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.theory.gap.activations import Activation, activation, leaky_relu
from prunus.theory.gap.norms import Geometry, conv_norm
from prunus.theory.gap.stages import LinearPair, Lipschitz, Pointwise, Stage

__all__ = [
    "AVAILABLE",
    "Unsupported",
    "fold_batch_norm",
    "function_stage",
    "linear_stage",
    "module_stage",
]

AVAILABLE = "Held-out statements remain available: pass `data`."


class Unsupported(TypeError):
    """A part of the network has no rule for a bound over a ball; names the module."""


def identity(function: Callable[[Tensor], Tensor] = lambda x: x) -> Lipschitz:
    """A stage that moves entries about and changes none."""
    return Lipschitz(name="identity", gain=1.0, function=function)


def linear_stage(name: str, one: Any, other: Any, at: Tensor) -> LinearPair:
    """A linear layer or convolution before and after pruning; `at` is one input of it."""
    weight, pruned = _double(one.weight), _double(other.weight)
    assert weight is not None
    assert pruned is not None
    geometry = None
    if isinstance(one, nn.Linear):
        if at.ndim != 2:
            raise Unsupported(
                f"{name!r} is applied to {at.ndim - 1} axes at once: no rule. {AVAILABLE}"
            )
    else:
        if one.padding_mode not in ("zeros", "circular"):
            raise Unsupported(
                f"{name!r} pads by {one.padding_mode!r}, which has no rule. {AVAILABLE}"
            )
        geometry = Geometry(
            size=_image(at),
            stride=_both(one.stride, 1),
            padding=_padding(one),
            dilation=_both(one.dilation, 1),
            groups=one.groups,
            circular=one.padding_mode == "circular",
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
    if one.training or other.training or one.running_var is None:
        raise Unsupported(
            f"{name!r} ({type(one).__name__}) is in training mode: call .eval() on both models. "
            f"{AVAILABLE}"
        )
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
        return replace(
            before,
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
    if type(module) in plain:
        return activation(plain[type(module)])
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return activation("gelu")
    if isinstance(module, nn.LeakyReLU) and 0 <= module.negative_slope <= 1:
        return leaky_relu(module.negative_slope)
    if isinstance(module, nn.ELU) and module.alpha == 1:
        return activation("elu")
    if isinstance(module, nn.Softplus) and module.beta == 1:
        return replace(activation("softplus"), function=module)
    if type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (-1, 1):
        return activation("hardtanh")
    return None


Dropout = nn.Dropout | nn.Dropout1d | nn.Dropout2d
Average = nn.AvgPool1d | nn.AvgPool2d
WholeAverage = nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d


def module_stage(name: str, module: nn.Module, at: Tensor) -> Stage:
    """The stage of a module without weights; `at` is one input of it.

    Raises:
        Unsupported: no rule for the module, or one with these parameters.
    """
    found = _activation(module)
    if found is not None:
        return Pointwise(name=name, activation=found)
    if isinstance(module, Dropout):
        if module.training and module.p > 0:
            raise Unsupported(
                f"{name!r} ({type(module).__name__}) is in training mode: call .eval() on both "
                f"models. {AVAILABLE}"
            )
        return identity()
    if isinstance(module, nn.Identity):
        return identity()
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return identity(lambda x: x.flatten(1))
    batched = at.ndim == (3 if isinstance(module, nn.MaxPool1d | nn.AvgPool1d) else 4)
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d) and batched:
        windows = math.prod(
            math.ceil(k / (s // math.gcd(s, d)))
            for k, s, d in zip(
                _both(module.kernel_size, 1),
                _both(module.stride, 1),
                _both(module.dilation, 1),
                strict=True,
            )
        )
        return Lipschitz(name=name, gain=math.sqrt(windows), function=copy.deepcopy(module))
    if isinstance(module, Average) and batched:
        return Lipschitz(name=name, gain=_average_gain(module, at), function=copy.deepcopy(module))
    if isinstance(module, WholeAverage) and at.ndim >= 3 and _one_output(module):
        gain = 1 / math.sqrt(math.prod(at.shape[2:]))
        return Lipschitz(name=name, gain=gain, function=copy.deepcopy(module))
    raise Unsupported(f"{name!r} ({type(module).__name__}) has no rule for a bound. {AVAILABLE}")


def _one_output(module: WholeAverage) -> bool:
    size = module.output_size
    return size is not None and all(s == 1 for s in ((size,) if isinstance(size, int) else size))


def _average_gain(module: Average, at: Tensor) -> float:
    line = isinstance(module, nn.AvgPool1d)
    kernel = (1, _both(module.kernel_size, 1)[1]) if line else _both(module.kernel_size, 1)
    stride = (1, _both(module.stride, 1)[1]) if line else _both(module.stride, 1)
    pad = (0, _both(module.padding, 0)[1]) if line else _both(module.padding, 0)
    if pad == (0, 0) and stride[0] >= kernel[0] and stride[1] >= kernel[1] and not module.ceil_mode:
        return 1 / math.sqrt(kernel[0] * kernel[1])
    windows = math.prod(math.ceil(k / s) for k, s in zip(kernel, stride, strict=True))
    divisor = getattr(module, "divisor_override", None)
    if divisor:  # sums of kh·kw entries, divided
        return math.sqrt(windows * math.prod(kernel)) / abs(float(divisor))
    if module.ceil_mode or not module.count_include_pad:
        return math.sqrt(windows)  # a mean over n entries maps by at most 1/√n; n may be 1
    taps = torch.full((1, 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=torch.float64)
    shape = Geometry(
        size=_image(at),
        stride=stride,
        padding=((pad[0], pad[0]), (pad[1], pad[1])),
    )
    return conv_norm(taps, shape).value


FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    "relu": "relu",
    "relu_": "relu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    "tanh": "tanh",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    F.silu: "silu",
}
AS_MODULES: dict[Any, Callable[..., nn.Module]] = {  # functions whose arguments a module takes
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool1d: nn.MaxPool1d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.hardtanh: nn.Hardtanh,
    F.softplus: nn.Softplus,
    F.gelu: lambda approximate="none": nn.GELU(approximate),
}


def function_stage(node: fx.Node, at: Tensor) -> Stage:
    """The stage of a function or method call; `at` is one input of it.

    Raises:
        Unsupported: no rule for the operation.
    """
    rest, named = node.args[1:], dict(node.kwargs)
    named.pop("inplace", None)
    if node.target in FUNCTIONS and not rest and not named:
        return Pointwise(name=node.name, activation=activation(FUNCTIONS[node.target]))
    if node.target in AS_MODULES:
        named.pop("return_indices", None)
        return module_stage(node.name, AS_MODULES[node.target](*rest, **named).eval(), at)
    flat = node.target in (torch.flatten, "flatten") and (
        rest == (1,) or named == {"start_dim": 1}
    )  # fmt: skip
    shaped = node.target in ("view", "reshape") and len(node.args) == 3 and node.args[2] == -1
    if flat or shaped:
        return identity(lambda x: x.flatten(1))
    axes = rest[0] if rest else named.get("dim")
    if node.target in ("mean", torch.mean) and at.ndim >= 3 and not named.get("keepdim", False):
        over = (axes,) if isinstance(axes, int) else tuple(axes or ())  # type: ignore[arg-type]
        if sorted(a % at.ndim for a in over) == list(range(2, at.ndim)) and len(rest) <= 1:
            gain = 1 / math.sqrt(math.prod(at.shape[2:]))
            return Lipschitz(name=node.name, gain=gain, function=lambda x: x.flatten(2).mean(dim=2))
    if node.target is F.dropout:
        training = rest[1] if len(rest) > 1 else named.get("training", True)
        if training is False:
            return identity()
        raise Unsupported(
            f"{node.name!r} (dropout) is in training mode: call .eval() on both models. {AVAILABLE}"
        )
    raise Unsupported(f"{node.name!r} ({node.target}) has no rule for a bound. {AVAILABLE}")
