"""Rigorous values of the networks that a plan tries: over a ball, or on a sample."""

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.guarantee.agree import agree, agree_in_own_dtype, probes
from prunus.guarantee.arithmetic import largest_of, unit_of
from prunus.guarantee.criteria import outputs_of
from prunus.guarantee.extract import Extracted, Unsupported, extract
from prunus.guarantee.networks import RealPair
from prunus.guarantee.rules import reason_of
from prunus.guarantee.structure import graph_of
from prunus.rng import generator_for
from prunus.theory.gap.certificate import SLACK, largest_inside
from prunus.theory.gap.chain import chain_bound
from prunus.theory.gap.convolution import conv_norm
from prunus.theory.gap.norms import spectral_norm
from prunus.theory.gap.per_sample import sample_bound
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.rounding import rounding_at, rounding_error
from prunus.theory.gap.search import ascend
from prunus.theory.gap.stages import (
    Branches,
    LinearPair,
    Stage,
    apply_linear,
    bias_shift,
    layer_norms,
    linear_stages,
    run,
)
from prunus.theory.gap.statement import Kind, Statement

__all__ = ["Bounds", "sup_bound"]

ROWS = 64  # of the samples that float64 copies of the networks run on
ONLY = "Kinds 'predicted' and 'changed' need no bound."


class Bounds:
    """Rigorous values of pruned networks: over a ball, or on a sample.

    Attributes:
        samples: inputs, float64, or None.
        scale: root mean square output of the dense network on them, or None.
    """

    def __init__(self, model: nn.Module, samples: Tensor | None, radius: float | None) -> None:
        """Reads the dense network, and runs it to see that the rules describe it.

        Raises:
            Unsupported: a module without a rule, or that does not follow it, by its name.
        """
        self._model = model
        self._given = samples
        self._example = None if samples is None else samples[:1]
        try:
            self._graph = graph_of(model)
            found = extract(model, model, self._example, self._graph)
            self._unit, self._largest = unit_of(model), largest_of(model)
        except Unsupported as error:
            raise Unsupported(f"{reason_of(error)}. {ONLY}") from None
        self.samples = None if samples is None else samples.double()
        self._centre = torch.zeros(1, *found.shape, dtype=torch.float64)
        if self.samples is not None:
            self._centre = self.samples.mean(dim=0, keepdim=True)
            reach = float((self.samples - self._centre).flatten(1).norm(dim=1).max())
            radius = radius or reach or 1.0
        assert radius is not None  # the caller asks for it without data
        self._radius = radius
        self._points = probes(self._centre, radius)
        if self.samples is not None:
            self._points = torch.cat([self.samples[:ROWS], self._points])
        self._agree(found, model)
        pairs = linear_stages(found.stages)
        self._norms = [layer_norms(pair).dense for pair in pairs]
        self._centres = _inputs_of(found.stages, self._centre)
        self._inputs = [] if self.samples is None else _inputs_of(found.stages, self.samples)

    def stages(self, network: nn.Module) -> tuple[Stage, ...]:
        """The two networks layer by layer."""
        return extract(self._model, network, self._example, self._graph).stages

    def value(self, kind: str, network: nn.Module) -> float:
        """Bound on the largest gap over the ball ("sup"), or on the rms gap over the samples."""
        return self._bound(kind, self.stages(network))[0]

    def _bound(self, kind: str, stages: tuple[Stage, ...]) -> tuple[float, str]:
        if kind == "sup":
            return sup_bound(stages, self._radius, self._centre, self._unit, self._largest)
        assert self.samples is not None  # the caller asks for data
        norms = functools.cache(layer_norms)
        bound, route = sample_bound(stages, self.samples, norms)
        rounding = sum(
            rounding_at(
                stages, self.samples, self._unit, pruned=pruned, norms=norms, largest=self._largest
            )
            for pruned in (False, True)
        )
        assert isinstance(rounding, Tensor)
        return bound * (1 + SLACK) + float(rounding.square().mean().sqrt()), route

    def check(self, kind: Kind, network: nn.Module) -> None:
        """Run both networks, and refuse a bound below the gap that they really have.

        Raises:
            Unsupported: the rules do not describe the network.
            UnsoundError: the bound is below the measured gap; its route is named.
        """
        found = extract(self._model, network, self._example)
        self._agree(found, network)
        value, route = self._bound(kind, found.stages)
        both = RealPair(self._model, network)
        measured = 0.0
        if self._given is not None and self.samples is not None:
            _, dense, pruned = both(self._given)
            gaps = (dense - pruned).norm(dim=1)
            inside = (self.samples - self._centre).flatten(1).norm(dim=1) <= self._radius
            measured = float(
                gaps.square().mean().sqrt()
                if kind == "mean_square"
                else torch.where(inside, gaps, 0.0).max()
            )
        if kind == "sup":
            generator = generator_for(0, "largest gap")
            _, points = ascend(
                found.stages, self._radius, self._centre, steps=20, starts=4, generator=generator
            )
            inside_ball = largest_inside(both, points, self._centre, self._radius, self._unit)
            measured = max(measured, inside_ball)
        Statement(kind=kind, status="RIG", level="L3", value=value, route=route, measured=measured)

    def _agree(self, found: Extracted, network: nn.Module) -> None:
        try:
            agree(found, self._model, network, self._points)
            if self._given is not None and self.samples is not None:
                for pruned, one in ((False, self._model), (True, network)):
                    agree_in_own_dtype(
                        found, one, self.samples, outputs_of(one, self._given), self._unit,
                        largest=self._largest, pruned=pruned,
                    )  # fmt: skip
        except Unsupported as error:
            raise Unsupported(f"{reason_of(error)}. {ONLY}") from None

    def alone(self, kind: str, network: nn.Module) -> float:
        """The product of norms around the layers that differ from the dense network, summed.

        It only has to weigh the layers against each other: plans are checked by the exact bound.
        """
        total = 0.0
        pairs = linear_stages(self.stages(network))
        for i, pair in enumerate(pairs):
            difference, shift = pair.weight - pair.pruned_weight, bias_shift(pair)
            if not bool(difference.any()) and (shift is None or not bool(shift.any())):
                continue
            after = math.prod(self._norms[i + 1 :])
            if kind == "mean_square":
                added = apply_linear(pair, difference, shift, self._inputs[i]).flatten(1)
                total += after * float(added.square().sum(dim=1).mean().sqrt())
            else:
                before = math.prod(self._norms[:i])
                at = apply_linear(pair, difference, shift, self._centres[i])
                total += after * (
                    before * self._radius * _norm(pair, difference) + float(at.norm())
                )
        return total


def _norm(pair: LinearPair, weight: Tensor) -> float:
    if pair.geometry is None:
        return spectral_norm(weight).value
    return conv_norm(weight, pair.geometry).value


def _inputs_of(stages: tuple[Stage, ...], x: Tensor) -> list[Tensor]:
    """What enters each linear layer when x enters the network, in the order of `linear_stages`."""
    found: list[Tensor] = []
    for stage in stages:
        if isinstance(stage, LinearPair):
            found.append(x)
        elif isinstance(stage, Branches):
            found += _inputs_of(stage.shortcut, x) + _inputs_of(stage.branch, x)
        x = run([stage], x)
    return found


def sup_bound(
    stages: tuple[Stage, ...],
    radius: float,
    centre: Tensor,
    unit: float,
    largest: float = math.inf,
) -> tuple[float, str]:
    """The sup bound of `certify` on this ball, and its route; rounding of roundoff u is added."""
    start = Reach(dense=radius, pruned=radius, gap=0.0, centre=centre, pruned_centre=centre)
    norms = functools.cache(layer_norms)
    routes: Mapping[str, float | None] = {
        "product of norms": product_bound(stages, start, norms).gap,
        "averaged activations": chain_bound(stages, radius, centre),
    }
    known = {name: value for name, value in routes.items() if value is not None}
    route = min(known, key=known.__getitem__)
    rounding = rounding_error(stages, radius, centre, unit, norms, largest=largest)
    return known[route] * (1 + SLACK) + rounding, route
