"""Experts of mixture layers: what each does on data, and a network without some of them.

An expert is no class of channels: zeroing it is not removing it, since the router goes on sending
tokens to it. A removed expert is one whose router logit is −∞, so that its tokens go to the others
with their gates renormalised; slices of the experts' parameters and the router's row are cut.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
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
from prunus.scopes.trees import tensors_of
from prunus.surgery.mixtures import (
    Mixture,
    bar_router,
    barred_from,
    cut_experts,
    mixtures,
    short_of,
)

__all__ = ["ExpertScores", "expert_gaps", "expert_scores", "mixtures", "without_experts"]

Real = Callable[[int], Tensor]  # True for each of so many tokens that is no padding


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
    sums: dict[str, Tensor] = {}

    def note(
        name: str, mixture: Mixture, real: Real, experts: nn.Module, given: Sequence[Any]
    ) -> None:
        if len(given) < 3 or not all(isinstance(t, Tensor) for t in given[:3]):
            raise ValueError(
                f"The experts of {name!r} are not called as experts(x, index, gates), so that "
                f"their tokens are not known."
            )
        x, index, gates = given[:3]
        x, index = x.reshape(-1, x.shape[-1]), index.reshape(-1, index.shape[-1])
        gates = gates.reshape(index.shape)
        total = sums.setdefault(name, torch.zeros(3, mixture.count, dtype=torch.float64))
        counts = real(len(x)).to(index.device)
        for expert in range(mixture.count):
            at, place = ((index == expert) & counts[:, None]).nonzero().T
            if not len(at):
                continue
            one = torch.full((len(at), 1), expert, device=index.device, dtype=index.dtype)
            alone = type(experts).forward(experts, x[at], one, torch.ones_like(gates[at, :1]))
            size = alone.double().norm(dim=-1).cpu()
            gate = gates[at, place].double().cpu()
            total[:, expert] += torch.stack(
                [(gate * size).sum(), gate.sum(), torch.tensor(float(len(at)))]
            )

    with private(model) as own:
        layers = mixtures(own)
        before = {
            own.get_submodule(m.experts): partial(note, name, m) for name, m in layers.items()
        }
        _pass(own, data, before, progress)
    found = {}
    for name, mixture in layers.items():
        reap, gate, tokens = sums.get(name, torch.zeros(3, mixture.count, dtype=torch.float64))
        _check_finite(name, reap)
        each = tokens.clamp_min(1)
        found[name] = ExpertScores(reap / each, gate / each, tokens.long())
    return found


def expert_gaps(
    model: nn.Module, data: Any, *, progress: bool | None = None
) -> dict[str, Float[Tensor, " experts"]]:
    """What the output of a layer changes without each of its experts, by the layer's name.

    E‖y − y₋ₑ‖² per token, in squared units of the stream, where y₋ₑ is the layer's output when
    its router is barred from expert e alone: tokens go to the next best, gates are renormalised.
    One pass, in which every layer of experts runs once more for each of them.

    Args:
        model: the network; it is left as it is.
        data: batches; where they have an `attention_mask`, padding does not count.
        progress: show a bar.
    """
    sums: dict[str, Tensor] = {}

    def note(
        name: str, mixture: Mixture, real: Real, home: nn.Module, given: Sequence[Any]
    ) -> None:
        router = own.get_submodule(mixture.router)
        gone = barred_from(router, mixture.count)
        total = sums.setdefault(name, torch.zeros(mixture.count + 1, dtype=torch.float64))

        def answer(barred: Tensor) -> Tensor:
            bar_router(router, barred)
            values = tensors_of(type(home).forward(home, *given))[0].detach().double()
            return values.reshape(-1, values.shape[-1])

        whole = answer(gone)
        counts = real(len(whole)).to(whole)
        total[-1] += float(counts.sum())
        for expert in (~gone).nonzero().flatten().tolist():
            barred = gone.clone()
            barred[expert] = True
            change = (whole - answer(barred)).square().sum(-1)
            total[expert] += float((change * counts).sum())
        bar_router(router, gone)

    with private(model) as own:
        layers = mixtures(own)
        for name, mixture in layers.items():
            if mixture.count == mixture.groups * mixture.least:
                raise ValueError(
                    f"A token of {name!r} needs all {mixture.count} experts, so that none can be "
                    f"left out."
                )
        before = {own.get_submodule(name): partial(note, name, m) for name, m in layers.items()}
        _pass(own, data, before, progress)
    found = {}
    for name, mixture in layers.items():
        total = sums.get(name, torch.zeros(mixture.count + 1, dtype=torch.float64))
        _check_finite(name, total)
        found[name] = total[:-1] / total[-1].clamp_min(1)
    return found


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"The experts of {name!r} gave NaN or infinite values on the data.")


def _pass(
    model: nn.Module,
    data: Any,
    before: Mapping[nn.Module, Callable[[Real, nn.Module, Sequence[Any]], None]],
    progress: bool | None,
) -> None:
    """Run a private model over all data; before each call of some modules, a function sees it."""
    mask: list[Tensor | None] = [None]
    numbers = itertools.count()

    def real(count: int) -> Tensor:
        known = mask[0]
        if known is None or known.numel() != count:
            return torch.ones(count, dtype=torch.bool)
        return known.flatten() != 0

    def hook(note: Any, module: nn.Module, args: tuple[Any, ...], keywords: Any) -> None:
        note(real, module, [*args, *keywords.values()])

    handles = [
        module.register_forward_pre_hook(partial(hook, note), with_kwargs=True)
        for module, note in before.items()
    ]
    try:
        with (
            evaluating(model),
            torch.no_grad(),
            progress_bar("experts", None, progress=progress) as advance,
        ):
            for batch in Batches(data):
                for part in parts(batch):
                    here = to_device(part, device_of(model))
                    known = here.get("attention_mask") if isinstance(here, Mapping) else None
                    mask[0] = known if isinstance(known, Tensor) else None
                    call(model, here, next(numbers))
                advance(1)
    finally:
        for handle in handles:
            handle.remove()


def without_experts(
    model: nn.Module, scores: Mapping[str, ExpertScores], density: float
) -> tuple[nn.Module, dict[str, Bool[Tensor, " experts"]]]:
    """A copy of a network without the experts of lowest `reap`, the same number in every layer.

    Args:
        model: the network; it is left as it is.
        scores: of its layers, from `expert_scores`.
        density: kept / total experts of each layer, in (0, 1]; of each group of experts, where
            the router chooses groups first.

    Returns:
        The smaller network, whose configuration says its number of experts, and True for each
        expert that stays.

    Raises:
        ValueError: fewer would stay than a token is sent to, or layers of different sizes where
            the configuration has one number.
    """
    layers = mixtures(model)
    share = fraction("density", density)
    if {m.count for m in layers.values()} != {next(iter(layers.values())).count}:
        raise ValueError("The layers have different numbers of experts; give each its own model.")
    kept: dict[str, Tensor] = {}
    for name, mixture in layers.items():
        each = count_of(share, mixture.count // mixture.groups)
        error = short_of(name, mixture, mixture.groups * each)
        if error is not None:
            raise error
        reap = scores[name].reap.view(mixture.groups, -1)
        order = reap.argsort(dim=1, descending=True, stable=True)
        kept[name] = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :each], True)
        kept[name] = kept[name].flatten()
    small = copied(model)
    cut_experts(small, kept)
    return small, kept
