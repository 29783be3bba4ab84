"""From two models of equal structure to the stages that the gap theory knows."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.guarantee.functions import BATCH, function_stage
from prunus.guarantee.memory import Memory
from prunus.guarantee.rules import (
    AVAILABLE,
    Unsupported,
    fold_batch_norm,
    linear_stage,
    module_stage,
    own_forward,
    spread,
)
from prunus.guarantee.structure import same_structure
from prunus.theory.gap.stages import Branches, LinearPair, Stage, linear_stages, run

__all__ = ["Extracted", "Unsupported", "extract"]

Path = tuple[tuple[object, Stage], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Extracted:
    """A network as stages, before and after pruning.

    Attributes:
        stages: the computation, in float64, batch norms folded.
        weights: name → weight as stored, of every layer that can be pruned.
        dtype: in which the network runs.
        shape: of one input.
        places: (module name, stages before its call, stages up to its result) of every call of a
            module, in order.
    """

    stages: tuple[Stage, ...]
    weights: Mapping[str, Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]
    places: tuple[tuple[str, tuple[Stage, ...], tuple[Stage, ...]], ...] = ()


def extract(
    model: nn.Module, pruned: nn.Module, example: Tensor | None, graph: fx.Graph | None = None
) -> Extracted:
    """The stages of two models of equal structure.

    Chains of supported layers, and sums and concatenations of branches that start from one value.
    Operations that write into their input are followed: whoever reads it later reads the new
    value. A ball without data needs a first linear layer; anything else an `example` input (batch
    first). `graph` is that of `model`, where it was traced before.

    Raises:
        Unsupported: a module or operation without a rule, by its name, or settings that differ.
        ValueError: the models differ in structure, or the input's shape is unknown.
    """
    graph = same_structure(model, pruned, graph)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    start: Tensor | None = None if example is None else example[:1].detach().cpu().double()
    reader = _Reader(model, pruned, start)
    result: Path = ()
    for node in graph.nodes:
        if node.op == "output":
            given = node.args[0]
            if not isinstance(given, fx.Node) or given.name not in reader.values:
                raise Unsupported(f"the network returns no single tensor. {AVAILABLE}")
            result = reader.values[given.name]
        else:
            reader.read(node)
    if reader.start is None:
        raise ValueError("the shape of an input is unknown. Pass `data`.")
    stages = tuple(stage for _, stage in result)
    if not linear_stages(stages):
        raise Unsupported(f"the network has no linear layer. {AVAILABLE}")
    return Extracted(
        stages=stages,
        weights=reader.weights,
        dtype=dtype,
        shape=tuple(reader.start.shape[1:]),
        places=tuple(reader.places),
    )


@dataclass(eq=False)
class _Reader:
    """The values of a graph, node by node, as paths of stages from the input.

    Attributes:
        model, pruned: the two networks.
        start: one input; None until a first layer tells its shape.
        values: path of each node, as later nodes read it.
        memory: where the nodes' numbers lie.
        sizes: what is known of nodes that are no tensors.
    """

    model: nn.Module
    pruned: nn.Module
    start: Tensor | None
    values: dict[str, Path] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    sizes: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    places: list[tuple[str, tuple[Stage, ...], tuple[Stage, ...]]] = field(default_factory=list)
    examples: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def read(self, node: fx.Node) -> None:
        """Take in one node."""
        if node.op == "placeholder":
            if self.values:
                raise Unsupported(f"the network takes several inputs. {AVAILABLE}")
            self.values[node.name] = ()
            self.memory.note(node, None)
            return
        if node.op not in ("call_module", "call_function", "call_method"):
            raise Unsupported(f"{node.op} of {node.target!r} has no rule for a bound. {AVAILABLE}")
        if self._is_size(node):
            return
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.target in SUMS:
            self.values[node.name] = self._sum(node)
        elif node.target in CONCATENATIONS:
            self.values[node.name] = self._concatenation(node)
        else:
            before = self._first(node)
            if self.start is None:
                self.start = _first_input(module, str(node.target))
            if module is None:
                stage = function_stage(node, self.at(before), self.sizes)
                self.values[node.name] = (*before, (node, stage))
            else:
                self.values[node.name] = self._module(before, node, module)
        for other in self.memory.note(node, module):
            self.values[other.name] = self.values[node.name]

    def at(self, path: Path) -> Tensor:
        """One value at the end of a path."""
        assert self.start is not None  # known before any stage is made
        key = tuple(id(stage) for _, stage in path)
        if not path:
            return self.start
        if key not in self.examples:
            self.examples[key] = run([path[-1][1]], self.at(path[:-1]))
        return self.examples[key]

    def _is_size(self, node: fx.Node) -> bool:
        """Note a node that is a number or a shape, which only reshapings read."""
        target, args = node.target, node.args
        if node.op == "call_method" and target in ("size", "dim"):
            whole = target == "size" and len(args) == 1 and not node.kwargs
            first = target == "size" and (args[1:] == (0,) or node.kwargs == {"dim": 0})
            self.sizes[node.name] = "shape" if whole else BATCH if first else None
            return True
        if target is getattr and args[1:] == ("shape",):
            self.sizes[node.name] = "shape"
            return True
        source = args[0] if target is operator.getitem else None
        if isinstance(source, fx.Node) and self.sizes.get(source.name) == "shape":
            self.sizes[node.name] = BATCH if args[1] == 0 else None
            return True
        return False

    def _first(self, node: fx.Node) -> Path:
        given = node.args[0] if node.args else None
        if not isinstance(given, fx.Node) or given.name not in self.values:
            raise Unsupported(f"{node.format_node()} has no rule for a bound. {AVAILABLE}")
        others = [a for a in node.args[1:] if isinstance(a, fx.Node) and a.name in self.values]
        if others:
            raise Unsupported(f"{node.target!r} joins two values without a rule. {AVAILABLE}")
        return self.values[given.name]

    def _sum(self, node: fx.Node) -> Path:
        known = all(isinstance(a, fx.Node) and a.name in self.values for a in node.args)
        if not known or len(node.args) != 2 or set(node.kwargs) - {"alpha"}:
            raise Unsupported(f"{node.format_node()} has no rule for a bound. {AVAILABLE}")
        if node.kwargs.get("alpha", 1) != 1:
            raise Unsupported(f"a scaled sum ({node.name}) has no rule. {AVAILABLE}")
        left, right = (self.values[a.name] for a in node.args if isinstance(a, fx.Node))
        if self.start is None:
            raise ValueError("the shape of an input is unknown. Pass `data`.")
        first, second = spread(self.at(left), self.at(right), node.name)
        left = left if first is None else (*left, (object(), first))
        right = right if second is None else (*right, (object(), second))
        return _joined(node, left, right, None)

    def _concatenation(self, node: fx.Node) -> Path:
        parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
        named = node.kwargs.get("dim", node.kwargs.get("axis", 0))
        axis = node.args[1] if len(node.args) > 1 else named
        known = isinstance(parts, list | tuple) and all(
            isinstance(part, fx.Node) and part.name in self.values for part in parts
        )
        if known and parts and self.start is not None and isinstance(axis, int):
            whole: Path = self.values[parts[0].name]
            if axis % self.at(whole).ndim != 0:
                for part in parts[1:]:  # (a, b, c) is ((a, b), c): roots of sums of squares nest
                    whole = _joined(object(), whole, self.values[part.name], axis)
                return whole
        raise Unsupported(
            f"{node.name!r} concatenates along the batch, or something that is no branch of the "
            f"network: no rule. {AVAILABLE}"
        )

    def _module(self, before: Path, node: fx.Node, one: nn.Module) -> Path:
        name = str(node.target)
        other = self.pruned.get_submodule(name)
        at, known = self.at(before), own_forward(one)
        last = before[-1][1] if before else None
        kept = before
        stage: Stage
        if known and isinstance(one, nn.Linear | nn.Conv2d | nn.Conv1d):
            stage = linear_stage(name, one, other, at)
            self.weights[name] = one.weight.detach().cpu()
        elif known and isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d):
            # the value before the norm has this one consumer, or is carried in another path
            # unchanged: paths are tuples, so folding here touches no other
            stage = fold_batch_norm(name, one, other, at, last)
            kept = before[:-1] if isinstance(last, LinearPair) else before
        else:
            stage = module_stage(name, one, at)
        path = (*kept, (node, stage))
        self.places.append((name, tuple(_stages(before)), tuple(_stages(path))))
        return path


SUMS = (operator.add, operator.iadd, torch.add, "add", "add_", "__iadd__")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def _stages(path: Path) -> Iterator[Stage]:
    return (stage for _, stage in path)


def _first_input(module: nn.Module | None, name: str) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.zeros(1, module.in_features, dtype=torch.float64)
    if module is None or isinstance(module, nn.Flatten | nn.Identity):
        raise ValueError(f"the input of {name!r} has an unknown shape. Pass `data`.")
    raise ValueError(
        f"without data the network must start with a linear layer, not with {name!r} "
        f"({type(module).__name__}). Pass `data`."
    )


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
