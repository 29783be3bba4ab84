"""How many weights each layer may lose while the gap of the two networks stays within a limit."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor, nn

from prunus.ambient import plainly
from prunus.budget import Plan, checked_density
from prunus.check import finite, fraction, positive, unknown
from prunus.guarantee.answer import planned, verified
from prunus.guarantee.bounds import Bounds
from prunus.guarantee.criteria import Outputs, float_inputs, sampled, size_of_all, split
from prunus.guarantee.drawn import drawn_problem
from prunus.guarantee.family import Family, magnitude_family
from prunus.guarantee.solve import (
    Problem,
    error_curves,
    grid_of,
)
from prunus.hints import Batch
from prunus.modes import private
from prunus.rows import rows_of
from prunus.theory.gap.laws import Method
from prunus.threads import sparing

__all__ = ["KINDS", "LARGEST", "measured_curves", "plan", "plan_family"]

METHODS = get_args(Method)
KINDS = ("predicted", "mean_square", "sup", "changed")
SAMPLES = 512  # of the data, for the error curves
LARGEST = 8192  # samples read: the others verify a plan of kind "changed"


@plainly(autocast=True)
@sparing
def plan(
    model: nn.Module,
    limit: float,
    *,
    kind: str = "predicted",
    method: str = "magnitude",
    delta: float = 0.05,
    relative: bool = True,
    radius: float | None = None,
    data: Any = None,
    density: float | None = None,
) -> Plan:
    """How many weights each layer may lose while the gap stays within a limit.

    The error that each layer alone would cause is measured or bounded on a grid of densities; a
    dynamic programme spreads the limit, and the result is checked with the exact value of its
    kind and inflated as far as that allows. Never worse than one density for all layers.

    A plan of kind "changed" is made on some of the data and verified on the others: on fresh data
    of the same distribution, at most `limit` of the predictions change, with probability ≥ 1 − δ
    over the data, if these did not train the network.

    Args:
        model: the dense network; for kinds "mean_square" and "sup", a chain of supported layers.
        limit: ε. Of kind "changed" a share of predictions, else a gap.
        kind: "predicted" (root mean square gap; no guarantee), "mean_square" (bound on the root
            mean square over the data), "sup" (certificate over a ball) or "changed".
        method: "magnitude", or "random" or "random_rescaled" for masks that are not drawn yet.
        delta: failure probability: over the masks of random methods; over the data for "changed".
        relative: `limit` is a share of the root mean square output on the data.
        radius: of the ball for kind "sup"; the largest distance of the data from their mean if
            None.
        data: batches for all kinds but "sup" with a radius and relative=False.
        density: the plan may keep this share of the weights at most. Where the limit then cannot
            be met, the plan is the one of least error at this density, and not `feasible`.

    Returns:
        the plan; with nothing pruned, and a note, where no pruning meets the limit.

    Raises:
        Unsupported: a module without a rule for a bound, by its name.
        ValueError: an unknown kind or method, data are missing or empty, or NaN weights.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    checked_limit(limit, kind, delta)
    for name, parameter in model.named_parameters():
        finite(name, parameter.detach(), "Retrain or reload the model.")
    with private(model) as own:
        if method == "magnitude":
            return plan_family(
                own, magnitude_family(own), limit, kind=kind, delta=delta, relative=relative,
                radius=radius, data=data, density=density,
            )  # fmt: skip
        _enough(kind, data, relative, radius)
        batches = [] if data is None else sampled(data, SAMPLES)
        inputs = _tensor(batches, kind) if batches else None
        problem, scale = drawn_problem(
            own,
            kind,
            rescaled=method == "random_rescaled",
            samples=inputs,
            radius=radius,
            delta=delta,
        )
    notes = (f"planned for {method} masks that are not drawn yet",)
    unit = _unit(scale, relative, kind)
    return planned(problem, limit, kind, unit, density, notes, rows_of(batches))


@plainly(autocast=True)
@sparing
def plan_family(
    model: nn.Module,
    family: Family,
    limit: float,
    *,
    kind: str = "predicted",
    delta: float = 0.05,
    relative: bool = True,
    radius: float | None = None,
    data: Any = None,
    density: float | None = None,
    verify: list[Any] | None = None,
) -> Plan:
    """`plan` for any method whose pruned networks are known before they are asked for.

    Args:
        model, limit, kind, delta, relative, radius, data, density: as for `plan`.
        family: the pruned networks.
        verify: batches that verify a plan of kind "changed"; part of `data` where None. They must
            have had no part in what the family does.
    """
    checked_limit(limit, kind, delta)
    if radius is not None:
        positive("radius", radius)
    if density is not None:
        checked_density(density)
    _enough(kind, data, relative, radius)
    with private(model) as own:
        return _plan_of(own, family, limit, kind, delta, relative, radius, data, density, verify)


def _plan_of(
    model: nn.Module,
    family: Family,
    limit: float,
    kind: str,
    delta: float,
    relative: bool,
    radius: float | None,
    data: Any,
    density: float | None,
    verify: list[Any] | None,
) -> Plan:
    """`plan_family` on a private twin of the model."""
    splits = kind == "changed" and verify is None
    batches = [] if data is None else sampled(data, LARGEST if splits else SAMPLES)
    planning, verifying = batches, verify or []
    if splits:
        planning, verifying = split(batches, min(SAMPLES, size_of_all(batches) // 3))
    outputs = Outputs(model, planning) if planning else None
    bounds = None
    if kind in ("mean_square", "sup"):
        bounds = Bounds(model, None if data is None else _tensor(batches, kind), radius)
    options = grid_of(family)
    problem = Problem(
        kept=options,
        errors=error_curves(kind, family, options, outputs, bounds),
        exact=lambda kept: _value(kind, family.network(kept), outputs, bounds),
        cost=family.cost,
        squared=kind == "predicted",
    )
    notes = (f"planned for {family.method}",)
    if kind == "changed":
        if not planning or not verifying:
            raise ValueError("kind='changed' needs at least three samples, to plan and to verify.")
        fresh, rows = Outputs(model, verifying), rows_of([*planning, *verifying])
        return verified(problem, family, fresh, limit, delta, density, notes, rows)
    unit = _unit(None if outputs is None else outputs.scale, relative, kind)
    rows = rows_of(batches)
    if bounds is None:
        return planned(problem, limit, kind, unit, density, notes, rows)
    known = bounds

    def check(kept: Mapping[str, int]) -> None:
        known.check("sup" if kind == "sup" else "mean_square", family.network(kept))

    return planned(problem, limit, kind, unit, density, notes, rows, check)


def measured_curves(
    model: nn.Module, family: Family, data: Any
) -> dict[str, tuple[tuple[int, float], ...]]:
    """{name: (kept, mean squared gap), …} of pruning each layer alone, on the first samples."""
    outputs, options = Outputs(model, sampled(data, SAMPLES)), grid_of(family)
    curves = error_curves("predicted", family, options, outputs, None)
    return {
        name: tuple((int(k), float(e)) for k, e in zip(counts, row, strict=True))
        for (name, counts), row in zip(options.items(), curves, strict=True)
    }


def checked_limit(limit: float, kind: str, delta: float) -> None:
    """Raise a ValueError where a limit, its kind or its δ cannot be."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    positive("limit", limit, zero=True)
    if kind == "changed" and limit > 1:
        raise ValueError(
            f"`limit` of kind 'changed' is a share of predictions <= 1, got {limit:g}."
        )
    fraction("delta", delta)


def _enough(kind: str, data: Any, relative: bool, radius: float | None) -> None:
    if data is None and (kind != "sup" or relative or radius is None):
        raise ValueError(
            f"a plan of kind {kind!r} needs `data`; without them, kind='sup' with `radius` and "
            f"relative=False is possible."
        )


def _tensor(batches: list[Batch], kind: str) -> Tensor:
    inputs = float_inputs(batches)
    if inputs is None:
        raise ValueError(
            f"a plan of kind {kind!r} needs data whose batches give one tensor of floats as the "
            f"model's input."
        )
    return inputs


def _unit(scale: float | None, relative: bool, kind: str) -> float:
    """What a limit of 1 stands for."""
    if not relative or kind == "changed":
        return 1.0
    assert scale is not None  # relative limits ask for data
    if scale == 0:
        raise ValueError("the network's output is 0 on these data: pass relative=False.")
    return scale


def _value(kind: str, network: nn.Module, outputs: Outputs | None, bounds: Bounds | None) -> float:
    if bounds is not None:
        return bounds.value(kind, network)
    assert outputs is not None  # these kinds ask for data
    if kind == "changed":
        return outputs.changed(network) / outputs.samples
    return math.sqrt(outputs.square(network))
