"""From two models of equal structure to the stages that the gap theory knows."""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.guarantee.rules import (
    AVAILABLE,
    Unsupported,
    fold_batch_norm,
    function_stage,
    linear_stage,
    module_stage,
)
from prunus.theory.gap.stages import Branches, LinearPair, Stage, linear_stages, run

__all__ = ["Extracted", "Unsupported", "extract", "masked_model", "pruned_model"]

Path = tuple[tuple[object, Stage], ...]


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

    Chains of supported layers, and sums and concatenations of branches that start from one value.
    A ball without data needs a first linear layer; anything else an `example` input (batch first).

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
            if node.target in CONCATENATIONS:
                values[node.name] = _concatenation(node, values)
                continue
            before = _first(node, values)
            target = str(node.target)
            one = model.get_submodule(target) if node.op == "call_module" else None
            if start is None:
                start = _first_input(one, target)
            at = run([stage for _, stage in before], start)
            if one is None:
                values[node.name] = (*before, (node, function_stage(node, at)))
            else:
                other = pruned.get_submodule(target)
                values[node.name] = _module(before, node, target, one, other, at, weights)
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


def _first_input(module: nn.Module | None, name: str) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.zeros(1, module.in_features, dtype=torch.float64)
    if module is None or isinstance(module, nn.Flatten | nn.Identity):
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
    return _joined(node, left, right, None)


CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def _concatenation(node: fx.Node, values: Mapping[str, Path]) -> Path:
    parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    named = node.kwargs.get("dim", node.kwargs.get("axis", 0))
    axis = node.args[1] if len(node.args) > 1 else named
    known = isinstance(parts, list | tuple) and all(
        isinstance(part, fx.Node) and part.name in values for part in parts
    )
    if not known or not parts or not isinstance(axis, int) or axis == 0:
        raise Unsupported(
            f"{node.name!r} concatenates along the batch, or something that is no branch of the "
            f"network: no rule. {AVAILABLE}"
        )
    whole: Path = values[parts[0].name]
    for part in parts[1:]:  # (a, b, c) is ((a, b), c): roots of sums of squares nest
        whole = _joined(object(), whole, values[part.name], axis)
    return whole


def _joined(key: object, left: Path, right: Path, axis: int | None) -> Path:
    """The part that two paths share, then their two ends as one stage."""
    shared = 0
    while shared < min(len(left), len(right)) and left[shared][0] is right[shared][0]:
        shared += 1
    stage = Branches(
        name=getattr(key, "name", "concatenation"),
        branch=tuple(s for _, s in right[shared:]),
        shortcut=tuple(s for _, s in left[shared:]),
        axis=axis,
    )
    return (*left[:shared], (key, stage))


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
        stage = linear_stage(name, one, other, at)
        weights[name] = one.weight.detach().cpu()
        return (*before, (node, stage))
    if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d):
        # the value before the norm has this one consumer, or is carried in another path
        # unchanged: paths are tuples, so folding here touches no other
        last = before[-1][1] if before else None
        folded = fold_batch_norm(name, one, other, at, last)
        kept = before[:-1] if isinstance(last, LinearPair) else before
        return (*kept, (node, folded))
    return (*before, (node, module_stage(name, one, at)))
