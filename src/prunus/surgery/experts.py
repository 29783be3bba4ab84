"""Experts of mixture layers: what each does on data, and a network without some of them.

An expert is no class of channels: zeroing it is not removing it, since the router goes on sending
tokens to it. A removed expert is one whose router logit is −∞, so that its tokens go to the others
with their gates renormalised; slices of the experts' parameters and the router's row are cut.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.calibration.batches import Batches, call, parts, to_device
from prunus.calibration.place import device_of
from prunus.check import fraction
from prunus.counting import count_of
from prunus.modes import copied, evaluating, private
from prunus.progress import progress_bar

__all__ = ["ExpertScores", "expert_scores", "mixtures", "without_experts"]

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
TOP = ("top_k", "num_experts_per_tok")


@dataclass(frozen=True, eq=False)
class ExpertScores:
    """What the experts of one layer did on data.

    Attributes:
        reap: mean over an expert's routed tokens of gate · ‖f_e(x)‖₂; 0 where it had none.
        gate: mean gate over its routed tokens.
        tokens: how many were routed to it.
    """

    reap: Float[Tensor, " experts"]
    gate: Float[Tensor, " experts"]
    tokens: Int[Tensor, " experts"]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A layer of experts with its router: the names of their modules, and how many there are."""

    experts: str
    router: str
    count: int
    top: int


def mixtures(model: nn.Module) -> dict[str, Mixture]:
    """The layers of experts by name: stacked parameters beside a router with a row for each.

    Raises:
        ValueError: there are none.
    """
    found = {}
    for name, module in model.named_modules():
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
            tops = [getattr(children[r], t) for r in routers for t in TOP if t in vars(children[r])]
            if len(routers) == 1 and tops:
                start = f"{name}." if name else ""
                found[name] = Mixture(start + own, start + routers[0], count, int(tops[0]))
    if not found:
        raise ValueError(
            "The model has no layers of experts: none holds stacked parameters (experts, …) beside "
            "a router with a row for each and a `top_k`."
        )
    return found


def expert_scores(
    model: nn.Module, data: Any, *, progress: bool | None = None
) -> dict[str, ExpertScores]:
    """What every expert contributes on data, by the name of its layer; one pass.

    Args:
        model: the network; it is left as it is.
        data: batches; where they have an `attention_mask`, padding does not count.
        progress: show a bar.

    References:
        Lasby et al. (2025), REAP the experts: why pruning prevails for one-shot MoE compression,
        Eq. 9 (router-weighted expert activation pruning).
    """
    with private(model) as own:
        layers = mixtures(own)
        sums = {n: torch.zeros(3, m.count, dtype=torch.float64) for n, m in layers.items()}
        mask: list[Tensor | None] = [None]

        def note(name: str, experts: nn.Module, args: tuple[Any, ...], keywords: Any) -> None:
            given = [*args, *keywords.values()]
            if len(given) < 3 or not all(isinstance(t, Tensor) for t in given[:3]):
                raise ValueError(
                    f"The experts of {name!r} are not called as experts(x, index, gates), so that "
                    f"their tokens are not known."
                )
            x, index, gates = given[:3]
            x, index = x.reshape(-1, x.shape[-1]), index.reshape(-1, index.shape[-1])
            gates = gates.reshape(index.shape)
            counts = mask[0] is None or mask[0].numel() != len(x)
            real = torch.ones(len(x), dtype=torch.bool) if counts else mask[0].flatten() != 0  # type: ignore[union-attr]
            for expert in range(layers[name].count):
                at, place = ((index == expert) & real.to(index.device)[:, None]).nonzero().T
                if not len(at):
                    continue
                one = torch.full((len(at), 1), expert, device=index.device, dtype=index.dtype)
                alone = type(experts).forward(experts, x[at], one, torch.ones_like(gates[at, :1]))
                size = alone.double().norm(dim=-1).cpu()
                gate = gates[at, place].double().cpu()
                sums[name][:, expert] += torch.stack(
                    [(gate * size).sum(), gate.sum(), torch.tensor(float(len(at)))]
                )

        handles = [
            own.get_submodule(m.experts).register_forward_pre_hook(
                partial(note, name), with_kwargs=True
            )
            for name, m in layers.items()
        ]
        try:
            with (
                evaluating(own),
                torch.no_grad(),
                progress_bar("experts", None, progress=progress) as advance,
            ):
                for batch in Batches(data):
                    for part in parts(batch):
                        here = to_device(part, device_of(own))
                        known = here.get("attention_mask") if isinstance(here, Mapping) else None
                        mask[0] = known if isinstance(known, Tensor) else None
                        call(own, here)
                    advance(1)
        finally:
            for handle in handles:
                handle.remove()
    found = {}
    for name, (reap, gate, tokens) in sums.items():
        if not bool(torch.isfinite(reap).all()):
            raise ValueError(f"The experts of {name!r} gave NaN or infinite values on the data.")
        each = tokens.clamp_min(1)
        found[name] = ExpertScores(reap / each, gate / each, tokens.long())
    return found


def without_experts(
    model: nn.Module, scores: Mapping[str, ExpertScores], density: float
) -> tuple[nn.Module, dict[str, Bool[Tensor, " experts"]]]:
    """A copy of a network without the experts of lowest `reap`, the same number in every layer.

    Args:
        model: the network; it is left as it is.
        scores: of its layers, from `expert_scores`.
        density: kept / total experts of each layer, in (0, 1].

    Returns:
        The smaller network, whose configuration says its number of experts, and True for each
        expert that stays.

    Raises:
        ValueError: fewer would stay than a token is sent to, layers of different sizes where the
            configuration has one number, or a router that chooses groups of experts first.
    """
    small = copied(model)
    layers = mixtures(small)
    share = fraction("density", density)
    if {m.count for m in layers.values()} != {next(iter(layers.values())).count}:
        raise ValueError("The layers have different numbers of experts; give each its own model.")
    kept: dict[str, Tensor] = {}
    for name, mixture in layers.items():
        router = small.get_submodule(mixture.router)
        groups = max((vars(router).get(k) or 1 for k in ("num_group", "n_group")), default=1)
        if groups > 1:
            raise ValueError(
                f"The router {mixture.router!r} chooses {groups} groups of experts first; removing "
                f"experts changes what groups are. Its experts stay."
            )
        count = count_of(share, mixture.count)
        if count < mixture.top:
            raise ValueError(
                f"Every token of {name!r} is sent to {mixture.top} experts, so that at least "
                f"{mixture.top} of {mixture.count} must stay, got {count}. Give a density of "
                f"{math.ceil(1000 * mixture.top / mixture.count) / 1000:g} or more."
            )
        order = scores[name].reap.argsort(descending=True, stable=True)
        stays = torch.zeros(mixture.count, dtype=torch.bool)
        stays[order[:count]] = True
        kept[name] = stays
        _cut(small, mixture, stays)
    before, after = next(iter(layers.values())).count, int(next(iter(kept.values())).sum())
    for module in small.modules():
        config = getattr(module, "config", None)
        for key in COUNTS:
            if config is not None and vars(config).get(key) == before:
                setattr(config, key, after)
    return small, kept


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
