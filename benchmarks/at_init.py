"""Speed of pruning at initialisation, against masked training in PyTorch in the same process.

The peer of the simulation is the usual primal loop (masked weights as one parameter, autograd, a
gradient step, the mask again), that of the sweep one network after another with Adam. All run in
float32 on one thread on the same draws. Processor time is reported beside wall time, for a shared
machine; `target_s` is the goal for a quiet one.

    python benchmarks/at_init.py [--small] [--only WORD]   (rows whose name has WORD)
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from prunus.bench.at_init.masks import he_mlp, masks_at_init
from prunus.bench.at_init.sweep import sweep
from prunus.bench.data.sets import Dataset, load_data
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


def timed_row(work: Callable[[], object], count: int = 1) -> dict[str, float]:
    """Seconds of one of the `count` pieces of `work`."""
    wall, cpu, _ = timed(work)
    return {"wall_s": wall / count, "processor_s": cpu / count}


def closed_form() -> dict[str, float]:
    """One point of the closed form, over densities."""
    predict(A, 0.3)  # warm up
    points = torch.logspace(-2, 0, 20, dtype=torch.float64).clamp_max(1).tolist()
    return timed_row(lambda: [predict(A, p) for p in points], len(points))


def diagram(side: int) -> dict[str, float]:
    """Density against noise, by the closed form."""
    axis = torch.logspace(-2.5, 0, side, dtype=torch.float64).clamp_max(1).tolist()
    noise = [0.5 + 1.5 * i / (side - 1) for i in range(side)]
    return timed_row(lambda: phase_diagram(A, "noise", noise, axis, progress=False))


def safe() -> dict[str, float]:
    """The estimate of how far a network may be pruned, 16 densities, 300 points."""
    generator = generator_for(0, "benchmark")
    labels = torch.arange(300) % 10
    x = torch.randn(300, 64, generator=generator, dtype=torch.float64)
    x[torch.arange(300), labels] += 4
    return timed_row(lambda: safe_density(x, labels, [100], generator=generator))


SWEPT = (0.8, 0.65, 0.5, 0.35, 0.25, 0.18, 0.1, 0.05, 0.02)


def swept(data: Dataset, seeds: int) -> dict[str, float]:
    """Four methods, the control and the dense network, [100], 9 densities."""
    found = timed_row(
        lambda: sweep(data, (100,), densities=SWEPT, seeds=seeds, input_noise=1.0, progress=False)
    )
    return {"seeds": seeds, "networks": seeds * (1 + 5 * len(SWEPT)), **found}


def one_after_another(data: Dataset) -> dict[str, float]:
    """The sweep's peer: random masks at 9 densities, each network trained by itself with Adam."""
    x = data.x_train[:300].flatten(1).float()
    x, y = (x - x.mean(0)) / x.std(), data.y_train[:300].long()
    first = he_mlp(x.shape[1], [100], 10, seed=0)
    names = ("fc1", "fc2")

    def peer() -> None:
        masks = masks_at_init(first, "random-init", SWEPT, (x, y), names=names, seed=0)
        for own in masks:
            network = he_mlp(x.shape[1], [100], 10, seed=0)
            kept = {f"{name}.weight": mask.float() for name, mask in own.items()}
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    parameter.mul_(kept.get(name, torch.ones(())))
            optimizer = torch.optim.Adam(network.parameters(), 1e-2)
            for _ in range(200):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(x), y).backward()
                for name, parameter in network.named_parameters():
                    if name in kept:
                        parameter.grad.mul_(kept[name])
                optimizer.step()

    def ours() -> None:
        sweep(
            data, (100,), methods=("random-init",), densities=SWEPT, seeds=[0], test_samples=1,
            progress=False,
        )  # fmt: skip

    peer_row, our_row = timed_row(peer, len(SWEPT)), timed_row(ours, 1 + 2 * len(SWEPT))
    return {
        "sweep_s_per_network": our_row["processor_s"],
        "peer_s_per_network": peer_row["processor_s"],
        "ratio_processor": peer_row["processor_s"] / our_row["processor_s"],
        "ratio_wall": peer_row["wall_s"] / our_row["wall_s"],
    }


def table(small: bool) -> dict[str, tuple[Callable[[], dict[str, float]], float | None]]:
    """Row name -> what measures it, and the target in wall seconds; the long ones last."""
    densities, seeds = (10, 2) if small else (40, 10)
    side = 10 if small else 40
    return {
        "one network, dual against primal loop": (
            lambda: training_ratio(30 if small else STEPS),
            None,
        ),
        "closed form, one point": (closed_form, 0.005),
        f"closed form, {side} x {side} diagram": (lambda: diagram(side), 8),
        "hard limit": (lambda: timed_row(lambda: hard_limit([100], 14, 10)), 0.1),
        "safe density, 16 points, n = 300": (safe, 7),
        f"dual, {densities} densities x {seeds} seeds": (
            lambda: grid("dual", densities, seeds),
            20,
        ),
        f"reduced, {densities} densities x {seeds} seeds": (
            lambda: grid("reduced", densities, seeds),
            15,
        ),
        f"dual, 16 densities x {2 * seeds} seeds": (lambda: grid("dual", 16, 2 * seeds), 25),
        "digits, one network after another": (lambda: one_after_another(load_data("digits")), None),
        "digits sweep": (lambda: swept(load_data("digits"), 1 if small else 20), 60),
        "mnist sweep": (lambda: swept(load_data("mnist"), 1 if small else 10), 150),
    }


def main() -> None:
    """Print each row as it comes, and keep all of them in benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", default="", help="rows whose name has this word")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # over-pruned networks memorise late
    name = "at_init-small.json" if given.small else "at_init.json"
    path = Path(__file__).parent / "results" / name
    path.parent.mkdir(exist_ok=True)
    rows = table(given.small)
    kept = json.loads(path.read_text())["rows"] if path.exists() else {}
    found = {name: row for name, row in kept.items() if name in rows}
    for name, (measure, target) in rows.items():
        if given.only not in name:
            continue
        if name == "mnist sweep" and not os.environ.get("PRUNUS_DATA"):
            print(f"{name}: left out, PRUNUS_DATA is not set", flush=True)
            continue
        row = measure()
        if target is not None and not given.small:
            row["target_s"] = target
        found[name] = {**row, "load": os.getloadavg()[0]}
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        facts = {"small": given.small, "torch": torch.__version__, "rows": found}
        path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
