"""
Which rule should choose the weights?
=====================================

Which rule should choose the weights? Test error, changed predictions and layer error on MNIST.

The first layer of a 784-500-500-10 network with sigmoids, trained (or read from the cache), keeps
the same number of weights in every row by random draws, k-DPPs of three bandwidths, a greedy DPP
mode, magnitude, Wanda, SparseGPT and OBS, with and without least squares; and whole nodes by
random draws, importance, k-DPPs and the rules of docs/node_selection.md. Counts are the published
ones, given as plans.

    python examples/which_selector.py --data-dir DATA     MNIST's four .gz files in DATA/mnist
    python examples/which_selector.py --small             the digits instead, in seconds

References:
    Acharyya, Chaudhari and Chaudhuri (2021), Statistical mechanical analysis of neural network
    pruning, UAI, for the counts.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import prunus
from prunus import dpp
from prunus.bench import load_data, task, trained
from prunus.compensation import LeastSquares
from prunus.files import write_text
from prunus.granularity import EdgePerRow
from prunus.joint import OBS, SparseGPT, obs_masks
from prunus.rng import generator_for
from prunus.scores import Constant
from prunus.selection import Choice

EDGES = [79, 157, 236, 314, 392, 471, 549, 628, 706]  # of 784 weights in each row
NODES = [225, 255, 286, 316, 347, 377, 408, 438, 469]  # of 500 nodes: the same parameters
NODE_RULES = (
    "random-node", "dpp-node", "importance-node", "obs-node", "greedy-forward", "greedy-imitation",
    "greedy-scales", "greedy-global", "forward-node",
)  # fmt: skip
STATISTICS = ("gram", "mean", "taylor_gram")
SUMMED = {"10/60000": 10 / 60000, "0.1": 0.1}  # β as published, for sums over 60000 samples


@dataclass(frozen=True)
class Drawn:
    """A selection that returns masks drawn beforehand, {(count, seed): mask}."""

    label: str
    seed: int
    masks: Mapping[tuple[int, int], Tensor] = field(repr=False, compare=False)

    def __call__(self, scores: Tensor, kept: Tensor, *, layer: Any, generator: Any) -> Choice:
        """The mask of this count and seed."""
        return Choice(mask=self.masks[int(kept[0]), self.seed])


def of_nodes(method: str) -> bool:
    """True for a rule that keeps whole nodes, with or without least squares."""
    return method.removesuffix("+ls") in NODE_RULES


def k_dpp_masks(
    layer: Any, bandwidth: float | str, counts: list[int], seeds: int
) -> dict[tuple[int, int], Tensor]:
    """Masks of all counts and seeds; each row's kernel is decomposed once for all of them."""
    shape = layer.weight.shape
    masks = {(k, s): torch.zeros(shape, dtype=torch.bool) for k in counts for s in range(seeds)}
    weight = layer.weight.double()
    for h in range(shape[0]):
        process = dpp.KDPP(dpp.edge_kernel(layer.gram, weight[h], bandwidth=bandwidth))
        for (k, s), mask in masks.items():
            generator = generator_for(s, "k-dpp", str(bandwidth), h, k)
            mask[h, process.sample(k, generator=generator)] = True
    return masks


def obs_masks_of(layer: Any, counts: list[int]) -> dict[tuple[int, int], Tensor]:
    """Masks of all counts from one elimination."""
    masks, _ = obs_masks(layer.weight, layer.gram, counts)
    return {(k, 0): mask for k, mask in zip(counts, masks, strict=True)}


def map_masks(
    layer: Any, bandwidth: float | str, counts: list[int]
) -> dict[tuple[int, int], Tensor]:
    """Masks of all counts from one greedy order per row; one count's items begin the next's."""
    masks = {(k, 0): torch.zeros(layer.weight.shape, dtype=torch.bool) for k in counts}
    weight = layer.weight.double()
    for h in range(len(weight)):
        kernel = dpp.edge_kernel(layer.gram, weight[h], bandwidth=bandwidth)
        order = dpp.greedy_map(kernel, max(counts))
        for (k, _), mask in masks.items():
            mask[h, order[:k]] = True
    return masks


def run(
    counts: list[int], nodes: list[int], seeds: int, small: bool, data_dir: Path | None, out: Path
) -> None:
    """Prune, measure, print and save."""
    chosen = task("digits-mlp" if small else "mnist-mlp")
    data = load_data("digits") if small else chosen.data(data_dir=data_dir)
    dense = trained(chosen, data, seed=0).model
    calibration = prunus.calibrate(dense, data.batches(4096), STATISTICS, progress=False)
    name = next(iter(calibration))
    layer = calibration[name]
    samples = len(data.x_train)
    rows = len(layer.weight)
    whole = float(((layer.weight.double() @ layer.gram) * layer.weight.double()).sum())
    with torch.no_grad():
        before = dense(data.x_test).argmax(1)
    records: list[dict[str, Any]] = []

    def measure(method: str, recipe: Any, count: int, seed: int, plan: prunus.Plan) -> None:
        pruned = prunus.prune(
            dense, recipe, plan, data=calibration, layers=name, seed=seed, progress=False
        )
        with torch.no_grad():
            answer = pruned.model(data.x_test).argmax(1)
        error = None if of_nodes(method) else pruned.layers[name].error
        records.append(
            {
                "method": method,
                "count": count,
                "seed": seed,
                "test_error": 100 * float((answer != data.y_test).double().mean()),
                "changed": 100 * float((answer != before).double().mean()),
                "layer_error": None if error is None else error / whole,
            }
        )

    def edges(method: str, recipe: prunus.Recipe, seed: int = 0, own_update: Any = None) -> None:
        bare = recipe.compensation if own_update is None else own_update
        for count in counts:
            plan = prunus.Plan(kept={name: [count] * rows})
            for suffix, compensation in (("", bare), ("+ls", LeastSquares())):
                own = replace(recipe, compensation=compensation)
                measure(method + suffix, own, count, seed, plan)

    base = prunus.Recipe(granularity=EdgePerRow(), score=Constant())
    edges("magnitude", prunus.recipes["magnitude-row"])
    edges("Wanda", prunus.recipes["wanda"])
    edges("SparseGPT", replace(base, selection=SparseGPT()))
    # The update of OBS is least squares with its own damping.
    obs = Drawn("OBS", 0, obs_masks_of(layer, counts))
    edges("OBS", replace(base, selection=obs), own_update=LeastSquares(ridge=OBS().ridge))
    greedy = Drawn("DPP-MAP", 0, map_masks(layer, SUMMED["10/60000"] * samples, counts))
    edges("DPP-MAP, β 10/60000", replace(base, selection=greedy))
    for seed in range(seeds):
        edges("random", prunus.recipes["random-edge"], seed)
    print_tables(records, out)
    for label, bandwidth in [("median", "median"), *((k, b * samples) for k, b in SUMMED.items())]:
        masks = k_dpp_masks(layer, bandwidth, counts, seeds)
        for seed in range(seeds):
            edges(f"k-DPP, β {label}", replace(base, selection=Drawn(label, seed, masks)), seed)
        print_tables(records, out)
    for seed in range(seeds):
        for recipe in NODE_RULES:
            if seed and not prunus.recipes[recipe].selection.random:
                continue
            for count in nodes:
                plan = prunus.Plan(kept={name: count})
                for suffix in ("", "+ls"):
                    measure(recipe + suffix, recipe + suffix, count, seed, plan)
    print_tables(records, out)


def print_tables(records: list[dict[str, Any]], out: Path) -> None:
    """A Markdown table for each quantity, mean ± deviation over seeds."""
    titles = {
        "test_error": "Test error in %",
        "changed": "Changed predictions in %",
        "layer_error": "Error of the layer, relative to its outputs",
    }
    lines: list[str] = []
    for nodes in (False, True):
        own = [r for r in records if of_nodes(r["method"]) == nodes]
        counts = sorted({r["count"] for r in own})
        for quantity, title in titles.items():
            if not own or (nodes and quantity == "layer_error"):
                continue
            kind = "nodes" if nodes else "weights per row"
            lines += ["", f"**{title}, by {kind} kept**", ""]
            lines.append("| rule | " + " | ".join(map(str, counts)) + " |")
            lines.append("| --- |" + " ---: |" * len(counts))
            for method in sorted({r["method"] for r in own}):
                cells = []
                for count in counts:
                    values = [
                        r[quantity] for r in own if r["method"] == method and r["count"] == count
                    ]
                    mean = statistics.fmean(values)
                    shown = f"{mean:.1e}" if quantity == "layer_error" else f"{mean:.2f}"
                    if len(values) > 1 and quantity != "layer_error":
                        shown += f" ± {statistics.stdev(values):.2f}"
                    cells.append(shown)
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
    write_text(out.with_suffix(".md"), "\n".join(lines).lstrip() + "\n")
    write_text(out.with_suffix(".json"), json.dumps(records, indent=1) + "\n")
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; PRUNUS_DATA by default")
    parser.add_argument("--out", type=Path, default=Path("out/which_selector"))
    parser.add_argument("--edges", type=int, nargs="+", help="weights kept in each row")
    parser.add_argument("--nodes", type=int, nargs="+", help="nodes kept")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the random rules")
    parser.add_argument("--small", action="store_true", help="the digits instead of MNIST")
    options = parser.parse_args(arguments)
    run(
        options.edges or ([6, 13, 32] if options.small else EDGES),
        options.nodes or ([8, 16] if options.small else NODES),
        options.seeds,
        options.small,
        options.data_dir,
        options.out,
    )


if __name__ == "__main__":
    main()
