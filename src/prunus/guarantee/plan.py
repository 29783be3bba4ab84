"""From a limit on the gap of a model to whole numbers of kept weights per layer."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.budget import Plan
from prunus.calibration.batches import Batches
from prunus.check import fraction, positive, unknown
from prunus.guarantee.certify import _inputs
from prunus.guarantee.extract import extract
from prunus.theory.gap import VacuousWarning
from prunus.theory.gap.certificate import sample_bound
from prunus.theory.gap.given_weights import drawn_mean_square, drawn_sup
from prunus.theory.gap.laws import METHODS
from prunus.theory.gap.norms import conv_norm, spectral_norm
from prunus.theory.gap.plan import allocate, tighten
from prunus.theory.gap.propagate import (
    LayerNorms,
    LinearPair,
    Reach,
    Residual,
    Stage,
    apply_linear,
    chain_bound,
    layer_norms,
    linear_stages,
    product_bound,
    run,
)
from prunus.theory.gap.sensitivity import sensitivities

__all__ = ["plan"]

KINDS = ("predicted", "mean_square", "sup", "changed")
GRID = np.concatenate([[0.0], np.geomspace(0.003, 0.99, 36)])
SAMPLES = 512  # of the data, for the error curves


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """What every kind of plan works from.

    Attributes:
        stages: the dense network.
        order: name → indices of the weights, largest magnitude first, in the flat weight.
        samples: calibration inputs, or None.
        method: how the layers will be pruned.
        radius: of the ball.
        centre: of the ball.
        delta: failure probability over masks.
    """

    stages: tuple[Stage, ...]
    order: Mapping[str, Tensor]
    samples: Tensor | None
    method: str
    radius: float
    centre: Tensor
    delta: float


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
) -> Plan:
    """How many weights each layer may lose while the gap stays within a limit.

    The error that each layer alone would cause is measured or bounded on a grid of densities; a
    dynamic programme spreads the limit, and the result is checked with the exact value of its
    kind and inflated as far as that allows. Never worse than one density for all layers.

    Args:
        model: the dense network, a chain of supported layers.
        limit: ε. Of kind "changed" a share of predictions, else a gap.
        kind: "predicted" (root mean square gap; no guarantee), "mean_square" (bound on the root
            mean square over the data), "sup" (certificate over a ball) or "changed".
        method: "magnitude", "random" or "random_rescaled".
        delta: failure probability over the masks of random methods.
        relative: `limit` is a share of the root mean square output on the data.
        radius: of the ball for kind "sup"; the largest distance of the data from their mean if
            None.
        data: batches for all kinds but "sup" with a radius and relative=False.

    Returns:
        the plan; with nothing pruned, and a note, where no pruning meets the limit.

    Raises:
        Unsupported: a module without a rule, by its name.
        ValueError: an unknown kind or method, or data are missing.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    positive("limit", limit, zero=True)
    fraction("delta", delta)
    if data is None and (kind != "sup" or relative or radius is None):
        raise ValueError(
            f"a plan of kind {kind!r} needs `data`; without them, kind='sup' with `radius` and "
            f"relative=False is possible."
        )
    inputs = None if data is None else _inputs(Batches(data))
    if data is not None and inputs is None:
        raise ValueError("`data` must give one tensor of floats as the model's input.")
    found = extract(model, model, None if inputs is None else inputs[:1])
    x = None if inputs is None else inputs[:SAMPLES].double()
    centre = torch.zeros(1, *found.shape, dtype=torch.float64)
    if x is not None:
        centre = x.mean(dim=0, keepdim=True)
        radius = radius or float((x - centre).flatten(1).norm(dim=1).max()) or 1.0
    assert radius is not None
    order = {
        name: weight.abs().flatten().argsort(descending=True, stable=True)
        for name, weight in found.weights.items()
    }
    problem = Problem(
        stages=found.stages,
        order=order,
        samples=x,
        method=method,
        radius=positive("radius", radius),
        centre=centre,
        delta=delta,
    )
    scale = 1.0
    if relative and kind != "changed":
        assert x is not None
        scale = float(run(found.stages, x).flatten(1).square().sum(dim=1).mean().sqrt())
        if scale == 0:
            raise ValueError("the network's output is 0 on these data: pass relative=False.")
    target = limit * scale
    return _solve(problem, kind, target, limit, scale)


def _solve(problem: Problem, kind: str, target: float, limit: float, scale: float) -> Plan:
    names = list(problem.order)
    totals = {name: len(problem.order[name]) for name in names}
    pruned = {name: np.floor(GRID * totals[name]).astype(int) for name in names}
    costs = [(totals[name] - pruned[name]).astype(float) for name in names]
    squared = kind in ("predicted", "changed")
    errors = _curves(problem, kind, names, pruned)

    def counts(choice: Sequence[int]) -> dict[str, int]:
        return {
            name: int(totals[name] - pruned[name][g]) for name, g in zip(names, choice, strict=True)
        }

    def exact(choice: tuple[int, ...]) -> float:
        if not any(choice):
            return 0.0
        return _value(problem, kind, counts(choice))

    def solve(budget: float) -> tuple[int, ...]:
        return allocate(costs, errors, budget).choices

    def cost(choice: tuple[int, ...]) -> float:
        return sum(float(c[g]) for c, g in zip(costs, choice, strict=True))

    start = target**2 if squared else target
    if kind == "changed":  # the error curves are squared gaps: begin with a share of all of them
        start = 1e-4 * sum(float(e[-1]) for e in errors)
    best = (0,) * len(names)
    if target > 0:
        best = tighten(solve, exact, cost, target, start)
    if exact(best) > target:
        best = (0,) * len(names)
    low, high = 0, len(GRID)  # uniform candidates along the grid
    while high - low > 1:
        middle = (low + high) // 2
        fits = exact((middle,) * len(names)) <= target
        low, high = (middle, high) if fits else (low, middle)
    uniform = (low,) * len(names)
    if cost(uniform) < cost(best) and exact(uniform) <= target:
        best = uniform
    kept = counts(best)
    total = sum(totals.values())
    notes = [f"planned for {problem.method} pruning"]
    if kind in ("predicted", "changed"):
        notes.append("a prediction from the planning data: certify on fresh data")
    if kind == "mean_square":
        notes.append("a bound on the planning data; fresh data need a held-out statement")
    if sum(kept.values()) == total:
        notes.append("no pruning of the grid meets the limit: nothing is pruned")
    return Plan(
        kept=kept,
        density=sum(kept.values()) / total,
        limit=limit,
        kind=kind,
        value=exact(best) / scale,
        feasible=True,
        notes=tuple(notes),
    )


def _mask(problem: Problem, name: str, shape: torch.Size, kept: int) -> Tensor:
    mask = torch.zeros(math.prod(shape), dtype=torch.float64)
    mask[problem.order[name][:kept]] = 1
    return mask.reshape(shape)


def _with_counts(problem: Problem, kept: Mapping[str, int]) -> tuple[Stage, ...]:
    """The network with magnitude masks of these counts; layers not named stay whole."""

    def change(stages: Sequence[Stage]) -> tuple[Stage, ...]:
        out: list[Stage] = []
        for stage in stages:
            if isinstance(stage, LinearPair) and stage.name in kept:
                mask = _mask(problem, stage.name, stage.weight.shape, kept[stage.name])
                stage = replace(stage, pruned_weight=stage.weight * mask)
            elif isinstance(stage, Residual):
                stage = replace(stage, branch=change(stage.branch), shortcut=change(stage.shortcut))
            out.append(stage)
        return tuple(out)

    return change(problem.stages)


def _scaled(problem: Problem, densities: Mapping[str, float]) -> tuple[Stage, ...]:
    def change(stages: Sequence[Stage]) -> tuple[Stage, ...]:
        out: list[Stage] = []
        for stage in stages:
            if isinstance(stage, LinearPair) and stage.name in densities:
                stage = replace(stage, pruned_weight=densities[stage.name] * stage.weight)
            elif isinstance(stage, Residual):
                stage = replace(stage, branch=change(stage.branch), shortcut=change(stage.shortcut))
            out.append(stage)
        return tuple(out)

    return change(problem.stages)


def _gap(stages: Sequence[Stage], x: Tensor) -> float:
    difference = run(stages, x) - run(stages, x, pruned=True)
    return float(difference.flatten(1).square().sum(dim=1).mean())


def _curves(
    problem: Problem, kind: str, names: Sequence[str], pruned: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Error that each layer alone would cause, per option; squared for "predicted"."""
    totals = {name: len(problem.order[name]) for name in names}
    if kind in ("predicted", "changed"):
        assert problem.samples is not None
        return _predicted_curves(problem, names, pruned, totals)
    pairs = {pair.name: pair for pair in linear_stages(problem.stages)}
    dense = {name: layer_norms(pairs[name]).dense for name in names}
    everything = math.prod(dense.values())
    curves = []
    centres = _inputs_of(problem.stages, problem.centre)
    for name in names:
        others = everything / dense[name] if dense[name] > 0 else 0.0
        row = []
        for k in pruned[name]:
            pair, kept = pairs[name], int(totals[name] - k)
            if problem.method == "magnitude":
                mask = _mask(problem, name, pair.weight.shape, kept)
                difference = pair.weight * (1 - mask)
                at = apply_linear(pair, difference, None, centres[name])
                row.append(others * (problem.radius * _norm(pair, difference) + float(at.norm())))
            else:
                p = kept / totals[name]
                row.append(others * problem.radius * math.sqrt(1 - p) * float(pair.weight.norm()))
        curves.append(np.array(row))
    return curves


def _norm(pair: LinearPair, weight: Tensor) -> float:
    if pair.geometry is None:
        return spectral_norm(weight).value
    return conv_norm(weight, pair.geometry).value


def _inputs_of(stages: Sequence[Stage], x: Tensor) -> dict[str, Tensor]:
    """What enters each linear layer when x enters the network."""
    found: dict[str, Tensor] = {}
    for stage in stages:
        if isinstance(stage, LinearPair):
            found[stage.name] = x
        elif isinstance(stage, Residual):
            found |= _inputs_of(stage.branch, x) | _inputs_of(stage.shortcut, x)
        x = run([stage], x)
    return found


def _predicted_curves(
    problem: Problem,
    names: Sequence[str],
    pruned: Mapping[str, np.ndarray],
    totals: Mapping[str, int],
) -> list[np.ndarray]:
    x = problem.samples
    assert x is not None
    reaction: Mapping[str, Tensor] = {}
    pairs = {pair.name: pair for pair in linear_stages(problem.stages)}
    if problem.method != "magnitude":
        reaction = sensitivities(problem.stages, x)
    curves = []
    for name in names:
        power = 0.0
        if reaction:
            power = float((pairs[name].weight.square() * reaction[name]).sum())
        row = []
        for k in pruned[name]:
            kept = int(totals[name] - k)
            p = kept / totals[name]
            if kept == totals[name]:
                row.append(0.0)
            elif problem.method == "magnitude":
                row.append(_gap(_with_counts(problem, {name: kept}), x))
            elif problem.method == "random_rescaled":
                row.append(power * (1 - p) / max(p, 1e-12))
            else:
                row.append(_gap(_scaled(problem, {name: p}), x) + power * p * (1 - p))
        curves.append(np.array(row))
    return curves


def _value(problem: Problem, kind: str, kept: Mapping[str, int]) -> float:
    """The exact value of a plan, of its kind."""
    densities = {name: count / len(problem.order[name]) for name, count in kept.items()}
    if problem.method == "magnitude":
        stages = _with_counts(problem, kept)
        if kind == "sup":
            return _certificate(problem, stages)
        assert problem.samples is not None
        if kind == "mean_square":
            return sample_bound(stages, problem.samples)[0]
        if kind == "predicted":
            return math.sqrt(_gap(stages, problem.samples))
        return _changed(stages, problem.samples)
    if kind == "sup":
        with warnings.catch_warnings():  # a plan asks many bounds; its answer says if it is empty
            warnings.simplefilter("ignore", VacuousWarning)
            return drawn_sup(
                problem.stages,
                {name: p for name, p in densities.items() if p < 1},
                radius=problem.radius,
                centre=problem.centre[0],
                delta=problem.delta,
                rescaled=problem.method == "random_rescaled",
                fixed_size=True,
            ).value
    assert problem.samples is not None
    if kind == "mean_square":
        if problem.method == "random":
            raise ValueError(
                "no mean square theorem covers unscaled random masks of trained weights. Use "
                "random_rescaled, or kind='predicted'."
            )
        return drawn_mean_square(problem.stages, densities, problem.samples).value
    if kind == "changed":
        raise ValueError(
            "kind='changed' needs a mask that is known before it is drawn: use magnitude."
        )
    reaction = sensitivities(problem.stages, problem.samples)
    noise = 0.0
    for pair in linear_stages(problem.stages):
        if pair.name in densities:
            p = densities[pair.name]
            power = float((pair.weight.square() * reaction[pair.name]).sum())
            factor = (1 - p) / p if problem.method == "random_rescaled" else p * (1 - p)
            noise += power * factor
    if problem.method == "random":
        noise += _gap(_scaled(problem, densities), problem.samples)
    return math.sqrt(noise)


def _certificate(problem: Problem, stages: Sequence[Stage]) -> float:
    start = Reach(
        dense=problem.radius,
        pruned=problem.radius,
        gap=0.0,
        centre=problem.centre,
        pruned_centre=problem.centre,
    )
    cache: dict[str, LayerNorms] = {}

    def norms(pair: LinearPair) -> LayerNorms:
        if pair.name not in cache:
            cache[pair.name] = layer_norms(pair)
        return cache[pair.name]

    value = product_bound(stages, start, norms).gap
    chain: Callable[..., float | None] = chain_bound
    found = chain(stages, problem.radius, problem.centre)
    return value if found is None else min(value, found)


def _changed(stages: Sequence[Stage], x: Tensor) -> float:
    first, second = run(stages, x).flatten(1), run(stages, x, pruned=True).flatten(1)
    return float((first.argmax(dim=1) != second.argmax(dim=1)).double().mean())
