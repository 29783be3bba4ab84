"""Trained students pruned by every method: closed forms beside real masks, as tidy records."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator

from prunus.dpp import KDPP
from prunus.files import Row
from prunus.progress import progress_bar
from prunus.theory import teacher_student as ts
from prunus.theory.teacher_student.activation import activation_of
from prunus.theory.teacher_student.nodes import (
    importance_set,
    node_kernel,
    node_system,
    reweighted_errors,
)

__all__ = ["LABELS", "compare_methods", "inequality_records", "map_records"]

FLOOR = 1e-8  # for more kept nodes than the kernel's rank, see prunus.dpp.KDPP
SETS = 25  # random node sets per edge mask: they fluctuate more and cost nothing
LABELS = {
    "random-node": "random node",
    "importance-node": "importance node",
    "dpp-node": "DPP node",
    "random-edge": "random edge",
    "magnitude-edge": "magnitude edge",
    "dpp-edge": "DPP edge",
}


def compare_methods(
    weights: ts.Weights,
    *,
    generator: Generator,
    activation: str = "erf",
    reweight: str | None = None,
    kernel: str = "preact",
    score: str = "readout",
    normalise: bool = False,
    counted_noise: float = 0.0,
    masks: int = 20,
    kept: Sequence[int] | None = None,
    density_of: Any = None,
    progress: bool | None = False,
) -> list[Row]:
    """Records of closed form ("theory") and mean over real masks ("measured") for every method.

    Args:
        weights: trained students, seeds × K × N.
        generator: source of masks.
        activation, reweight, kernel, score, normalise, counted_noise: as in `pruned_error`.
        masks: real masks per student, edge method and k (25 times as many node sets); 0 for the
            closed forms only.
        kept: values of k; default 1..K − 1.
        density_of: k ↦ density of the edge methods; default k/K.
        progress: as in `prunus.progress.progress_bar`.
    """
    unit = activation_of(activation)
    seeds, students = weights.v.shape
    counts = list(range(1, students)) if kept is None else list(kept)
    share = (lambda k: k / students) if density_of is None else density_of
    singles = [ts.one_seed(weights, s) for s in range(seeds)]
    if normalise:
        singles = [
            ts.Weights(
                w.student / w.student.square().mean(1, keepdim=True).sqrt(),
                w.teacher,
                w.v,
                w.v_star,
            )
            for w in singles
        ]
    orders = [ts.order_parameters(w) for w in singles]
    records: list[Row] = []
    with progress_bar("pruning", len(ts.METHODS) * len(counts), progress=progress) as advance:
        for method in ts.METHODS:
            for k in counts:
                node = method.endswith("-node")
                theory, real = [], []
                for single, order in zip(singles, orders, strict=True):
                    found = ts.pruned_error(
                        order,
                        method,
                        k if node else share(k),
                        activation=unit,
                        reweight=reweight if node else None,
                        kernel=kernel,
                        score=score,
                        floor=FLOOR,
                        counted_noise=counted_noise,
                        generator=generator,
                    )
                    theory.append(float(found))
                    if masks:
                        drawn = _real(
                            single, order, method, k, share(k), unit, reweight, kernel, score,
                            masks, generator,
                        )  # fmt: skip
                        real.append(drawn + 0.5 * counted_noise**2)
                base = {"kept": k, "series": LABELS[method], "method": method}
                mean = sum(theory) / seeds
                records.append({**base, "error": mean, "kind": "theory"})
                if masks:
                    records.append(
                        {
                            **base,
                            "error": sum(real) / seeds,
                            "kind": "measured",
                            "low": min(real),
                            "high": max(real),
                        }
                    )
                advance(1)
    return records


def _real(
    weights: ts.Weights,
    order: ts.OrderParameters,
    method: str,
    kept: int,
    density: float,
    unit: ts.Activation,
    reweight: str | None,
    kernel: str,
    score: str,
    masks: int,
    generator: Generator,
) -> float:
    """Mean error over real masks of one student."""
    if method.endswith("-node"):
        system = node_system(order, unit)
        students = len(order.v)
        process = KDPP(node_kernel(order, kernel, unit), floor=FLOOR)
        drawn = []
        for _ in range(1 if method == "importance-node" else SETS * masks):
            if method == "importance-node":
                chosen = importance_set(order, kept, score)
            elif method == "dpp-node":
                chosen = process.sample(kept, generator=generator)
            else:
                chosen = torch.randperm(students, generator=generator)[:kept]
            drawn.append(chosen)
        return float(reweighted_errors(system, torch.stack(drawn).numpy(), reweight).mean())
    rule = method.removesuffix("-edge")
    errors = []
    for _ in range(1 if rule == "magnitude" else masks):
        mask = ts.draw_edge_mask(weights, rule, density, generator=generator)
        pruned = ts.order_parameters(ts.apply_mask(weights, mask))
        errors.append(float(ts.generalisation_error(pruned, activation=unit)))
    return sum(errors) / len(errors)


def inequality_records(orders: Sequence[ts.OrderParameters], **options: Any) -> list[Row]:
    """Each claim at each k = 1..K − 1: errors averaged over the students, and whether it holds.

    `options` are those of `paper_inequalities`.
    """
    records = []
    students = len(orders[0].v)
    for k in range(1, students):
        found = [ts.paper_inequalities(order, k, floor=FLOOR, **options) for order in orders]
        for n, claim in enumerate(ts.CLAIMS):
            value = sum(f[n].value for f in found) / len(found)
            bound = sum(f[n].bound for f in found) / len(found)
            records.append(
                {
                    "claim": f"{LABELS[claim.smaller]} ≤ {LABELS[claim.larger]}",
                    "source": claim.source,
                    "kept": k,
                    "value": value,
                    "bound": bound,
                    "holds": value <= bound * (1 + 1e-9),
                    "share": sum(f[n].holds for f in found) / len(found),
                }
            )
    return records


def map_records(cells: Sequence[ts.MapCell]) -> list[Row]:
    """One record per cell: the best method, the second, and their errors."""
    return [
        {
            "K": cell.students,
            "M": cell.teachers,
            "sigma": cell.noise,
            "kept": cell.ranking.kept,
            "density": cell.ranking.density,
            "least squares": cell.reweight or "none",
            "best": cell.ranking.best,
            "error": cell.ranking.rows[0].error,
            "second": cell.ranking.rows[1].label,
            "its error": cell.ranking.rows[1].error,
            "wins": cell.ranking.rows[0].wins,
            "unpruned": cell.ranking.unpruned,
        }
        for cell in cells
    ]
