"""Certificates for weights and masks that are known, beside prediction and measurement."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from prunus.check import as_float64, fraction, positive
from prunus.theory.gap.chain import chain_bound, chain_lipschitz
from prunus.theory.gap.from_data import REAL, Sampled, sample_statements
from prunus.theory.gap.per_sample import Norms
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.rounding import rounding_at, rounding_error
from prunus.theory.gap.search import ascend
from prunus.theory.gap.stages import (
    Branches,
    LayerNorms,
    LinearPair,
    Stage,
    check_stages,
    layer_norms,
    linear_stages,
    run,
    unchanged,
)
from prunus.theory.gap.statement import Certificate, Statement, judge, warn_vacuous

__all__ = ["SLACK", "certify", "largest_inside", "local_bound", "roundoff"]

SLACK = 1e-12  # relative, for the float64 arithmetic of the bounds themselves
Networks = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff u of arithmetic in a floating-point dtype.

    Raises:
        ValueError: the dtype is none.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be one of floating-point numbers, got {dtype}.")
    return torch.finfo(dtype).eps / 2


def certify(
    stages: Sequence[Stage],
    *,
    radius: float,
    centre: Any = None,
    input_shape: Sequence[int] | None = None,
    delta: float = 0.05,
    samples: Any = None,
    in_sample: bool = False,
    covers_support: bool = False,
    dtype: torch.dtype = torch.float32,
    search_steps: int = 60,
    generator: Generator | None = None,
    networks: Networks | None = None,
    unit: float | None = None,
    largest: float | None = None,
    entry: float = 0.0,
) -> Certificate:
    """Everything provable of one pruned network, with predictions and measurements beside it.

    The sup statement is the least of the product route, the averaged-activation chain and the
    trivial bound, plus a rounding term of both forward passes in `dtype`.

    Args:
        stages: the network as `LinearPair`, `Pointwise`, `Lipschitz` and `Branches` stages.
        radius: B of the ball of inputs.
        centre: of the ball, one input without batch axis; zero if None.
        input_shape: of one input, needed where neither centre nor samples nor a first matrix
            tells it.
        delta: failure probability of each held-out statement.
        samples: inputs (batch first) on which to measure, predict and make held-out statements.
        in_sample: the samples calibrated or planned: no guarantee follows from them.
        covers_support: every input the distribution can produce lies in the ball (allows a bound
            on the mean).
        dtype: in which the networks run.
        search_steps: gradient ascent steps in search of the true sup; 0 measures on the samples
            inside the ball only.
        generator: for the starts of the search; a fixed one if None.
        networks: runs the two real networks: inputs → (the inputs as they read them, outputs,
            outputs of the pruned network). Every measured number then comes from it; without it
            the stages are the networks, in float64.
        unit: roundoff of both networks' arithmetic; that of `dtype` if None.
        largest: number that both networks can hold; that of `dtype` if None. Where values of the
            ball may exceed it, the bound is ∞.
        entry: relative rounding of the inputs before the pruned network, where it reads a
            coarser dtype than the dense one.

    Raises:
        UnsoundError: a bound is below what was measured.
    """
    pairs = check_stages(stages)
    ball, _ = positive("radius", radius), fraction("delta", delta)
    u = roundoff(dtype) if unit is None else positive("unit", unit)
    most = torch.finfo(dtype).max if largest is None else positive("largest", largest)
    x = None if samples is None else as_float64("samples", samples)
    origin = _origin(pairs, centre, input_shape, x)
    norms = functools.cache(layer_norms)
    start = Reach(dense=ball, pruned=ball, gap=0.0, centre=origin, pruned_centre=origin)
    reach = product_bound(pairs, start, norms)
    trivial = _trivial(pairs, reach, ball, origin)
    routes = {"product of norms": reach.gap, "trivial": trivial}
    chain = chain_bound(pairs, ball, origin)
    if chain is not None:
        routes["averaged activations"] = chain
    route = min(routes, key=routes.__getitem__)

    measured, sampled = 0.0, None
    if x is not None:
        sampled = _measured(pairs, x, networks)
        inside = (x - origin).flatten(1).norm(dim=1) <= ball
        measured = float(torch.where(inside, sampled.gaps, 0.0).max())
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    found, points = ascend(
        pairs, ball, origin, steps=search_steps, generator=generator,
        samples=None if x is None else x[inside],
    )  # fmt: skip
    if networks is None:
        measured = max(measured, float(found.max()) if search_steps else 0.0)
    else:
        measured = max(measured, largest_inside(networks, points, origin, ball, u))

    same = all(unchanged(pair) for pair in linear_stages(pairs)) and not entry
    rounding = 0.0  # equal networks round alike
    if not same or measured > 0:
        rounding = rounding_error(pairs, ball, origin, u, norms, entry=entry, largest=most)
    value = routes[route] * (1 + SLACK) + rounding
    scale = None if sampled is None else sampled.scale
    vacuous, reason = judge(value, trivial, scale)
    if math.isinf(rounding):
        reason = (
            "rounding has no bound in the networks' own numbers: within the ball values may leave "
            "their range, or sums are too long for them"
        )
    sup = Statement(
        kind="sup",
        status="RIG",
        level="L3",
        value=value,
        route=route,
        ledger=(
            (f"norms and chain in float64, inflated outwards ({route})", 0.0),
            (f"rounding of both forward passes (roundoff {u:.2g}): {rounding:.3g} added", 0.0),
        ),
        measured=measured,
        trivial=trivial,
        vacuous=vacuous,
        reason=reason,
        assumptions=(f"inputs within {ball:.4g} of the centre", REAL),
    )
    statements, held_out = [sup], list[Statement]()
    if sampled is not None:
        if not same or bool((sampled.gaps > 0).any()):
            sampled = replace(sampled, rounding=(
                rounding_at(
                    pairs, sampled.inputs, u, pruned=False, norms=norms, largest=most
                ),
                rounding_at(
                    pairs, sampled.inputs, u, pruned=True, norms=norms, entry=entry, largest=most
                ),
            ))  # fmt: skip
        from_data, held_out = sample_statements(
            pairs, sampled, norms, delta, in_sample, value if covers_support else None
        )
        statements += from_data
    warn_vacuous(statements)
    return Certificate(
        statements=tuple(statements),
        held_out=tuple(held_out),
        per_layer=_per_layer(pairs, ball, origin, norms),
        gaps=() if sampled is None else tuple(sampled.gaps.tolist()),
        radius=ball,
    )


def _measured(stages: Sequence[Stage], x: Tensor, networks: Networks | None) -> Sampled:
    """Both networks' outputs on the samples; the stages' where there are no networks."""
    none = torch.zeros(len(x), dtype=torch.float64)
    if networks is None:
        dense, pruned = run(stages, x).flatten(1), run(stages, x, pruned=True).flatten(1)
        return Sampled(inputs=x, dense=dense, pruned=pruned, rounding=(none, none))
    read, dense, pruned = networks(x)
    return Sampled(inputs=read, dense=dense, pruned=pruned, rounding=(none, none))


def largest_inside(
    networks: Networks, points: Tensor, origin: Tensor, radius: float, unit: float
) -> float:
    """The largest gap of the networks at points of the ball, which they may read rounded."""
    reach = 4 * unit * (1 + float(origin.norm()) / radius)
    shrunk = origin + (points - origin) * max(0.5, 1 - reach)
    read, dense, pruned = networks(shrunk)
    inside = (read - origin).flatten(1).norm(dim=1) <= radius
    gaps = (dense - pruned).norm(dim=1)
    gaps = torch.where(gaps.isnan(), math.inf, gaps)  # of outputs beyond the networks' numbers
    return float(torch.where(inside, gaps, 0.0).max())


def _trivial(stages: Sequence[Stage], reach: Reach, radius: float, centre: Tensor) -> float:
    """B (Lip F + Lip f) + ‖F(c) − f(c)‖: what knows nothing of the difference of the weights."""
    at_centre = float((reach.centre - reach.pruned_centre).norm())
    sides = [reach.dense, reach.pruned]
    for i, pruned in enumerate((False, True)):
        constant = chain_lipschitz(stages, centre, pruned=pruned)
        if constant is not None:
            sides[i] = min(sides[i], radius * constant)
    return sum(sides) + at_centre


def _origin(
    stages: Sequence[Stage], centre: Any, input_shape: Sequence[int] | None, samples: Tensor | None
) -> Tensor:
    if centre is not None:
        return as_float64("centre", centre)[None]
    if input_shape is not None:
        return torch.zeros(1, *input_shape, dtype=torch.float64)
    if samples is not None:
        return torch.zeros_like(samples[:1])
    first = stages[0] if stages else None
    if isinstance(first, LinearPair) and first.geometry is None:
        return torch.zeros(1, first.weight.shape[1], dtype=torch.float64)
    raise ValueError(
        "the shape of an input is unknown: pass `centre`, `input_shape` or `samples` (only a first "
        "matrix tells its width)."
    )


def local_bound(stages: Sequence[Stage], point: Any, radius: float) -> float:
    """Bound on the gap within `radius` of one input: ‖F(x) − f(x)‖ + r (Lip F + Lip f)."""
    pairs = check_stages(stages)
    x = as_float64("point", point)[None]
    norms = functools.cache(layer_norms)
    start = Reach(dense=radius, pruned=radius, gap=0.0, centre=x, pruned_centre=x)
    reach = product_bound(pairs, start, norms)
    chain = chain_bound(pairs, radius, x)
    trivial = _trivial(pairs, reach, radius, x)
    return min(trivial, reach.gap, math.inf if chain is None else chain)


def _per_layer(
    stages: Sequence[Stage], radius: float, origin: Tensor, norms: Norms
) -> Mapping[str, Mapping[str, float]]:
    """Norms of each layer, and the product bound if this layer alone were pruned."""
    table = {}
    everything = linear_stages(stages)
    for name in dict.fromkeys(pair.name for pair in everything):  # a module may be called twice
        alone = tuple(_only(stages, name))
        known = {id(pair): norms(old) for pair, old in zip(
            linear_stages(alone), everything, strict=True)}  # fmt: skip

        def lookup(
            pair: LinearPair, known: dict[int, LayerNorms] = known, name: str = name
        ) -> LayerNorms:
            full = known[id(pair)]
            if pair.name == name:
                return full
            return LayerNorms(dense=full.dense, pruned=full.dense, difference=0.0)

        start = Reach(dense=radius, pruned=radius, gap=0.0, centre=origin, pruned_centre=origin)
        calls = [norms(pair) for pair in everything if pair.name == name]
        table[name] = {
            "dense": max(call.dense for call in calls),
            "pruned": max(call.pruned for call in calls),
            "difference": max(call.difference for call in calls),
            "contribution": product_bound(alone, start, lookup).gap,
        }
    return table


def _only(stages: Sequence[Stage], name: str) -> list[Stage]:
    """The stages with every layer but the one of this name unpruned."""
    kept: list[Stage] = []
    for stage in stages:
        if isinstance(stage, LinearPair) and stage.name != name:
            kept.append(replace(stage, pruned_weight=stage.weight, pruned_bias=stage.bias))
        elif isinstance(stage, Branches):
            branch, shortcut = tuple(_only(stage.branch, name)), tuple(_only(stage.shortcut, name))
            kept.append(replace(stage, branch=branch, shortcut=shortcut))
        else:
            kept.append(stage)
    return kept
