"""Layers of experts with their routers: found, barred from some experts, cut."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prunus.hints import Batch
from prunus.modes import copied
from prunus.surgery.verify import verify_equal

__all__ = [
    "Mixture", "bar", "bar_router", "barred_from", "cut_experts", "kept_experts", "mixtures",
    "short_of", "stacks_of", "without_masked",
]  # fmt: skip

Masks = Mapping[str, Tensor]
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
TOP = ("top_k", "num_experts_per_tok")
GROUPS = ("num_group", "n_group")


@dataclass(frozen=True)
class Mixture:
    """A layer of experts with its router.

    Attributes:
        experts: name of the module that holds the experts' stacked parameters.
        router: name of the module with a row for each expert.
        count: of experts.
        top: how many of them a token is sent to.
        groups: of experts, of which the router chooses some first; 1 where it does not.
        least: experts of each group that must stay, so that the router finds enough.
    """

    experts: str
    router: str
    count: int
    top: int
    groups: int = 1
    least: int = 1


def mixtures(model: nn.Module) -> dict[str, Mixture]:
    """The layers of experts by name: stacked parameters beside a router with a row for each.

    Raises:
        ValueError: there are none.
    """
    found = {}
    for name, module in model.named_modules():
        start = f"{name}." if name else ""
        children = dict(module.named_children())
        for own, experts in children.items():
            stacks = [p for p in experts.parameters(recurse=False) if p.ndim >= 3]
            if not stacks or len({len(p) for p in stacks}) != 1:
                continue
            count = len(stacks[0])
            routers = [
                key
                for key, child in children.items()
                if isinstance(weight := getattr(child, "weight", None), Tensor)
                and weight.ndim == 2
                and len(weight) == count
            ]
            tops = [vars(children[r])[t] for r in routers for t in TOP if t in vars(children[r])]
            if len(routers) == 1 and tops:
                router = vars(children[routers[0]])
                groups = next((router[key] for key in GROUPS if router.get(key)), None)
                found[name] = Mixture(
                    start + own,
                    start + routers[0],
                    count,
                    int(tops[0]),
                    groups or 1,
                    _least(int(tops[0]), groups, router.get("topk_group") or 1),
                )
    if not found:
        raise ValueError(
            "The model has no layers of experts: none holds stacked parameters (experts, …) beside "
            "a router with a row for each and a `top_k`. Experts in an nn.ModuleList stay, all of "
            "them: use Node(), which cuts channels inside each, or a recipe for edges."
        )
    return found


def _least(top: int, groups: int | None, chosen: int) -> int:
    """Of each group: a token's experts lie in the groups chosen, which two of each rank."""
    return top if groups is None else max(2, math.ceil(top / chosen))


def short_of(name: str, mixture: Mixture, count: int) -> ValueError | None:
    """The error where so many experts of a layer are too few for its router; else None."""
    least = mixture.groups * mixture.least
    if count >= least:
        return None
    sent = f"Every token of {name!r} is sent to {mixture.top} experts"
    if mixture.groups > 1:
        sent += f" of some of {mixture.groups} groups"
    share = math.ceil(1000 * least / mixture.count) / 1000
    return ValueError(
        f"{sent}, so that at least {least} of {mixture.count} must stay, got {count}. Give a "
        f"density of {share:g} or more."
    )


def stacks_of(model: nn.Module, mixture: Mixture) -> dict[str, Tensor]:
    """The parameters with an entry, or a row, for each expert, by name."""
    return {
        f"{home}.{name}": parameter
        for home in (mixture.experts, mixture.router)
        for name, parameter in model.get_submodule(home).named_parameters(recurse=False)
        if parameter.ndim and len(parameter) == mixture.count
    }


def kept_experts(model: nn.Module, masks: Masks) -> dict[str, Bool[Tensor, " experts"]]:
    """True for each expert that masks leave a row of the router, by name of its layer.

    What the router is barred from already, as after an earlier pruning, stays gone.
    """
    found = {}
    for name, mixture in mixtures(model).items():
        gone = barred_from(model.get_submodule(mixture.router), mixture.count)
        mask = masks.get(f"{mixture.router}.weight")
        if mask is not None or bool(gone.any()):
            left = ~gone if mask is None else mask.any(1).cpu() & ~gone
            found[name] = left
    return found


class Barred:
    """A hook of a router: answers as with logits −∞ for some experts.

    The router is run again with them, so that no parameter, key or class of the module changes;
    biases that are added for the choice alone (buffers) are −∞ as well.
    """

    def __init__(self, gone: Bool[Tensor, " experts"]) -> None:
        self.gone = gone

    def __call__(self, module: nn.Module, args: Any, keywords: Any, output: Any) -> Any:
        own = copy.copy(module)
        own.__dict__ = {**module.__dict__, "_buffers": self._choosing(module)}
        with _Without(self.gone):
            return own.forward(*args, **keywords)

    def _choosing(self, module: nn.Module) -> dict[str, Tensor | None]:
        return {
            name: b.masked_fill(self.gone.to(b.device), -torch.inf)
            if b is not None and b.is_floating_point() and b.shape == self.gone.shape
            else b
            for name, b in module._buffers.items()
        }


class _Without(TorchFunctionMode):
    """Linear maps to a number for each expert give −∞ for some of them."""

    def __init__(self, gone: Tensor) -> None:
        super().__init__()
        self.gone = gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is F.linear and found.shape[-1] == len(self.gone):
            return found.masked_fill(self.gone.to(found.device), -torch.inf)
        return found


def bar(model: nn.Module, masks: Masks) -> None:
    """Bar a network's routers, in place, from the experts that masks have emptied."""
    layers = mixtures(model)
    for name, stays in kept_experts(model, masks).items():
        bar_router(model.get_submodule(layers[name].router), ~stays)


def bar_router(router: nn.Module, gone: Bool[Tensor, " experts"]) -> None:
    """Bar a router from these experts, and from no others."""
    hooks = router._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, Barred)]:
        del hooks[key]
        router._forward_hooks_with_kwargs.pop(key, None)
    if bool(gone.any()):
        router.register_forward_hook(Barred(gone.cpu()), with_kwargs=True)


def barred_from(router: nn.Module, count: int) -> Bool[Tensor, " experts"]:
    """The experts that a router is barred from."""
    found = [hook.gone for hook in router._forward_hooks.values() if isinstance(hook, Barred)]
    return found[0] if found else torch.zeros(count, dtype=torch.bool)


def without_masked(
    model: nn.Module, masks: Masks, example: Batch, *, rtol: float = 1e-4
) -> nn.Module:
    """A copy of a barred network without the experts that masks have emptied, verified equal.

    Raises:
        CompactionError: it differs or fails.
    """
    small = copied(model)
    cut_experts(small, kept_experts(model, masks))
    verify_equal(model, small, example, kept={}, rtol=rtol)
    return small


def cut_experts(model: nn.Module, kept: Mapping[str, Bool[Tensor, " experts"]]) -> None:
    """Cut experts out of layers, with the routers' rows, in place; configurations follow."""
    layers = mixtures(model)
    sizes = {layers[name].count: int(stays.sum()) for name, stays in kept.items()}
    for name, stays in kept.items():
        bar_router(model.get_submodule(layers[name].router), torch.zeros_like(stays))
        _cut(model, layers[name], stays)
    seen: dict[int, Any] = {}  # one configuration serves many modules
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "__dict__"):
            seen[id(config)] = config
    for config in seen.values():
        for key in COUNTS:
            if vars(config).get(key) in sizes:
                setattr(config, key, sizes[vars(config)[key]])


def _cut(model: nn.Module, mixture: Mixture, stays: Tensor) -> None:
    count = int(stays.sum())
    home = model.get_submodule(mixture.experts.rpartition(".")[0])
    for module in (
        home, model.get_submodule(mixture.experts), model.get_submodule(mixture.router)
    ):  # fmt: skip
        for name, value in list(vars(module).items()):
            if name in (*COUNTS, "out_features") and value == mixture.count:
                setattr(module, name, count)
        if module is home:
            continue
        stores: Any = (module._parameters, module._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None and tensor.ndim and len(tensor) == mixture.count:
                    less = tensor.detach()[stays.to(tensor.device)]
                    learned = isinstance(tensor, nn.Parameter)
                    flag = tensor.requires_grad
                    store[name] = nn.Parameter(less, requires_grad=flag) if learned else less
