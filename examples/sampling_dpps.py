"""
Diverse sets of points
======================

A k-DPP draws sets of points that keep apart. Here 40 of 400 points in the plane are chosen
uniformly, by a k-DPP with a Gaussian kernel, and as its greedy mode.

    python examples/sampling_dpps.py [--out docs/figures/sampling_dpps]
"""

import argparse
from pathlib import Path

import torch

from prunus import dpp

# %%
# The points, their kernel, and three ways to choose 40 of them. The kernel is decomposed once; any
# number of sets of any size can then be drawn.


def choose(n: int, k: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Points in the unit square, and the items chosen by each rule."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 2, dtype=torch.float64, generator=generator)
    kernel = dpp.gaussian_from_features(points, bandwidth=100.0)
    process = dpp.KDPP(kernel)
    chosen = {
        "uniform": torch.randperm(n, generator=generator)[:k],
        "k-DPP": process.sample(k, generator=generator),
        "greedy mode": dpp.greedy_map(kernel, k),
    }
    for name, items in chosen.items():
        near = torch.cdist(points[items], points[items]).fill_diagonal_(torch.inf).min(1).values
        print(
            f"{name:12s} log P = {process.log_prob(items):7.1f}   "
            f"mean distance to the nearest chosen point {near.mean():.3f}"
        )
    return points, chosen


# %%
# Chosen points are filled; the others are faint.


def draw(points: torch.Tensor, chosen: dict[str, torch.Tensor], out: Path) -> None:
    """Three panels, as SVG and PNG."""
    import altair
    import vl_convert

    from prunus.files import write_bytes, write_text

    records = []
    for name, items in chosen.items():
        inside = set(items.tolist())
        records += [
            {"x": float(x), "y": float(y), "rule": name, "chosen": i in inside}
            for i, (x, y) in enumerate(points)
        ]
    axis = altair.Axis(title=None, labels=False, ticks=False, grid=False)
    chart = (
        altair.Chart(altair.Data(values=records))
        .mark_circle()
        .encode(
            x=altair.X("x:Q", axis=axis),
            y=altair.Y("y:Q", axis=axis),
            color=altair.Color(
                "chosen:N", legend=None, scale=altair.Scale(range=["#BBBBBB", "#0072B2"])
            ),
            size=altair.Size("chosen:N", legend=None, scale=altair.Scale(range=[12, 60])),
        )
        .properties(width=220, height=220)
        .facet(facet=altair.Facet("rule:N", title=None, sort=list(chosen)), columns=3)
    )
    spec = chart.to_json()
    write_text(out.with_suffix(".svg"), vl_convert.vegalite_to_svg(spec))
    write_bytes(out.with_suffix(".png"), vl_convert.vegalite_to_png(spec, scale=2))
    print(out.with_suffix(".svg"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Diverse sets of points")
    parser.add_argument("--out", type=Path, default=Path("out/sampling_dpps"))
    # Only what is known: a documentation builder has arguments of its own.
    options, _ = parser.parse_known_args()
    draw(*choose(400, 40, seed=0), options.out)
