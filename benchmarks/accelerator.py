"""CUDA against the CPU of the same machine: every recipe's answer, and the speed of the kernels.

Correctness first: each recipe prunes a network on the GPU and on the CPU from one calibration, and
the masks of rules without draws must agree up to ties of rounding. Then calibration, least
squares, SparseGPT and batched k-DPP draws are timed on both, with the ratio CPU / CUDA.

    python benchmarks/accelerator.py [--small]
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus import dpp
from prunus.compensation import least_squares
from prunus.granularity import EdgePerRow
from prunus.joint import SparseGPT
from prunus.layer import Layer
from prunus.parts import EDGES, NODES
from prunus.recipe import Recipe
from prunus.schedules import steps_of

RESULTS = Path(__file__).parent / "results" / "accelerator.json"


def network(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A small convolutional network with batch norm, and inputs."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 64, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 10),
    )  # fmt: skip
    return model.eval(), torch.randn(256, 3, 16, 16)


def served(recipe: Recipe) -> bool:
    """True for what one call of `prune` does to the weights or nodes of a trained network."""
    schedule = recipe.schedule
    trains = schedule.inside or schedule.trains or schedule.before_training
    return not trains and recipe.units in (EDGES, NODES)


def agreement(device: str = "cuda") -> list[dict[str, object]]:
    """How far each recipe's network on the device is from the one on the CPU."""
    model, x = network()
    batch = (x, torch.arange(len(x)) % 10)
    on_gpu = network()[0].to(device)
    on_gpu.load_state_dict(model.state_dict())
    rows = []
    for name, recipe in prunus.recipes.items():
        if not served(recipe):
            continue
        shared = batch  # rounds measure anew
        if len(steps_of(recipe.schedule)) == 1:
            shared = prunus.calibrate(model, batch, recipe.statistics or ("gram",))
        one = prunus.prune(model, name, 0.3, data=shared)
        two = prunus.prune(on_gpu, name, 0.3, data=shared)
        assert {p.device.type for p in two.model.parameters()} == {device}
        same = [float((one.masks[k] == two.masks[k].cpu()).double().mean()) for k in one.masks]
        with torch.no_grad():
            dense = model(x)
            gap = (one.model(x) - two.model(x.to(device)).cpu()).norm() / dense.norm()
        rows.append({"recipe": name, "masks_equal": min(same), "relative_gap": float(gap)})
        if recipe.units == NODES:
            small = two.compact(x[:8].to(device))
            with torch.no_grad():
                away = (small(x.to(device)) - two.model(x.to(device))).abs().max()
            rows[-1]["compact_difference"] = float(away)
    return rows


def timed(function, device: str, runs: int = 3) -> float:
    """Best of some runs, seconds of wall time, after one that is not counted."""
    times = []
    for _ in range(runs + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def speed(small: bool) -> list[dict[str, object]]:
    """Wall time on both devices and their ratio."""
    n, rows, samples, kernels = (128, 64, 4096, 8) if small else (1024, 1024, 60000, 64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, n, generator=generator) @ torch.randn(n, n, generator=generator)
    weight = torch.randn(rows, n, generator=generator)
    mask = torch.rand(rows, n, generator=generator).argsort(1) < n // 2
    gram = (x.double().T @ x.double()) / samples
    layer = nn.Sequential(nn.Linear(n, 8))
    points = [
        torch.rand(784 if not small else 100, 20, generator=generator) for _ in range(kernels)
    ]
    stack = torch.stack([dpp.gaussian_from_features(p, bandwidth=1.0) for p in points])
    jobs = {
        f"calibrate {samples} x {n}": lambda d: prunus.calibrate(layer.to(d), x, device=d),
        f"least squares {rows} x {n}, half kept": lambda d: least_squares(
            weight.to(d), gram.to(d), mask.to(d)
        ),
        f"sparsegpt {rows} x {n}": lambda d: SparseGPT()(
            Layer(name="layer", weight=weight.to(d), gram=gram.to(d)),
            EdgePerRow(),
            torch.full((rows,), n // 2),
        ),
        f"{kernels} k-DPP draws, n {stack.shape[1]}, k {stack.shape[1] // 2}": lambda d: (
            dpp.sample_batch(
                stack.to(d), stack.shape[1] // 2, generator=torch.Generator().manual_seed(1)
            )
        ),
    }
    found = []
    for name, job in jobs.items():
        try:
            on_cpu = timed(lambda job=job: job("cpu"), "cpu")
            on_gpu = timed(lambda job=job: job("cuda"), "cuda")
        except Exception as error:  # a job that cannot run is a finding, not the end of the others
            found.append({"job": name, "error": f"{type(error).__name__}: {error}"})
            continue
        found.append({"job": name, "cpu": on_cpu, "cuda": on_gpu, "ratio": on_cpu / on_gpu})
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run both parts and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to compare")
        return
    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "agreement": agreement(),
        "speed": speed(options.small),
    }
    for row in [*facts["agreement"], *facts["speed"]]:
        print(row)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
