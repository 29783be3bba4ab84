"""Certificates for weights and masks that are known, beside prediction and measurement."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.check import as_float64, fraction, positive, whole
from prunus.theory.gap.chain import chain_bound, chain_lipschitz
from prunus.theory.gap.held_out import (
    clopper_pearson,
    empirical_bernstein,
    exceedance_everywhere,
    held_out_quantile,
    robustly_unchanged,
    sample_size_for_quantile,
)
from prunus.theory.gap.per_sample import (
    Norms,
    chain_gains,
    first_order_gaps,
    pairwise_unchanged,
    pointwise_bound,
    sample_bound,
)
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.rounding import rounding_error
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.stages import (
    Branches,
    LayerNorms,
    LinearPair,
    Stage,
    layer_norms,
    linear_stages,
    run,
)
from prunus.theory.gap.statement import (
    Certificate,
    Kind,
    Statement,
    judge,
    warn_in_sample,
    warn_vacuous,
)

__all__ = [
    "certify",
    "check_stages",
    "data_statements",
    "local_bound",
]

UNITS = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
LEVELS = (0.9, 0.95, 0.99)
REAL = "the statement is about real arithmetic on the stored weights, rounding added"
FRESH = "the inputs are independent, fresh, and were not used to train, choose or plan the mask"


def check_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with float64 weights, or an error that names the layer.

    Raises:
        ValueError: NaN or infinite weights, or shapes that differ between the two networks.
    """
    checked: list[Stage] = []
    for stage in stages:
        if isinstance(stage, Branches):
            branch, shortcut = check_stages(stage.branch), check_stages(stage.shortcut)
            checked.append(replace(stage, branch=branch, shortcut=shortcut))
        elif isinstance(stage, LinearPair):
            dims = 2 if stage.geometry is None else 4
            fields: dict[str, Tensor | None] = {}
            for field in ("weight", "pruned_weight", "bias", "pruned_bias"):
                value = getattr(stage, field)
                label = f"{stage.name}.{field}"
                expected = dims if "weight" in field else 1
                fields[field] = None if value is None else as_float64(label, value, dims=expected)
            dense, pruned = fields["weight"], fields["pruned_weight"]
            assert dense is not None
            assert pruned is not None
            if dense.shape != pruned.shape:
                raise ValueError(
                    f"layer {stage.name!r} has weights of shape {tuple(dense.shape)} before and "
                    f"{tuple(pruned.shape)} after pruning. Certify the masked, not the compacted "
                    f"network."
                )
            checked.append(replace(stage, **fields))  # type: ignore[arg-type]
        else:
            checked.append(stage)
    return tuple(checked)


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
    """
    pairs = check_stages(stages)
    ball, _ = positive("radius", radius), fraction("delta", delta)
    if dtype not in UNITS:
        raise ValueError(f"`dtype` must be one of {', '.join(map(str, UNITS))}, got {dtype}.")
    x = None if samples is None else as_float64("samples", samples)
    origin = _origin(pairs, centre, input_shape, x)
    norms = functools.cache(layer_norms)
    reach = product_bound(pairs, Reach(dense=ball, pruned=ball, gap=0.0, centre=origin,
                                       pruned_centre=origin), norms)  # fmt: skip
    trivial = _trivial(pairs, reach, ball, origin)
    routes = {"product of norms": reach.gap, "trivial": trivial}
    chain = chain_bound(pairs, ball, origin)
    if chain is not None:
        routes["averaged activations"] = chain
    unpruned = all(_same(pair) for pair in linear_stages(pairs))
    rounding = 0.0 if unpruned else rounding_error(pairs, ball, origin, UNITS[dtype], norms)
    route = min(routes, key=routes.__getitem__)
    value = routes[route] * (1 + 1e-12) + rounding

    generator = torch.Generator().manual_seed(0) if generator is None else generator
    inside = None
    scale = None
    if x is not None:
        inside = x[(x - origin).flatten(1).norm(dim=1) <= ball]
        scale = float(run(pairs, x).flatten(1).square().sum(dim=1).mean().sqrt())
    measured = largest_gap(
        pairs, ball, origin, steps=search_steps, generator=generator, samples=inside
    )
    vacuous, reason = judge(value, trivial, scale)
    sup = Statement(
        kind="sup",
        status="RIG",
        level="L3",
        value=value,
        route=route,
        ledger=(
            (f"norms and chain in float64, inflated outwards ({route})", 0.0),
            (f"rounding of both forward passes in {dtype}: {rounding:.3g} added", 0.0),
        ),
        measured=measured,
        trivial=trivial,
        vacuous=vacuous,
        reason=reason,
        assumptions=(f"inputs within {ball:.4g} of the centre", REAL),
    )
    statements, held_out = [sup], list[Statement]()
    gaps: tuple[float, ...] = ()
    if x is not None:
        from_data, held_out, gaps = _with_samples(
            pairs, x, norms, scale or 0.0, delta, in_sample, value if covers_support else None
        )
        statements += from_data
    warn_vacuous(statements)
    return Certificate(
        statements=tuple(statements),
        held_out=tuple(held_out),
        per_layer=_per_layer(pairs, ball, origin, norms),
        gaps=tuple(gaps),
        radius=ball,
    )


def _trivial(stages: Sequence[Stage], reach: Reach, radius: float, centre: Tensor) -> float:
    """B (Lip F + Lip f) + ‖F(c) − f(c)‖: what knows nothing of the difference of the weights."""
    at_centre = float((reach.centre - reach.pruned_centre).norm())
    sides = [reach.dense, reach.pruned]
    for i, pruned in enumerate((False, True)):
        constant = chain_lipschitz(stages, centre, pruned=pruned)
        if constant is not None:
            sides[i] = min(sides[i], radius * constant)
    return sum(sides) + at_centre


def _same(pair: LinearPair) -> bool:
    same = torch.equal(pair.weight, pair.pruned_weight)
    if pair.bias is None or pair.pruned_bias is None:
        return same and all(b is None or not bool(b.any()) for b in (pair.bias, pair.pruned_bias))
    return same and torch.equal(pair.bias, pair.pruned_bias)


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


def _with_samples(
    stages: Sequence[Stage],
    x: Tensor,
    norms: Norms,
    scale: float,
    delta: float,
    in_sample: bool,
    largest: float | None,
) -> tuple[list[Statement], list[Statement], tuple[float, ...]]:
    dense, pruned = run(stages, x).flatten(1), run(stages, x, pruned=True).flatten(1)
    gaps = (dense - pruned).norm(dim=1)
    rms = float(gaps.square().mean().sqrt())
    gains_of = functools.cache(chain_gains)  # the norms of all segments: computed once
    bound, route = sample_bound(stages, x, norms, gains_of)
    vacuous, reason = judge(bound, None, scale)
    predicted = float(first_order_gaps(stages, x).square().mean().sqrt())
    rough = predicted > 0.3 * scale
    note = ("predicted beyond 30 % of rms F: first order is no longer reliable",) if rough else ()
    statements = [
        Statement(
            kind="mean_square",
            status="RIG",
            level="L3",
            value=bound,
            route=route,
            measured=rms,
            vacuous=vacuous,
            reason=reason,
            assumptions=("the mean square statement is about these samples only", REAL),
            in_sample=in_sample,
        ),
        Statement(
            kind="predicted",
            status="PRED",
            level="L3",
            value=predicted,
            route="first order in the weights",
            measured=rms,
            assumptions=note,
            in_sample=in_sample,
        ),
    ]
    certain = None
    if dense.shape[1] > 1:
        certain = robustly_unchanged(dense, pointwise_bound(stages, x, norms, gains_of))
        certain = certain | pairwise_unchanged(stages, x, norms)
    changed, held_out = data_statements(
        dense, pruned, delta=delta, in_sample=in_sample, largest=largest, certain=certain
    )
    return [*statements, *changed], held_out, tuple(gaps.tolist())


def data_statements(
    dense: Float[Tensor, "samples outputs"],
    pruned: Float[Tensor, "samples outputs"],
    *,
    delta: float = 0.05,
    in_sample: bool = False,
    largest: float | None = None,
    certain: Tensor | None = None,
    candidates: int = 1,
) -> tuple[list[Statement], list[Statement]]:
    """Statements from outputs alone, for any network: changed predictions, quantiles, mean.

    Args:
        dense: outputs of the network on fresh inputs.
        pruned: outputs of the pruned network on the same inputs.
        delta: failure probability of each statement.
        in_sample: the inputs calibrated or planned; nothing is then guaranteed.
        largest: bound on every gap the distribution can produce; allows the mean.
        certain: predictions that provably cannot change; found from margins if None.
        candidates: number of masks compared on these inputs; δ is divided by it.

    Returns:
        statements of kind "changed", and those for `Certificate.held_out`.
    """
    first, second = as_float64("dense", dense, dims=2), as_float64("pruned", pruned, dims=2)
    n = len(first)
    if n == 0:
        raise ValueError("`dense` is empty: run both networks on at least one fresh input.")
    share = fraction("delta", delta) / whole("candidates", candidates, low=1)
    if in_sample:
        warn_in_sample()
    gaps = (first - second).norm(dim=1)
    scale = float(first.square().sum(dim=1).mean().sqrt())

    def make(
        kind: Kind,
        value: float,
        route: str,
        event: str,
        measured: float,
        argument: float | None = None,
    ) -> Statement:
        return Statement(
            kind=kind,
            status="PRED" if in_sample else "RIG",
            level="held-out",
            value=value,
            route=route,
            delta=0.0 if in_sample else delta,
            ledger=() if in_sample else ((event, delta),),
            assumptions=("made on calibration inputs",) if in_sample else (FRESH,),
            in_sample=in_sample,
            measured=measured,
            argument=argument,
        )

    changed = []
    if first.shape[1] > 1:
        flips = int((first.argmax(dim=1) != second.argmax(dim=1)).sum())
        value = clopper_pearson(flips, n, share)
        event = f"exact binomial limit, {flips} of {n} predictions changed"
        changed.append(make("changed", value, "Clopper-Pearson", event, measured=flips / n))
        if certain is not None:
            loose = n - int(certain.sum())
            value = clopper_pearson(loose, n, share)
            event = f"exact binomial limit, {loose} of {n} margins within reach of the bound"
            changed.append(
                make("changed", value, "margins, pruned network not run", event, measured=flips / n)
            )
        robust = int(robustly_unchanged(first, gaps).sum())
        value = clopper_pearson(n - robust, n, share)
        event = f"exact binomial limit, {n - robust} of {n} margins within √2 · gap"
        changed.append(
            make("changed", value, "margins against the measured gap", event, measured=flips / n)
        )
    held_out = [
        make(
            "quantile",
            held_out_quantile(gaps, level, share),
            "order statistic",
            f"order statistic of {n} gaps at level {level}",
            measured=float(gaps.quantile(level)),
            argument=level,
        )
        for level in LEVELS
        if n >= sample_size_for_quantile(level, share)
    ]
    threshold = 0.1 * scale
    over = int((gaps > threshold).sum())
    if share <= 0.5:  # the threshold comes from the same outputs: a bound for all t at once
        held_out.append(
            make(
                "exceeds",
                min(1.0, over / n + exceedance_everywhere(gaps, share)),
                "Massart, all t at once, t = 10 % of rms F",
                f"empirical distribution of {n} gaps, {over} above t",
                measured=over / n,
                argument=threshold,
            )
        )
    if largest is not None and math.isfinite(largest) and n > 1:
        value = empirical_bernstein(gaps, largest, share)
        event = f"empirical Bernstein over {n} gaps in [0, {largest:.4g}]"
        held_out.append(
            make("mean", value, "empirical Bernstein", event, measured=float(gaps.mean()))
        )
    return changed, held_out


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
    for one in everything:
        alone = tuple(_only(stages, one))
        known = {id(pair): norms(old) for pair, old in zip(
            linear_stages(alone), everything, strict=True)}  # fmt: skip

        def lookup(
            pair: LinearPair, known: dict[int, LayerNorms] = known, name: str = one.name
        ) -> LayerNorms:
            full = known[id(pair)]
            if pair.name == name:
                return full
            return LayerNorms(dense=full.dense, pruned=full.dense, difference=0.0)

        start = Reach(dense=radius, pruned=radius, gap=0.0, centre=origin, pruned_centre=origin)
        bounds = norms(one)
        table[one.name] = {
            "dense": bounds.dense,
            "pruned": bounds.pruned,
            "difference": bounds.difference,
            "contribution": product_bound(alone, start, lookup).gap,
        }
    return table


def _only(stages: Sequence[Stage], one: LinearPair) -> list[Stage]:
    """The stages with every layer but `one` unpruned."""
    kept: list[Stage] = []
    for stage in stages:
        if isinstance(stage, LinearPair) and stage is not one:
            kept.append(replace(stage, pruned_weight=stage.weight, pruned_bias=stage.bias))
        elif isinstance(stage, Branches):
            branch, shortcut = tuple(_only(stage.branch, one)), tuple(_only(stage.shortcut, one))
            kept.append(replace(stage, branch=branch, shortcut=shortcut))
        else:
            kept.append(stage)
    return kept
