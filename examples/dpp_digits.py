"""
A diverse handful of images
===========================

A k-DPP draws sets that keep apart. Here twenty of the handwritten digits are drawn uniformly, by a
k-DPP with a Gaussian kernel of the pixels, and by its greedy mode, and one counts how many
different digits there are among them.
"""

import torch
from _pictures import Picture
from _shipping import SMALL

from prunus import dpp
from prunus.bench import load_data

digits = load_data("digits")
count, size, draws = (300, 20, 20) if SMALL else (1000, 20, 200)
images = digits.x_train[:count].flatten(1).double()
labels = digits.y_train[:count]
kernel = dpp.gaussian_from_features(
    images, bandwidth=1.0 / float(torch.cdist(images, images).square().median())
)
process = dpp.KDPP(kernel)
draw = torch.Generator().manual_seed(0)


def spread(items: torch.Tensor) -> float:
    """Mean distance of a chosen image to the nearest other one."""
    apart = torch.cdist(images[items], images[items]).fill_diagonal_(torch.inf)
    return float(apart.min(1).values.mean())


chosen = {
    "uniform": [torch.randperm(count, generator=draw)[:size] for _ in range(draws)],
    "k-DPP": [process.sample(size, generator=draw) for _ in range(draws)],
    "greedy mode": [dpp.greedy_map(kernel, size)],
}
for name, sets in chosen.items():
    kinds = sum(len(set(labels[items].tolist())) for items in sets) / len(sets)
    apart = sum(map(spread, sets)) / len(sets)
    print(f"{name:12} {kinds:.1f} of 10 digits, mean distance {apart:.3f}")

# %%
# The images on their two main axes; one draw of each rule is filled.

centred = images - images.mean(0)
axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]
points = centred @ axes.T
values = [
    {"x": float(a), "y": float(b), "rule": name, "chosen": i in set(sets[0].tolist())}
    for name, sets in chosen.items()
    for i, (a, b) in enumerate(points)
]
Picture(
    {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": values},
        "mark": {"type": "point", "filled": True},
        "width": 220,
        "height": 220,
        "encoding": {
            "column": {"field": "rule", "title": None, "sort": list(chosen)},
            "x": {"field": "x", "type": "quantitative", "title": "first axis"},
            "y": {"field": "y", "type": "quantitative", "title": "second axis"},
            "opacity": {"condition": {"test": "datum.chosen", "value": 1}, "value": 0.12},
            "size": {"condition": {"test": "datum.chosen", "value": 60}, "value": 12},
            "color": {"value": "#0072B2"},
        },
    }
)
