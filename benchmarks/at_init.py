"""Speed of pruning at initialisation: each engine against masked gradient descent in PyTorch.

The peer is the usual primal loop: masked weights as one batched parameter, autograd, a gradient
step, the mask again. Both run in float32 on one thread on the same draws, in this process.
Processor time is reported beside wall time, for a shared machine.

    python benchmarks/at_init.py [--small]
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from prunus.bench.at_init import sweep
from prunus.bench.data import load_data
from prunus.rng import generator_for
from prunus.theory.at_init import (
    Setting,
    draw_problem,
    hard_limit,
    phase_diagram,
    predict,
    safe_density,
    simulate,
)
from prunus.theory.at_init.data import Problem
from prunus.theory.at_init.dynamics import Dual, nested_grams

A = Setting()
STEPS = 150


def timed(work) -> tuple[float, float, object]:
    """Wall and processor seconds of one call, and its answer."""
    wall, processor = time.perf_counter(), time.process_time()
    answer = work()
    return time.perf_counter() - wall, time.process_time() - processor, answer


def primal_loop(problem: Problem, density: float, steps: int, step_size: float) -> torch.Tensor:
    """The peer: what one writes in PyTorch without the dual variables."""
    classes, mask = problem.setting.classes, problem.mask(density).to(problem.weight.dtype)
    weight = (problem.weight * mask).requires_grad_(True)
    for _ in range(steps):
        hidden = torch.relu(problem.inputs @ weight.T)
        outputs = hidden.reshape(len(hidden), classes, -1).sum(2)
        loss = torch.nn.functional.cross_entropy(outputs, problem.labels)
        (grad,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= step_size * grad * mask
    return weight.detach()


def training_ratio(steps: int) -> dict[str, float]:
    """One network of experiment A: the loop alone, Gram matrices apart."""
    problem = draw_problem(A, 0, torch.float32)
    density = 0.25
    gram_wall, gram_cpu, grams = timed(lambda: next(nested_grams(problem, [density])))
    network = Dual(problem, density, grams)
    eta = 2.0 * A.samples / network.curvature
    target = torch.nn.functional.one_hot(problem.labels, A.classes).T.float()

    def dual() -> torch.Tensor:
        for _ in range(steps):
            active = network.preactivations.reshape(A.classes, A.neurons, -1)
            residual = (target - active.clamp_min(0).sum(1).softmax(0)) * (eta / A.samples)
            network.advance((residual[:, None] * (active > 0)).flatten(0, 1))
        return network.weight

    primal_loop(problem, density, 3, eta)  # warm up
    dual_wall, dual_cpu, ours = timed(dual)
    peer_wall, peer_cpu, theirs = timed(lambda: primal_loop(problem, density, steps, eta))
    gap = float((ours - theirs).abs().max() / theirs.abs().max())
    return {
        "dual_ms_per_step": 1e3 * dual_cpu / steps,
        "primal_ms_per_step": 1e3 * peer_cpu / steps,
        "ratio_processor": peer_cpu / dual_cpu,
        "ratio_wall": peer_wall / dual_wall,
        "gram_s": gram_cpu,
        "gram_wall_s": gram_wall,
        "relative_weight_gap": gap,
    }


def grid(engine: str, densities: int, seeds: int) -> dict[str, float]:
    """Many densities and seeds with 1000 test draws, records at the end only."""
    chosen = torch.logspace(-3, 0, densities, dtype=torch.float64).clamp_max(1).tolist()
    wall, cpu, _ = timed(
        lambda: simulate(
            A, chosen, seeds=seeds, engine=engine, checkpoints=0, dtype=torch.float32,
            progress=False,
        )
    )  # fmt: skip
    return {"densities": densities, "seeds": seeds, "wall_s": wall, "processor_s": cpu}


def rows(small: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """The measurements one by one, the long one last."""
    yield "one network, dual against primal loop", training_ratio(30 if small else STEPS)
    n_densities, seeds = (10, 2) if small else (40, 10)
    yield "dual, densities x seeds", grid("dual", n_densities, seeds)
    yield "reduced, densities x seeds", grid("reduced", n_densities, seeds)
    predict(A, 0.3)  # warm up
    points = torch.logspace(-2, 0, 20, dtype=torch.float64).clamp_max(1).tolist()
    wall, cpu, _ = timed(lambda: [predict(A, p) for p in points])
    yield "closed form, one point", {"wall_s": wall / 20, "processor_s": cpu / 20}
    side = 10 if small else 40
    axis = torch.logspace(-2.5, 0, side, dtype=torch.float64).clamp_max(1).tolist()
    wall, cpu, _ = timed(
        lambda: phase_diagram(
            A, "noise", [0.5 + 1.5 * i / (side - 1) for i in range(side)], axis, progress=False
        )
    )
    yield f"closed form, {side} x {side} diagram", {"wall_s": wall, "processor_s": cpu}
    wall, cpu, _ = timed(lambda: hard_limit([100], 14, 10))
    yield "hard limit", {"wall_s": wall, "processor_s": cpu}
    generator = generator_for(0, "benchmark")
    labels = torch.arange(300) % 10
    x = torch.randn(300, 64, generator=generator, dtype=torch.float64)
    x[torch.arange(300), labels] += 4
    wall, cpu, _ = timed(lambda: safe_density(x, labels, [100], generator=generator))
    yield "safe density, 16 points, n = 300", {"wall_s": wall, "processor_s": cpu}
    yield "digits sweep, 4 methods + control x 9 densities", digits_sweep(1 if small else 20)


def digits_sweep(seeds: int) -> dict[str, float]:
    """Four methods and the control on the digits, [100]."""
    densities = (0.8, 0.65, 0.5, 0.35, 0.25, 0.18, 0.1, 0.05, 0.02)
    data = load_data("digits")
    wall, cpu, _ = timed(
        lambda: sweep(data, (100,), densities=densities, seeds=seeds, input_noise=1.0)
    )
    return {"seeds": seeds, "wall_s": wall, "processor_s": cpu}


def main() -> None:
    """Print each row as it comes, and write all of them to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the work")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # over-pruned networks memorise late
    path = Path(__file__).parent / "results" / ("at_init-small.json" if small else "at_init.json")
    path.parent.mkdir(exist_ok=True)
    found = {}
    for name, row in rows(small):
        found[name] = row
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        facts = {
            "small": small,
            "torch": torch.__version__,
            "load": os.getloadavg()[0],
            "rows": found,
        }
        path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
