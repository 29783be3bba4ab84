"""
Six methods on MNIST
====================

The six methods of Acharyya et al. (2021) on MNIST, with and without least squares.

A 784-500-500-10 network with sigmoids is trained (or read from the cache) and pruned by random,
magnitude and k-DPP selection of weights and of nodes: in the first layer only, as in the paper,
and in all layers. Test errors are printed and saved as JSON and Markdown.

    python examples/mnist_six_methods.py --data-dir DATA     MNIST's four .gz files in DATA/mnist
    python examples/mnist_six_methods.py --small             the digits instead, in seconds

In the first layer, nodes are counted so that what is left has the parameters that pruning weights
to the same density leaves: with n inputs, h nodes and h' nodes after them, density p keeps
floor(h (n p + h') / (n + h')) nodes. In all layers, both have the same density.

References:
    Acharyya, Chaudhari and Chaudhuri (2021), Statistical mechanical analysis of neural network
    pruning, UAI.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import prunus
from prunus.bench import Task, Training, evaluate, fit, load_data, task, trained
from prunus.bench.data.models import mlp
from prunus.files import write_text
from prunus.host import host_facts, versions

EDGES = ("random-edge", "magnitude-row", "dpp-edge")
NODES = ("random-node", "importance-node", "dpp-node")


def small_task() -> Task:
    """The same network on the digits: 64-100-100-10 with sigmoids."""
    from torch import nn

    how = Training(epochs=40, learning_rate=5e-3, batch=64)

    def train(model, data, *, generator, hold=None, progress=None):
        fit(model, data, how, generator=generator, hold=hold, progress=progress)

    return Task(
        name="digits-sigmoid",
        title="digits, MLP 64-100-100-10, sigmoid",
        data=partial(load_data, "digits"),
        model=partial(mlp, (64, 100, 100, 10), nn.Sigmoid),
        train=train,
        retrain=train,
        definition=repr(how),
    )


def node_share(density: float, inputs: int, nodes: int, after: int) -> float:
    """The share of nodes that leaves the parameters of pruning the first layer's weights."""
    return int(nodes * (inputs * density + after) / (inputs + after)) / nodes


def run(model, data, densities, seeds, protocol, progress):
    """Records of one protocol, each with the density `p` that names its column."""
    layers = None if protocol == "all layers" else "fc1"
    calibration = prunus.calibrate(model, data.batches(4096), progress=progress)
    records = []
    for density in densities:
        for names in (EDGES, NODES):
            asked = density
            if names is NODES and layers is not None:
                after, nodes = model.fc2.weight.shape
                asked = node_share(density, model.fc1.in_features, nodes, after)
            found = prunus.compare(
                model,
                [name + suffix for name in names for suffix in ("", "+ls")],
                [asked],
                data=calibration,
                evaluate=lambda m: evaluate(m, data),
                seeds=seeds,
                layers=layers,
                metric="test_error",
                progress=progress,
            )
            records += [{**r, "p": density, "protocol": protocol} for r in found.records]
            print(f"{protocol}, p = {density}: {' '.join(names)} done", flush=True)
    return records


def table(records, densities) -> list[str]:
    """Markdown lines: a row per method, test error in percent, mean ± deviation over seeds."""
    lines = [
        "| method | " + " | ".join(f"{d:g}" for d in densities) + " |",
        "| --- |" + " ---: |" * len(densities),
    ]
    for name in dict.fromkeys(r["recipe"] for r in records):
        cells = []
        for density in densities:
            errors = [
                100 * r["test_error"] for r in records if r["recipe"] == name and r["p"] == density
            ]
            spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
            cells.append(f"{statistics.fmean(errors):.2f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Train, prune, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; PRUNUS_DATA by default")
    parser.add_argument("--out", type=Path, default=Path("out/mnist_six_methods"))
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
    )
    parser.add_argument("--seeds", type=int, default=3, help="draws of the random methods")
    parser.add_argument("--small", action="store_true", help="the digits instead of MNIST")
    options = parser.parse_args(arguments)

    begun = time.perf_counter()
    chosen = small_task() if options.small else task("mnist-mlp")
    data = chosen.data(data_dir=options.data_dir)
    dense = trained(chosen, data, seed=0)
    print(f"{chosen.title}: dense test error {100 * dense.metrics['test_error']:.2f} %")
    records = []
    lines = []
    for protocol in ("first layer only", "all layers"):
        own = run(dense.model, data, options.densities, options.seeds, protocol, None)
        lines += ["", f"Test error in %, {protocol}, by density of the weights", ""]
        lines += table(own, options.densities)
        records += own
    print("\n".join(lines))
    facts = {
        "task": chosen.title,
        "dense": dict(dense.metrics),
        "seeds": options.seeds,
        "seconds": time.perf_counter() - begun,
        "versions": versions(),
        "host": host_facts(),
        "records": records,
    }
    write_text(options.out.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    head = f"{chosen.title}: dense test error {100 * dense.metrics['test_error']:.2f} %"
    path = write_text(options.out.with_suffix(".md"), "\n".join([head, *lines]) + "\n")
    print(f"\n{path} and .json, {facts['seconds']:.0f} s")


if __name__ == "__main__":
    main()
