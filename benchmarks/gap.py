"""Speed of the gap theory against its targets, and against the full SVD as a peer.

python benchmarks/gap.py [--small]
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import prunus
from prunus.theory.gap import LinearPair, Pointwise, VacuousWarning, activation
from prunus.theory.gap.apriori import sup_bound
from prunus.theory.gap.chain import chain_bound
from prunus.theory.gap.concentration import chernoff_norm, iid_norm, iid_norm_curve
from prunus.theory.gap.convolution import Geometry, conv_norm
from prunus.theory.gap.laws import normal, pruned_moments, uniform
from prunus.theory.gap.mean_square import mean_field, mean_square_bound
from prunus.theory.gap.norms import lanczos
from prunus.theory.gap.plan import allocate, sup_plan
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.sensitivity import sensitivities
from prunus.theory.gap.walks import walk_weights


def timed(call: Callable[[], Any], repeats: int = 3) -> float:
    """Least processor time of some calls on one thread, in seconds; other load adds no waiting."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def chain(width: int, depth: int) -> list[Any]:
    """A ReLU network with a tenth of each layer's smallest weights removed."""
    generator = torch.Generator().manual_seed(0)
    stages: list[Any] = []
    for i in range(depth):
        w = torch.randn(width, width, dtype=torch.float64, generator=generator)
        w = w * math.sqrt(2 / width)
        cut = w.abs().flatten().kthvalue(w.numel() // 10).values
        pruned = torch.where(w.abs() > cut, w, 0.0)
        stages.append(LinearPair(name=f"fc{i}", weight=w, pruned_weight=pruned))
        stages.append(Pointwise(name=f"act{i}", activation=activation("relu")))
    return stages[:-1]


def perceptron(width: int) -> nn.Module:
    """A ReLU network of three square matrices and a head of ten outputs."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(3)),
        nn.Linear(width, 10),
    )
    with torch.no_grad():
        for p in model.parameters():
            scale = math.sqrt(2 / width) if p.ndim > 1 else 0.0
            p.copy_(scale * torch.randn(p.shape, generator=generator))
    return model.eval()


def main() -> None:
    """Print a line per target and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="smaller matrices, one repeat")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", VacuousWarning)
    repeats = 1 if small else 2
    side, width = (10**4, 300) if small else (10**5, 1000)
    logs = pruned_moments(uniform(1), "random", 0.9)
    iid_norm(10, 10, logs, 0.01)  # loads the table
    curve = np.stack([pruned_moments(uniform(1), "random", p) for p in np.linspace(0.01, 1, 120)])
    fresh = iter(range(side - 100, side))
    stages = chain(width, 3)
    origin = torch.zeros(1, width, dtype=torch.float64)
    start = Reach(dense=1.0, pruned=1.0, gap=0.0, centre=origin, pruned_centre=origin)
    generator = torch.Generator().manual_seed(0)
    channels = 32 if small else 128
    kernel = torch.randn(channels, channels, 3, 3, dtype=torch.float64, generator=generator)
    image = Geometry(size=(32, 32), padding=((1, 1), (1, 1)))
    large = torch.randn(4 * width, 4 * width, dtype=torch.float64, generator=generator)
    x = torch.randn(300, width, dtype=torch.float64, generator=generator) / math.sqrt(width)
    head = torch.randn(10, width, dtype=torch.float64, generator=generator) / math.sqrt(width)
    reacting = [*stages, Pointwise(name="act", activation=activation("relu")),
                LinearPair(name="head", weight=head, pruned_weight=head)]  # fmt: skip
    model, rows_in = perceptron(width), x.float()
    masked = prunus.prune(model, "magnitude", 0.9).model
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.random(120))[::-1] * 1e4 for _ in range(50)]
    errors = [np.concatenate([[0.0], np.sort(rng.random(119))]) for _ in range(50)]
    ten = [width] * 10 + [10]

    jobs: list[tuple[str, float | None, Callable[[], Any]]] = [
        ("norm threshold, one call", 5e-3,
         lambda: iid_norm(n := next(fresh), n, logs, 0.01)),
        ("norm thresholds, 120 densities", 0.2,
         lambda: iid_norm_curve(n := next(fresh), n, curve, 0.01)),
        ("Chernoff form", 0.2, lambda: chernoff_norm(side, side, 0.3, 0.01)),
        ("sup bound before training, 10 layers", 0.1,
         lambda: sup_bound(ten, 0.9 + 1e-6 * next(fresh) / side)),
        ("planner, 50 layers × 120 options", 1.0, lambda: allocate(costs, errors, 5.0)),
        ("plan for a sup, 3 layers", 1.0,
         lambda: sup_plan([784, 1000, 500, 10], 1 + 1e-6 * next(fresh) / side)),
        ("mean square bound", 10e-3, lambda: mean_square_bound(ten, 0.9, laws=normal(0.05))),
        ("mean field, relu", 10e-3, lambda: mean_field(ten, 0.9, laws=normal(0.05))),
        ("mean field, tanh", 50e-3,
         lambda: mean_field([width] * 3 + [10], 0.9, laws=normal(0.05), activations="tanh")),
        (f"certificate, product, 3 layers {width}", 2.0, lambda: product_bound(stages, start)),
        (f"certificate, chain, 3 layers {width}", 6.0, lambda: chain_bound(stages, 1.0, origin)),
        (f"convolution norm {channels}×{channels}×3×3 on 32×32", 4.0,
         lambda: conv_norm(kernel, image)),
        (f"Lanczos, 120 steps, {4 * width}", 6.0,
         lambda: lanczos(lambda v: large @ (large.T @ v), 4 * width, generator=generator)),
        (f"sensitivities, 3 layers {width}, 300 samples", 1.0,
         lambda: sensitivities(reacting, x)),
        (f"sensitivities of a model, 3 layers {width}, 300 samples", 1.0,
         lambda: prunus.calibrate(model, rows_in, ("sensitivity",))),
        # no target of their own
        (f"certify a model, 3 layers {width}, 300 samples", None,
         lambda: prunus.certify(model, masked, data=rows_in)),
        (f"plan a model, predicted, 3 layers {width}, 300 samples", None,
         lambda: prunus.plan(model, 0.1, data=rows_in)),
        (f"plan a model, changed, 3 layers {width}, 300 samples", None,
         lambda: prunus.plan(model, 0.1, kind="changed", data=rows_in)),
        ("walk weights up to order 64 (build only)", 15.0,
         lambda: [walk_weights(p) for p in ((8, 16) if small else (48, 56, 64))]),
    ]  # fmt: skip
    rows = []
    for name, target, call in jobs:
        seconds = timed(call, repeats)
        met = None if target is None else seconds <= target
        rows.append({"name": name, "seconds": seconds, "target": target, "met": met})
        words = (
            "no target" if target is None else f"target {target:g} s   {'met' if met else 'MISSED'}"
        )
        print(f"{name:<58} {seconds:>9.4f} s   {words}")
    matrices = [s.weight for s in stages if isinstance(s, LinearPair)]
    svd = timed(lambda: [torch.linalg.svdvals(m) for m in matrices for _ in range(3)], repeats)
    ours = next(r["seconds"] for r in rows if "product" in r["name"])
    print(f"product certificate against nine full SVDs: {svd / ours:.2f} times as fast")
    rows.append({"name": "nine full SVDs over product certificate", "ratio": svd / ours})
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / ("gap-small.json" if small else "gap.json")).write_text(
        json.dumps(rows, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
