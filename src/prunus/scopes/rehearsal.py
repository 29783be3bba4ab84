"""What of a network's passes can be kept: tried on a few samples before anything is pruned."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from prunus.calibration.batches import call, to_device
from prunus.hints import Batch
from prunus.modes import evaluating
from prunus.scopes.caches import uncached
from prunus.scopes.replay import Replay
from prunus.scopes.trees import tensors_of
from prunus.weights import Weight

__all__ = ["Habits", "rehearsed"]


@dataclass(frozen=True)
class Habits:
    """How a network's passes are kept.

    Attributes:
        remember: False where calls that are answered from what is kept do not give what the
            network gives when it runs, so that every pass starts anew.
        chain: modules of which only the last output is needed again.
        loose: parameters that are read outside the call of the module that holds them.
    """

    remember: bool
    chain: tuple[str, ...]
    loose: frozenset[str]


def rehearsed(
    model: nn.Module,
    parts: Sequence[Batch],
    *,
    device: torch.device,
    weights: Mapping[str, Weight],
    calls: Mapping[str, int],
    chain: Sequence[str],
) -> Habits:
    """Go through the layers on a few samples, batch by batch in turn, and compare the outputs.

    A model that hands something from one module to another beside its arguments (an attribute set
    in one call and read in another) gives other outputs when calls are answered, and so does one
    that draws random numbers: its passes are not kept. Outputs of `chain` but the last are
    replaced by NaN, which shows where they are read again.

    Args:
        model: the network, before anything is pruned.
        parts: two or more small batches.
        device: where the model lives.
        weights: of its layers, in order of execution.
        calls: how often each layer is called in a pass.
        chain: modules that run one after another.
    """
    loose = loose_parameters(model, to_device(parts[0], device), weights)

    def agrees(lean: Sequence[str]) -> bool:
        with Replay(
            model, parts, device=device, weights=weights, calls=calls, loose=loose, chain=lean
        ) as replay:
            for name in weights:
                for i in range(len(parts)):
                    replay.seen(i, (name,))
            return all(_same(replay.output(i), plain[i]) for i in range(len(parts)))

    try:
        with evaluating(model), uncached(model), torch.no_grad():
            plain = [call(model, to_device(part, device), i) for i, part in enumerate(parts)]
        if chain and agrees(chain):
            return Habits(True, tuple(chain), loose)
        return Habits(agrees(()), (), loose)
    except ValueError:  # the passes that count say what is wrong, with all the data
        return Habits(False, (), loose)


def _same(one: Any, two: Any) -> bool:
    a, b = tensors_of(one), tensors_of(two)
    return len(a) == len(b) and all(
        x.shape == y.shape and bool(torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )


def loose_parameters(
    model: nn.Module, example: Batch, weights: Mapping[str, Weight]
) -> frozenset[str]:
    """Weights and biases of layers that one pass reads while another module runs."""
    homes: dict[int, tuple[str, int]] = {}
    for weight in weights.values():
        for path in (weight.path, weight.bias_path):
            if path is not None:
                homes[id(model.get_parameter(path))] = (path, id(weight.module))
    inside: list[int] = []
    found: set[str] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self,
            function: Callable[..., Any],
            types: Collection[type],
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            for leaf in tree_flatten((args, kwargs or {}))[0]:
                home = homes.get(id(leaf)) if isinstance(leaf, Tensor) else None
                if home is not None and home[1] not in inside[-1:]:
                    found.add(home[0])
            return function(*args, **(kwargs or {}))

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(id(module))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    hooks = []
    try:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # runs as one, outside Python
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))
        with evaluating(model), torch.no_grad(), Watch():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(found)
