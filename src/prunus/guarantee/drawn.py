"""Plans for uniformly random masks that are not drawn yet: the laws of the mask decide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.ambient import quiet
from prunus.guarantee.agree import ROWS, agree, probes
from prunus.guarantee.criteria import outputs_of
from prunus.guarantee.extract import Unsupported, extract
from prunus.guarantee.solve import GRID, Problem
from prunus.theory.gap import VacuousWarning
from prunus.theory.gap.given_weights import drawn_mean_square, drawn_sup
from prunus.theory.gap.sensitivity import sensitivities
from prunus.theory.gap.stages import Branches, LinearPair, Stage, layer_norms, linear_stages, run

__all__ = ["drawn_problem"]


class _Masks:
    """Random masks over trained weights, kept unscaled or scaled up to be unbiased."""

    def __init__(
        self, stages: tuple[Stage, ...], sizes: Mapping[str, int], x: Tensor | None, rescaled: bool
    ) -> None:
        self.stages, self.sizes, self.x, self.rescaled = stages, sizes, x, rescaled
        self.pairs = {pair.name: pair for pair in linear_stages(stages)}
        self.power: dict[str, float] = {}
        if x is not None:
            reaction = sensitivities(stages, x)
            self.power = {
                name: float((self.pairs[name].weight.square() * reaction[name]).sum())
                for name in sizes
            }

    def noise(self, name: str, p: float) -> float:
        """First-order variance of the output from one layer's draw."""
        return self.power[name] * ((1 - p) / max(p, 1e-12) if self.rescaled else p * (1 - p))

    def square(self, densities: Mapping[str, float]) -> float:
        """Predicted mean squared gap."""
        found = sum(self.noise(name, p) for name, p in densities.items())
        if not self.rescaled:
            assert self.x is not None  # the prediction asks for data
            thin = _thinned(self.stages, densities)
            difference = run(self.stages, self.x) - run(thin, self.x, pruned=True)
            found += float(difference.flatten(1).square().sum(dim=1).mean())
        return found


def _thinned(stages: Sequence[Stage], densities: Mapping[str, float]) -> tuple[Stage, ...]:
    """The network whose pruned weights are the mean of the unscaled masks' weights."""
    out: list[Stage] = []
    for stage in stages:
        if isinstance(stage, LinearPair) and stage.name in densities:
            stage = replace(stage, pruned_weight=densities[stage.name] * stage.weight)
        elif isinstance(stage, Branches):
            branch, shortcut = (
                _thinned(stage.branch, densities),
                _thinned(stage.shortcut, densities),
            )
            stage = replace(stage, branch=branch, shortcut=shortcut)
        out.append(stage)
    return tuple(out)


def _drawn_once(stages: tuple[Stage, ...], model: nn.Module) -> None:
    """Refuse layers whose draw enters the network twice: the theorems take draws as independent.

    Raises:
        Unsupported: a module is called twice, or two modules share a weight.
    """
    names = [pair.name for pair in linear_stages(stages)]
    for name in names:
        if names.count(name) > 1:
            raise Unsupported(
                f"{name!r} is called more than once, and so are its random masks: no theorem "
                f"covers this. Use magnitude."
            )
    owners: dict[int, str] = {}
    for name in names:
        weight = getattr(model.get_submodule(name), "weight", None)
        if weight is None:
            continue
        other = owners.setdefault(weight.data_ptr(), name)
        if other != name:
            raise Unsupported(
                f"{other!r} and {name!r} share one weight, so their random masks are not "
                f"independent: no theorem covers this. Use magnitude."
            )


def drawn_problem(
    model: nn.Module,
    kind: str,
    *,
    rescaled: bool,
    samples: Tensor | None,
    radius: float | None,
    delta: float,
) -> tuple[Problem, float | None]:
    """The planning problem, and the rms output on the samples.

    Raises:
        Unsupported: a module without a rule, by its name.
        ValueError: no theorem covers this kind and method.
    """
    if kind == "mean_square" and not rescaled:
        raise ValueError(
            "no mean square theorem covers unscaled random masks of trained weights. Use "
            "random_rescaled, or kind='predicted'."
        )
    if kind == "changed":
        raise ValueError(
            "kind='changed' needs a mask that is known before it is drawn: use magnitude."
        )
    found = extract(model, model, None if samples is None else samples[:1])
    _drawn_once(found.stages, model)
    x = None if samples is None else samples.double()
    sizes = {name: weight.numel() for name, weight in found.weights.items()}
    scale = None
    centre: Any = None
    if x is not None:
        assert samples is not None
        scale = float(outputs_of(model, samples).square().sum(dim=1).mean().sqrt())
        centre = x.mean(dim=0)
        radius = radius or float((x - centre).flatten(1).norm(dim=1).max()) or 1.0
    ball = radius or 1.0
    points = probes(torch.zeros(1, *found.shape).double() if centre is None else centre[None], ball)
    agree(found, model, model, points if x is None else torch.cat([x[:ROWS], points]))
    masks = _Masks(found.stages, sizes, x if kind == "predicted" else None, rescaled)
    options = {name: n - np.unique(np.floor(GRID * n).astype(int)) for name, n in sizes.items()}

    def exact(kept: Mapping[str, int]) -> float:
        densities = {name: count / sizes[name] for name, count in kept.items()}
        if kind == "predicted":
            return math.sqrt(masks.square(densities))
        if kind == "mean_square":
            assert x is not None  # the caller asks for data
            return drawn_mean_square(found.stages, densities, x, fixed_size=True).value
        assert radius is not None  # the caller asks for it without data
        with quiet(VacuousWarning):  # a plan asks many bounds; its answer says if it is empty
            return drawn_sup(
                found.stages,
                {name: p for name, p in densities.items() if p < 1},
                radius=radius,
                centre=centre,
                delta=delta,
                rescaled=rescaled,
                fixed_size=True,
            ).value

    errors = []
    norms = {pair.name: layer_norms(pair).dense for pair in linear_stages(found.stages)}
    for name, counts in options.items():
        pair, row = masks.pairs[name], [0.0]
        others = math.prod(value for key, value in norms.items() if key != name)
        for k in counts[1:]:
            p = float(k) / sizes[name]
            if kind == "predicted":
                row.append(masks.square({name: p}))
            else:
                row.append(others * (radius or 1.0) * math.sqrt(1 - p) * float(pair.weight.norm()))
        errors.append(np.array(row))
    problem = Problem(
        kept=options,
        errors=errors,
        exact=exact,
        cost=lambda kept: float(sum(kept.values())),
        squared=kind == "predicted",
    )
    return problem, scale
