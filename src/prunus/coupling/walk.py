"""The walk over the exported graph of a model, one rule per operation."""

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from prunus.coupling.labels import CONSTANT, DATA, WRITTEN, Labels
from prunus.coupling.rules import CONVOLUTIONS, Refused, rule_for
from prunus.modes import evaluating

LAYERS = (nn.Linear, *CONVOLUTIONS)


class NotTraceable(Exception):
    """torch.export cannot follow the model; the text says why."""


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of one batch: tensor, tuple (its first element), map."""
    while isinstance(example, list | tuple) and example:
        example = example[0]
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, Tensor):
        return (example,), {}
    raise TypeError(
        f"`example` must be one batch: a tensor, a tuple whose first element is one, or a mapping "
        f"of keyword inputs, got {type(example).__name__}."
    )


def _two_samples(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value[:2] if len(value) >= 2 else torch.cat([value, value])


def export(model: nn.Module, example: Any) -> ExportedProgram:
    """The functional graph of the model in eval mode, on two samples where it takes them.

    Raises:
        NotTraceable: torch.export cannot follow the model.
    """
    positional, keywords = arguments_of(example)
    small = (
        tuple(_two_samples(x) for x in positional),
        {key: _two_samples(value) for key, value in keywords.items()},
    )
    failure: Exception | None = None
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations; they concern no user of ours
        for inputs in (small, (positional, keywords)):
            try:
                program = torch.export.export(model, inputs[0], inputs[1], strict=False)
                functional: ExportedProgram = program.run_decompositions({})
                return functional  # without in-place operations
            except Exception as error:  # torch.export raises errors of every kind
                failure = failure or error
    reason = next((line for line in str(failure).splitlines() if line.strip()), "no message")
    raise NotTraceable(f"torch.export cannot trace the model ({reason.strip()})") from failure


@dataclass
class GraphWalk:
    """Labels of every value, and the members and layers that the rules have named."""

    model: nn.Module
    program: ExportedProgram
    labels: Labels = field(default_factory=Labels)
    values: dict[Node, Any] = field(default_factory=dict)
    members: list[tuple[str, int, str, Tensor]] = field(default_factory=list)
    layers: list[tuple[str, str, Tensor]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        signature = self.program.graph_signature
        self._names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
        }
        self._constants = set(signature.inputs_to_lifted_tensor_constants)
        self._persistent = set(self.model.state_dict())
        self._twins = twins(self.model)

    def read(self, argument: Any) -> Tensor:
        value = self.values[argument]
        if not isinstance(value, Tensor):
            raise Refused("an operation on several tensors has no rule")
        return value

    def module(self, weight: Any, kinds: tuple[type[nn.Module], ...]) -> str:
        parameter = self.parameter(weight)
        if parameter is None:
            raise Refused("a layer without a weight has no rule")
        name, _, leaf = parameter.rpartition(".")
        if leaf != "weight" or not isinstance(self.model.get_submodule(name), kinds):
            raise Refused(f"`{parameter}` is used as a raw parameter, not by a module we know")
        return name

    def parameter(self, argument: Any) -> str | None:
        if argument is None:
            return None
        name = self._names.get(argument.name) if argument.op == "placeholder" else None
        if name is None:
            raise Refused("its weights are computed in the forward pass")
        if name in self._twins:
            raise Refused(f"`{name}` is shared with `{self._twins[name]}`")
        if len(argument.users) > 1:
            raise Refused(f"`{name.rpartition('.')[0] or name}` is called twice")
        if name not in self._persistent:
            raise Refused(f"`{name}` is not in the model's state_dict")
        return name

    def member(self, parameter: str, axis: int, role: str, labels: Tensor) -> None:
        self.members.append((parameter, axis, role, labels))

    def layer(self, kind: str, module: str, labels: Tensor) -> None:
        self.layers.append((kind, module, labels))

    def run(self) -> None:
        """Give every value of the graph its labels."""
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "output":
                for value in node.all_input_nodes:
                    self._refuse(self.values[value], "its outputs are the network's outputs")
            else:
                self.values[node] = self._call(node)

    def _placeholder(self, node: Node) -> Tensor:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return torch.tensor(CONSTANT)
        name = self._names.get(node.name)
        if name is not None and value.numel() > 1 and name in self._persistent:
            if name in self._twins or len(node.users) > 1:
                return torch.full(value.shape, DATA)
            return self.labels.atom(name, value.shape)
        if name is not None or node.name in self._constants:
            return torch.full(value.shape, WRITTEN if value.numel() > 1 else CONSTANT)
        return torch.full(value.shape, DATA)

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            whole, index = node.args
            return self.values[whole][index]  # type: ignore[index]
        if not _has_tensor(node):
            return torch.tensor(CONSTANT)
        try:
            return rule_for(node)(self, node, _by_name(node))
        except Refused as reason:
            for argument in node.all_input_nodes:
                self._refuse(self.values[argument], str(reason))
                name = self._names.get(argument.name, "").rpartition(".")[0]
                if argument.op == "placeholder" and name:
                    self.refused.setdefault(name, str(reason))
            return _data(node.meta["val"])

    def _refuse(self, value: Any, reason: str) -> None:
        for part in value if isinstance(value, tuple) else (value,):
            self.labels.refuse(part, reason)


def twins(model: nn.Module) -> dict[str, str]:
    """Parameters and buffers that share memory with another one, each with that other's name."""
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False)]
    tensors += [*model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if tensor.is_meta or tensor.numel() == 0:
            continue
        place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        if place in first:
            shared[name] = first[place]
            shared.setdefault(first[place], name)
        else:
            first[place] = name
    return shared


def _has_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor)


def _data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.full(value.shape, DATA)
    return tuple(_data(part) for part in value) if isinstance(value, list | tuple) else value


def _by_name(node: Node) -> dict[str, Any]:
    """The arguments of an operation by the names that its schema gives them."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # a higher-order operation, such as a branch
        raise Refused(f"operation {node.target} has no rule")
    named = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    return {**named, **node.kwargs}
