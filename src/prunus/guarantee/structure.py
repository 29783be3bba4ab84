"""Whether two networks differ in their weights alone: their modules, settings and graphs."""

import threading
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.ambient import ONE_AT_A_TIME
from prunus.guarantee.rules import AVAILABLE, Unsupported

__all__ = ["graph_of", "same_structure"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


def same_structure(model: nn.Module, pruned: nn.Module, known: fx.Graph | None = None) -> fx.Graph:
    """The graph of both networks; `known` is that of `model`, where it was traced before.

    Raises:
        ValueError: a module is of another type in the other network.
        Unsupported: a setting of a module differs, or what is called; or a network cannot be
            traced.
    """
    theirs = dict(pruned.named_modules())
    for name, module in model.named_modules():
        if type(theirs.get(name)) is not type(module):
            raise ValueError(
                f"the two models differ at {name or 'the root'!r}: {type(module).__name__} before, "
                f"{type(theirs.get(name)).__name__} after pruning. Certify the masked network."
            )
    graph = graph_of(model) if known is None else known
    other = graph if pruned is model else graph_of(pruned)
    for one, two in zip(graph.nodes, other.nodes, strict=False):
        if _call(one) != _call(two):
            raise _differ(f"at {one.name!r}", f"{one.format_node()}", f"{two.format_node()}")
    if len(graph.nodes) != len(other.nodes):
        counts = (f"{len(g.nodes)} operations" for g in (graph, other))
        raise _differ("in what they call", *counts)
    # Only modules that are called as they are: what others hold shows in the graph where it counts.
    for name in dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module"):
        _same_settings(name, model.get_submodule(name), pruned.get_submodule(name))
    return graph


def graph_of(model: nn.Module) -> fx.Graph:
    """What a network calls, in order.

    Raises:
        Unsupported: its forward cannot be traced.
    """
    if not list(model.children()):  # a bare layer would be traced into its own forward
        graph = fx.Graph()
        graph.output(graph.call_module("", (graph.placeholder("x"),)))
        return graph
    try:
        return _traced(model)
    except Exception as error:
        raise Unsupported(
            f"{type(model).__name__} cannot be traced as a chain of layers "
            f"({str(error).splitlines()[0]}). {AVAILABLE}"
        ) from None


class _Tracer(fx.Tracer):
    """Follows the modules of one thread; others find theirs as they are.

    torch replaces `nn.Module.__call__` and `__getattr__` for the whole process while it traces.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _traced(model: nn.Module) -> fx.Graph:
    """One trace at a time: two that overlap would put back what the other had put."""
    with ONE_AT_A_TIME:
        kind: Any = nn.Module
        call, attribute = kind.__call__, kind.__getattr__
        try:
            return _Tracer().trace(model)
        finally:  # torch's own end of it may be missed by an interrupt
            kind.__call__, kind.__getattr__ = call, attribute


def _differ(where: str, before: str, after: str) -> Unsupported:
    return Unsupported(
        f"the two models differ {where}: {before} before, {after} after pruning. Only networks "
        f"that differ in their weights alone can be certified over a ball. {AVAILABLE}"
    )


def _same_settings(name: str, one: nn.Module, other: nn.Module) -> None:
    first, second = _settings(one), _settings(other)
    for key in (*first, *(k for k in second if k not in first)):
        before, after = first.get(key), second.get(key)
        if before != after:
            where = f"at {name or 'the root'!r} ({type(one).__name__}) in {key!r}"
            raise _differ(where, _shown(before), _shown(after))


def _shown(value: Any) -> str:
    value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    return value if isinstance(value, str) else repr(value)


def _settings(module: nn.Module) -> dict[str, Any]:
    """What of a module can be compared: numbers, words, functions, and containers of them."""
    found = {
        key: plain
        for key, value in vars(module).items()
        if key != "training" and not key.startswith("_") and (plain := _plain(value)) is not None
    }
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        found[key] = None if tensor is None else f"shape {tuple(tensor.shape)}"
    return found


def _plain(value: Any) -> Any:
    """A value as something that compares by its content; None where it is of no known kind."""
    if isinstance(value, Tensor | nn.Module):
        return None
    if isinstance(value, partial):
        return ("partial", _plain(value.func), _plain(value.args), _plain(value.keywords))
    if isinstance(value, types.MethodType):  # bound to a copy of the module
        return value.__func__
    if isinstance(value, (*PLAIN, *FUNCTIONS)):
        return (value,)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    return None


def _call(node: fx.Node) -> tuple[Any, ...]:
    """What a node calls, with what."""
    shown = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{n.name}")
    return node.op, node.target, repr(shown)
