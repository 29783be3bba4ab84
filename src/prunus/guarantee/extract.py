"""From two models of equal structure to the stages that the gap theory knows."""

import copy
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.theory.gap.activations import Activation, activation, leaky_relu
from prunus.theory.gap.norms import Geometry, conv_norm
from prunus.theory.gap.propagate import (
    LinearPair,
    Lipschitz,
    Pointwise,
    Residual,
    Stage,
    linear_stages,
    run,
)

__all__ = ["Extracted", "Unsupported", "extract", "masked_model", "pruned_model"]

AVAILABLE = "Held-out statements remain available: pass `data`."
Path = tuple[tuple[object, Stage], ...]


class Unsupported(TypeError):
    """A part of the network has no rule for a bound over a ball; names the module."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Extracted:
    """A network as stages, before and after pruning.

    Attributes:
        stages: the computation, in float64, batch norms folded.
        weights: name → weight as stored, of every layer that can be pruned.
        dtype: in which the network runs.
        shape: of one input.
    """

    stages: tuple[Stage, ...]
    weights: Mapping[str, Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]


def pruned_model(model: nn.Module, pruned: Any) -> nn.Module:
    """The pruned module behind a module, a result with `.model`, or {name: mask}."""
    if isinstance(pruned, nn.Module):
        return pruned
    if isinstance(pruned, Mapping):
        return masked_model(model, pruned)
    inner = getattr(pruned, "model", None)
    if isinstance(inner, nn.Module):
        return inner
    raise TypeError(
        f"`pruned` must be a module, a Pruned or {{name: mask}}, got {type(pruned).__name__}."
    )


def masked_model(model: nn.Module, masks: Mapping[str, Any]) -> nn.Module:
    """A copy of the model with zeros where a mask is 0; masks may be matrices or kernel-shaped."""
    found = copy.deepcopy(model)
    modules = dict(found.named_modules())
    for key, given in masks.items():
        name = key.removesuffix(".weight")
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor):
            weighted = ((n, getattr(m, "weight", None)) for n, m in modules.items())
            known = [n for n, w in weighted if isinstance(w, Tensor)]
            raise ValueError(
                f"the mask {key!r} belongs to no layer. Known: {', '.join(known[:8])}."
            )
        mask = torch.as_tensor(given, device=weight.device)
        if mask.numel() != weight.numel() or mask.shape[:1] != weight.shape[:1]:
            raise ValueError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, its weight "
                f"{tuple(weight.shape)}."
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"the mask of {name!r} must be 0 or 1 everywhere.")
        with torch.no_grad():
            weight.mul_(mask.reshape(weight.shape).to(weight.dtype))
    return found


def extract(model: nn.Module, pruned: nn.Module, example: Tensor | None) -> Extracted:
    """The stages of two models of equal structure.

    Chains of supported layers and sums of branches that start from one value. A ball without
    data needs a first linear layer; anything else an `example` input (batch first).

    Raises:
        Unsupported: a module or operation without a rule, by its name.
        ValueError: the models differ in structure, or the input's shape is unknown.
    """
    theirs = dict(pruned.named_modules())
    for name, module in model.named_modules():
        if type(theirs.get(name)) is not type(module):
            raise ValueError(
                f"the two models differ at {name or 'the root'!r}: {type(module).__name__} before, "
                f"{type(theirs.get(name)).__name__} after pruning. Certify the masked network."
            )
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    graph = _graph(model)
    values: dict[str, Path] = {}
    weights: dict[str, Tensor] = {}
    start: Tensor | None = None if example is None else example[:1].detach().cpu().double()
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs += 1
            if inputs > 1:
                raise Unsupported(f"the network takes several inputs. {AVAILABLE}")
            values[node.name] = ()
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node):
                raise Unsupported(f"the network returns no single tensor. {AVAILABLE}")
            stages = tuple(stage for _, stage in values[result.name])
        elif node.op in ("call_module", "call_function", "call_method"):
            if node.op == "call_method" and node.target in ("size", "dim"):
                continue
            if _is_sum(node):
                values[node.name] = _sum(node, values)
                continue
            before = _first(node, values)
            if node.op == "call_module":
                target = str(node.target)
                one, other = model.get_submodule(target), pruned.get_submodule(target)
                if start is None:
                    start = _first_input(one, target)
                at = run([stage for _, stage in before], start)
                values[node.name] = _module(before, node, target, one, other, at, weights)
            else:
                values[node.name] = (*before, (node, _function(node)))
        else:
            raise Unsupported(f"{node.op} of {node.target!r} has no rule for a bound. {AVAILABLE}")
    if start is None:
        raise ValueError("the shape of an input is unknown. Pass `data`.")
    if not linear_stages(stages):
        raise Unsupported(f"the network has no linear layer. {AVAILABLE}")
    return Extracted(stages=stages, weights=weights, dtype=dtype, shape=tuple(start.shape[1:]))


def _graph(model: nn.Module) -> fx.Graph:
    if not list(model.children()):  # a bare layer would be traced into its own forward
        graph = fx.Graph()
        graph.output(graph.call_module("", (graph.placeholder("x"),)))
        return graph
    try:
        return fx.Tracer().trace(model)
    except Exception as error:
        raise Unsupported(
            f"{type(model).__name__} cannot be traced as a chain of layers "
            f"({str(error).splitlines()[0]}). {AVAILABLE}"
        ) from None


def _first_input(module: nn.Module, name: str) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.zeros(1, module.in_features, dtype=torch.float64)
    if isinstance(module, nn.Flatten | nn.Identity):
        raise ValueError(f"the input of {name!r} has an unknown shape. Pass `data`.")
    raise ValueError(
        f"without data the network must start with a linear layer, not with {name!r} "
        f"({type(module).__name__}). Pass `data`."
    )


def _first(node: fx.Node, values: Mapping[str, Path]) -> Path:
    given = node.args[0] if node.args else None
    if not isinstance(given, fx.Node) or given.name not in values:
        raise Unsupported(f"{node.format_node()} has no rule for a bound. {AVAILABLE}")
    others = [a for a in node.args[1:] if isinstance(a, fx.Node) and a.name in values]
    if others:
        raise Unsupported(f"{node.target!r} joins two values without a rule. {AVAILABLE}")
    return values[given.name]


def _is_sum(node: fx.Node) -> bool:
    sums = (operator.add, operator.iadd, torch.add, "add", "add_")
    return node.target in sums and all(isinstance(a, fx.Node) for a in node.args[:2])


def _sum(node: fx.Node, values: Mapping[str, Path]) -> Path:
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        raise Unsupported(f"a scaled sum ({node.name}) has no rule. {AVAILABLE}")
    left, right = (values[a.name] for a in node.args if isinstance(a, fx.Node))
    shared = 0
    while shared < min(len(left), len(right)) and left[shared][0] is right[shared][0]:
        shared += 1
    shortcut, branch = left[shared:], right[shared:]
    stage = Residual(
        name=node.name,
        branch=tuple(s for _, s in branch),
        shortcut=tuple(s for _, s in shortcut),
    )
    return (*left[:shared], (node, stage))


def _identity(function: Callable[[Tensor], Tensor] = lambda x: x) -> Lipschitz:
    return Lipschitz(name="identity", gain=1.0, function=function)


def _module(
    before: Path,
    node: fx.Node,
    name: str,
    one: nn.Module,
    other: nn.Module,
    at: Tensor,
    weights: dict[str, Tensor],
) -> Path:
    if isinstance(one, nn.Linear | nn.Conv2d | nn.Conv1d):
        stage = _linear(name, one, other, at)
        weights[name] = one.weight.detach().cpu()
        return (*before, (node, stage))
    if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d):
        return _batch_norm(before, node, name, one, other, at)
    found = _plain(name, one, at)
    return (*before, (node, found))


def _linear(name: str, one: Any, other: Any, at: Tensor) -> LinearPair:
    def double(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().cpu().double()

    weight, pruned = double(one.weight), double(other.weight)
    assert weight is not None
    assert pruned is not None
    geometry = None
    if isinstance(one, nn.Linear):
        if at.ndim != 2:
            raise Unsupported(
                f"{name!r} is applied to {at.ndim - 1} axes at once: no rule. {AVAILABLE}"
            )
    else:
        if isinstance(one, nn.Conv1d):
            raise Unsupported(f"{name!r} (Conv1d) has no rule for a bound. {AVAILABLE}")
        if one.padding_mode not in ("zeros", "circular"):
            raise Unsupported(
                f"{name!r} pads by {one.padding_mode!r}, which has no rule. {AVAILABLE}"
            )
        geometry = Geometry(
            size=(at.shape[2], at.shape[3]),
            stride=tuple(one.stride),
            padding=_padding(one),
            dilation=tuple(one.dilation),
            groups=one.groups,
            circular=one.padding_mode == "circular",
        )
    return LinearPair(
        name=name,
        weight=weight,
        pruned_weight=pruned,
        bias=double(one.bias),
        pruned_bias=double(other.bias),
        geometry=geometry,
    )


def _padding(conv: nn.Conv2d) -> Any:
    if conv.padding == "valid":
        return ((0, 0), (0, 0))
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((int(p), int(p)) for p in conv.padding)


def _batch_norm(before: Path, node: fx.Node, name: str, one: Any, other: Any, at: Tensor) -> Path:
    if one.training or other.training or one.running_var is None:
        raise Unsupported(
            f"{name!r} ({type(one).__name__}) is in training mode: call .eval() on both models. "
            f"{AVAILABLE}"
        )
    scale, shift = _affine(one)
    pruned_scale, pruned_shift = _affine(other)
    last = before[-1][1] if before else None
    if isinstance(last, LinearPair):  # the value before the norm has this one consumer, or is
        # carried in another path unchanged: paths are tuples, so folding here touches no other
        shape = (-1, *[1] * (last.weight.ndim - 1))
        zero = torch.zeros_like(scale)
        bias = zero if last.bias is None else last.bias
        pruned_bias = zero if last.pruned_bias is None else last.pruned_bias
        folded = replace(
            last,
            weight=last.weight * scale.reshape(shape),
            pruned_weight=last.pruned_weight * pruned_scale.reshape(shape),
            bias=bias * scale + shift,
            pruned_bias=pruned_bias * pruned_scale + pruned_shift,
        )
        return (*before[:-1], (node, folded))
    if at.ndim == 2:
        stage = LinearPair(
            name=name,
            weight=torch.diag(scale),
            pruned_weight=torch.diag(pruned_scale),
            bias=shift,
            pruned_bias=pruned_shift,
        )
    else:
        stage = LinearPair(
            name=name,
            weight=scale.reshape(-1, 1, 1, 1),
            pruned_weight=pruned_scale.reshape(-1, 1, 1, 1),
            bias=shift,
            pruned_bias=pruned_shift,
            geometry=Geometry(size=(at.shape[2], at.shape[3]), groups=len(scale)),
        )
    return (*before, (node, stage))


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    deviation = (norm.running_var.detach().cpu().double() + norm.eps).sqrt()
    scale = 1 / deviation
    shift = -norm.running_mean.detach().cpu().double() / deviation
    if norm.affine:
        weight, bias = norm.weight.detach().cpu().double(), norm.bias.detach().cpu().double()
        scale, shift = scale * weight, shift * weight + bias
    return scale, shift


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


def _plain(name: str, module: nn.Module, at: Tensor) -> Stage:
    found = _activation(module)
    if found is not None:
        return Pointwise(name=name, activation=found)
    if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d):
        return _identity()
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return _identity(lambda x: x.flatten(1))
    if isinstance(module, nn.MaxPool2d):
        pool = copy.deepcopy(module)
        windows = math.prod(
            math.ceil(k / (s // math.gcd(s, d)))
            for k, s, d in zip(
                _pair(module.kernel_size),
                _pair(module.stride),
                _pair(module.dilation),
                strict=True,
            )
        )
        return Lipschitz(name=name, gain=math.sqrt(windows), function=pool)
    if isinstance(module, nn.AvgPool2d):
        return Lipschitz(name=name, gain=_average_gain(module, at), function=copy.deepcopy(module))
    if isinstance(module, nn.AdaptiveAvgPool2d) and _pair(module.output_size) == (1, 1):
        gain = 1 / math.sqrt(at.shape[2] * at.shape[3])
        return Lipschitz(name=name, gain=gain, function=lambda x: x.mean(dim=(2, 3), keepdim=True))
    raise Unsupported(f"{name!r} ({type(module).__name__}) has no rule for a bound. {AVAILABLE}")


def _average_gain(module: nn.AvgPool2d, at: Tensor) -> float:
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    pad = _pair(module.padding)
    if pad == (0, 0) and stride[0] >= kernel[0] and stride[1] >= kernel[1] and not module.ceil_mode:
        return 1 / math.sqrt(kernel[0] * kernel[1])
    if module.ceil_mode or module.divisor_override or not module.count_include_pad:
        return math.sqrt(math.prod(math.ceil(k / s) for k, s in zip(kernel, stride, strict=True)))
    taps = torch.full((1, 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=torch.float64)
    shape = Geometry(
        size=(at.shape[2], at.shape[3]),
        stride=stride,
        padding=((pad[0], pad[0]), (pad[1], pad[1])),
    )
    return conv_norm(taps, shape).value


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


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


def _function(node: fx.Node) -> Stage:
    if node.target in FUNCTIONS:
        return Pointwise(name=node.name, activation=activation(FUNCTIONS[node.target]))
    if node.target is F.gelu and node.kwargs.get("approximate", "none") == "none":
        return Pointwise(name=node.name, activation=activation("gelu"))
    flat = node.target in (torch.flatten, "flatten") and (
        node.args[1:] == (1,) or node.kwargs == {"start_dim": 1}
    )
    shaped = node.target in ("view", "reshape") and len(node.args) == 3 and node.args[2] == -1
    if flat or shaped:
        return _identity(lambda x: x.flatten(1))
    if node.target is F.dropout:
        return _identity()
    raise Unsupported(f"{node.name!r} ({node.target}) has no rule for a bound. {AVAILABLE}")
