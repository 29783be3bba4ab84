"""Plan for a limit, prune, certify and measure: trained networks on digits and MNIST."""

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.allocation.least_variance import optimal_densities
from prunus.bench.data.cache import trained
from prunus.bench.data.tasks import task
from prunus.engine import prune
from prunus.files import Row
from prunus.guarantee import certify, plan
from prunus.guarantee.extract import extract
from prunus.progress import track
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.rng import generator_for
from prunus.scores.sensitivity import sensitivity_scores
from prunus.theory.gap import Certificate, LinearPair, VacuousWarning
from prunus.theory.gap.sensitivity import sensitivities
from prunus.theory.gap.stages import Stage, linear_stages, run

__all__ = ["reproduce"]

PLANS = (("predicted", 0.1), ("predicted", 0.3), ("changed", 0.05), ("mean_square", 0.3))


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None = None, progress: bool | None = None
) -> Reproduction:
    """The table of plans, certificates and measurements, and masks from sensitivities.

    Args:
        scale: "small" has the digits' networks only; "full" adds MNIST (784-500-500-10).
        seed: of training and of all draws.
        data_dir: folder with MNIST, for "full".
        progress: see `prunus.progress.progress_bar`.
    """
    names = ["digits-mlp", "digits-cnn"] + (["mnist-mlp"] if scale == "full" else [])
    rows: list[Row] = []
    records: list[Row] = []
    for name in track(names, "networks", progress=progress):
        chosen = task(name)
        data = chosen.data(data_dir=data_dir)
        model = trained(chosen, data, seed=seed, progress=progress).model.eval()
        calibration, fresh, labels = data.x_train[:512], data.x_test, data.y_test
        for kind, limit in PLANS:
            what = f"plan {kind} ≤ {limit:g}"
            if kind == "changed":  # its guarantee needs inputs that did not train: half of the test
                found = plan(model, limit, kind=kind, data=fresh[::2])
                rows.append(_row(name, model, what, found, fresh[1::2], labels[1::2]))
                continue
            found = plan(model, limit, kind=kind, data=calibration)
            rows.append(_row(name, model, what, found, fresh, labels))
            if kind == "predicted":
                same = found.density
                row = _row(name, model, f"uniform, density of {kind} ≤ {limit:g}", same, fresh,
                           labels)  # fmt: skip
                rows.append(row)
        rows += _scored(name, model, calibration, fresh, labels, seed)
        records += _curve(name, model, calibration, fresh)
    chart = figure(
        records,
        x="density",
        y="gap",
        x_title="density (kept / total)",
        y_title="gap / rms output, test data",
        y_scale="log",
        facet="network",
        title="Certificate, prediction and measurement, magnitude pruning",
    )
    return Reproduction(
        name="gap-mnist",
        title="Plan for a limit, prune, certify on fresh data, measure",
        paper="Qian & Klabjan (2021), section on experiments: the question; the numbers are ours",
        conditions=(
            "gaps in shares of the root mean square output on the test data",
            "plans use 512 training samples; certificates use the test data, which neither "
            "trained nor planned; ball around the test mean that covers the test data",
            "plans of changed predictions use every other test image, and the others certify",
            "δ = 0.05 for each held-out statement; 'changed' is the Clopper-Pearson limit",
            "masks by score and by sampling keep 50 % of all weights together; sampled masks: "
            "mean of 10 draws",
        ),
        rows=rows,
        figures={"gap-mnist-curves": (chart, records)},
    )


def _accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == labels).double().mean())


def _certified(model: nn.Module, pruned: Any, fresh: Tensor) -> Certificate:
    with warnings.catch_warnings():  # the table has a column for it
        warnings.simplefilter("ignore", VacuousWarning)
        return certify(model, pruned, data=fresh)


def _row(
    name: str, model: nn.Module, what: str, density: Any, fresh: Tensor, labels: Tensor
) -> dict[str, Any]:
    pruned = prune(model, "magnitude", density)
    found = _certified(model, pruned, fresh)
    with torch.no_grad():
        rms = float(model(fresh).square().sum(dim=1).mean().sqrt())
    sup, mean = found.of("sup")[0], found.of("mean_square")[0]
    changed, quantiles = found.of("changed")[0], found.of("quantile")
    kept = sum(int(r.mask.sum()) for r in pruned.layers.values())
    total = sum(r.mask.numel() for r in pruned.layers.values())
    return {
        "network": name,
        "pruned by": what,
        "density": kept / total,
        "sup bound": sup.value / rms,
        "sup found": None if sup.measured is None else sup.measured / rms,
        "vacuous": "yes" if sup.vacuous else "no",
        "rms bound": mean.value / rms,
        "rms predicted": found.of("predicted")[0].value / rms,
        "rms measured": None if mean.measured is None else mean.measured / rms,
        "95 % quantile ≤": next(
            (s.value / rms for s in quantiles if s.argument == 0.95), float("nan")
        ),
        "changed ≤": changed.value,
        "changed": changed.measured,
        "accuracy lost": _accuracy(model, fresh, labels) - _accuracy(pruned.model, fresh, labels),
    }


def _scored(
    name: str, model: nn.Module, calibration: Tensor, fresh: Tensor, labels: Tensor, seed: int
) -> list[Row]:
    """Half of all weights by |W|, by |W|√S, and by sampling with least predicted variance."""
    found = extract(model, model, calibration[:1])
    pairs = {pair.name: pair for pair in linear_stages(found.stages)}
    reaction = sensitivities(found.stages, calibration.double())
    weights = {pair_name: pair.weight for pair_name, pair in pairs.items()}
    scores = {
        "magnitude, all layers together": {k: w.abs() for k, w in weights.items()},
        "gradient score |W|√S": {k: sensitivity_scores(w, reaction[k]) for k, w in weights.items()},
    }
    x = fresh.double()
    dense = run(found.stages, x)
    rms = float(dense.flatten(1).square().sum(dim=1).mean().sqrt())
    rows = []
    for what, score in scores.items():
        flat = torch.cat([s.flatten() for s in score.values()])
        cut = flat.sort(descending=True).values[len(flat) // 2 - 1]
        masks = {k: (s >= cut).double() for k, s in score.items()}
        rows.append(_masked_row(name, what, model, found.stages, masks, x, dense, rms, labels))
    best = optimal_densities(weights, reaction, 0.5)
    uniform = {k: torch.full_like(w, 0.5) for k, w in weights.items()}
    for what, densities in (("sampled, least variance", best), ("sampled, uniform", uniform)):
        squares = []
        for draw in range(10):
            generator = generator_for(seed, name, what, draw)
            factors = {
                k: (torch.rand(p.shape, dtype=torch.float64, generator=generator) < p) / p
                for k, p in densities.items()
            }
            gap = run(_with_factors(found.stages, factors), x) - dense
            squares.append(float(gap.flatten(1).square().sum(dim=1).mean()))
        rows.append(
            {
                "network": name,
                "pruned by": what,
                "density": 0.5,
                "rms measured": float(np.sqrt(np.mean(squares))) / rms,
            }
        )
    return rows


def _masked_row(
    name: str,
    what: str,
    model: nn.Module,
    stages: tuple[Stage, ...],
    masks: dict[str, Tensor],
    x: Tensor,
    dense: Tensor,
    rms: float,
    labels: Tensor,
) -> dict[str, Any]:
    outputs = run(_with_factors(stages, masks), x)
    gap = (outputs - dense).flatten(1).square().sum(dim=1).mean().sqrt()
    certificate = _certified(model, masks, x.float())
    accuracy = [float((o.argmax(dim=1) == labels).double().mean()) for o in (dense, outputs)]
    return {
        "network": name,
        "pruned by": what,
        "density": 0.5,
        "sup bound": certificate.value / rms,
        "vacuous": "yes" if certificate.of("sup")[0].vacuous else "no",
        "rms bound": certificate.of("mean_square")[0].value / rms,
        "rms predicted": certificate.of("predicted")[0].value / rms,
        "rms measured": float(gap) / rms,
        "changed ≤": certificate.of("changed")[0].value,
        "changed": certificate.of("changed")[0].measured,
        "accuracy lost": accuracy[0] - accuracy[1],
    }


def _with_factors(stages: tuple[Stage, ...], factors: dict[str, Tensor]) -> tuple[Stage, ...]:
    """The chain with every weight times its factor."""
    from dataclasses import replace

    return tuple(
        replace(s, weight=s.weight * factors[s.name])
        if isinstance(s, LinearPair) and s.name in factors
        else s
        for s in stages
    )


def _curve(name: str, model: nn.Module, calibration: Tensor, fresh: Tensor) -> list[Row]:
    del calibration
    with torch.no_grad():
        rms = float(model(fresh).square().sum(dim=1).mean().sqrt())
    records = []
    for density in (0.99, 0.95, 0.9, 0.8, 0.7, 0.5):
        found = _certified(model, prune(model, "magnitude", density), fresh)
        add = functools.partial(_record, name, density)
        sup, mean = found.of("sup")[0], found.of("mean_square")[0]
        records.append(add("largest gap in the ball: bound", "bound", sup.value / rms))
        records.append(add("rms gap: bound", "bound", mean.value / rms))
        records.append(add("rms gap: first order", "theory", found.of("predicted")[0].value / rms))
        records.append(add("rms gap: measured", "measured", (mean.measured or 0.0) / rms))
        records.append(add("largest gap: found by ascent", "measured", (sup.measured or 0.0) / rms))
    return records


def _record(name: str, density: float, series: str, kind: str, gap: float) -> dict[str, Any]:
    return {"network": name, "density": density, "series": series, "kind": kind, "gap": gap}
