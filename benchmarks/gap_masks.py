"""The rms gap that masks of several recipes leave on trained networks, on fresh inputs.

python benchmarks/gap_masks.py [--small]

Gaps are shares of the rms output on test images, which neither trained nor calibrated; recipes
calibrate on 512 training images. Random recipes: root mean square over 10 draws. Prints one
Markdown table and keeps the numbers unless --small.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.allocation import Uniform
from prunus.bench import load_data, task, trained
from prunus.files import write_text
from prunus.presets import resolve
from prunus.recipe import Recipe
from prunus.scores import Constant, Sensitivity
from prunus.selection import RandomK

RECIPES: dict[str, str | Recipe] = {
    "magnitude": "magnitude",
    "magnitude-global": "magnitude-global",
    "wanda": "wanda",
    "gap-gradient, per layer": Recipe(score=Sensitivity(), allocation=Uniform()),
    "gap-gradient": "gap-gradient",
    "variance-optimal": "variance-optimal",
    "random, rescaled": Recipe(score=Constant(), selection=RandomK(rescaled=True)),
    "magnitude+ls": "magnitude+ls",
    "gap-gradient+ls": "gap-gradient+ls",
}


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What the network says, in float64."""
    with torch.no_grad():
        return model(x).double()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="the digits' MLP, one seed, 2 draws")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with MNIST")
    given = parser.parse_args()
    nets = ["digits-mlp"] if given.small else ["digits-mlp", "digits-cnn", "mnist-mlp"]
    seeds, draws = (1, 2) if given.small else (3, 10)
    rows: list[dict[str, Any]] = []
    for net in nets:
        job = task(net)
        data = load_data(net.partition("-")[0], data_dir=given.data_dir)
        for seed in range(seeds if net != "mnist-mlp" else 1):
            model = trained(job, data, seed=seed).model.eval()
            dense = outputs(model, data.x_test)
            rms = float(dense.square().sum(1).mean().sqrt())
            for density in (0.7, 0.5, 0.3, 0.15):
                for label, recipe in RECIPES.items():
                    method = resolve(recipe)[1]
                    repeats = draws if getattr(method.selection, "random", False) else 1
                    squares, agreed = [], []
                    for draw in range(repeats):
                        pruned = prunus.prune(
                            model, method, density, data=data.x_train[:512], seed=draw
                        )
                        found = outputs(pruned.model, data.x_test)
                        squares.append(float((found - dense).square().sum(1).mean()))
                        agreed.append(float((found.argmax(1) == dense.argmax(1)).double().mean()))
                    rows.append(
                        {
                            "network": net,
                            "seed": seed,
                            "density": density,
                            "recipe": label,
                            "gap": math.sqrt(sum(squares) / repeats) / rms,
                            "changed": 1 - sum(agreed) / repeats,
                        }
                    )
    columns = [(n, d) for n in nets for d in (0.7, 0.5, 0.3, 0.15)]
    print("| rms gap / rms output | " + " | ".join(f"{n} {d:g}" for n, d in columns) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for label in RECIPES:
        cells = []
        for n, d in columns:
            own = [
                r["gap"] for r in rows if (r["network"], r["density"], r["recipe"]) == (n, d, label)
            ]
            cells.append(f"{sum(own) / len(own):.3g}")
        print(f"| {label} | " + " | ".join(cells) + " |")
    if not given.small:
        path = Path(__file__).parent / "results" / "gap_masks.json"
        print(write_text(path, json.dumps(rows, indent=1) + "\n"))


if __name__ == "__main__":
    main()
