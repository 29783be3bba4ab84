"""Statements from inputs: bounds at them, and what running both networks on them proves."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from prunus.check import as_float64, fraction, whole
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
from prunus.theory.gap.stages import Stage
from prunus.theory.gap.statement import Kind, Statement, judge, warn_in_sample

__all__ = ["Sampled", "data_statements", "sample_statements"]

LEVELS = (0.9, 0.95, 0.99)
REAL = "the statement is about real arithmetic on the stored weights, rounding added"
FRESH = "the inputs are independent, fresh, and were not used to train, choose or plan the mask"


@dataclass(frozen=True, eq=False, kw_only=True)
class Sampled:
    """What two networks gave on a sample.

    Attributes:
        inputs: as the networks read them.
        dense: outputs of the network.
        pruned: outputs of the pruned network.
        rounding: bounds on the rounding of each network's outputs, per sample.
    """

    inputs: Float64[Tensor, "samples ..."]
    dense: Float64[Tensor, "samples outputs"]
    pruned: Float64[Tensor, "samples outputs"]
    rounding: tuple[Float64[Tensor, " samples"], Float64[Tensor, " samples"]]

    @property
    def gaps(self) -> Float64[Tensor, " samples"]:
        """‖F(x) − f(x)‖ of the networks as they compute."""
        found: Tensor = (self.dense - self.pruned).norm(dim=1)
        return found

    @property
    def scale(self) -> float:
        """Root mean square of ‖F(x)‖."""
        return float(self.dense.square().sum(dim=1).mean().sqrt())


def sample_statements(
    stages: Sequence[Stage],
    sampled: Sampled,
    norms: Norms,
    delta: float,
    in_sample: bool,
    largest: float | None,
) -> tuple[list[Statement], list[Statement]]:
    """Bound and prediction of the root mean square gap, and what the outputs prove.

    Args:
        stages: the two networks, which bound and predict; what is measured is in `sampled`.
        sampled: inputs and both networks' outputs.
        norms: of the layers.
        delta: failure probability of each held-out statement.
        in_sample: the inputs calibrated or planned; nothing is then guaranteed.
        largest: bound on every gap the distribution can produce; allows the mean.
    """
    x, scale = sampled.inputs, sampled.scale
    rms = float(sampled.gaps.square().mean().sqrt())
    first, second = sampled.rounding
    gains_of = functools.cache(chain_gains)  # the norms of all segments: computed once
    bound, route = sample_bound(stages, x, norms, gains_of)
    value = bound * (1 + 1e-12) + float((first + second).square().mean().sqrt())
    vacuous, reason = judge(value, None, scale)
    predicted = float(first_order_gaps(stages, x).square().mean().sqrt())
    rough = predicted > 0.3 * scale
    note = ("predicted beyond 30 % of rms F: first order is no longer reliable",) if rough else ()
    statements = [
        Statement(
            kind="mean_square",
            status="RIG",
            level="L3",
            value=value,
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
    if sampled.dense.shape[1] > 1:
        reach = pointwise_bound(stages, x, norms, gains_of) * (1 + 1e-12) + first + second
        certain = robustly_unchanged(sampled.dense, reach)
        certain = certain | pairwise_unchanged(stages, x, norms, rounding=first + second)
        certain = certain & torch.isfinite(reach)
    changed, held_out = data_statements(
        sampled.dense,
        sampled.pruned,
        delta=delta,
        in_sample=in_sample,
        largest=largest,
        certain=certain,
    )
    return [*statements, *changed], held_out


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
