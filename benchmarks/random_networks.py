"""The exact subset-sum solver against an integer program, and draws against draws with replacement.

Both sides in one run, one thread, processor time, as ratios:

- `nearest_subset` (meet in the middle, batched) against scipy's HiGHS, minimising the same error;
- its speed targets: 100 000 problems of 8 and of 16 items;
- draws of `sipp-random` (fixed size, scaled by 1/π) against draws with replacement (Baykal et al.)
  at equal numbers of distinct weights: the variance of an output's sum, and the time;
- the statistic `share` and the draws themselves at their targets' sizes;
- 784-500-10 built inside a random network with and without feedback, 8 items a slot: time, peak;
- searches by edge-popup beside trainings of the same network with as many steps of Adam.

    python benchmarks/random_networks.py
    python benchmarks/random_networks.py --small     in seconds

Results go to benchmarks/results/random_networks.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_of
from scipy.optimize import LinearConstraint, milp
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from prunus.bench.data.cache import trained
from prunus.bench.data.tasks import task
from prunus.calibration import calibrate
from prunus.engine import prune
from prunus.files import write_text
from prunus.host import versions
from prunus.inclusion import inclusion
from prunus.joint import EdgePopup
from prunus.presets import recipes
from prunus.recipe import Recipe
from prunus.selection.pivotal import pivotal_sample
from prunus.selection.proportional import systematic_sample
from prunus.theory.subset_sum import construct, draw_items, nearest_subset

HERE = Path(__file__).parent


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def program(items: np.ndarray, target: float) -> float:
    """The least error, by an integer program: min s with |x·m − z| ≤ s."""
    n = len(items)
    both = np.array([[*items, -1.0], [*-items, -1.0]])
    answer = milp(
        np.array([*[0.0] * n, 1.0]),
        constraints=LinearConstraint(both, -np.inf, [target, -target]),
        integrality=[1] * n + [0],
        bounds=(0, [1] * n + [np.inf]),
    )
    return float(answer.fun)


def against_highs(n: int, few: int, many: int) -> dict[str, Any]:
    """Milliseconds per weight of both, in turn, and how far their optima are apart."""
    generator = torch.Generator().manual_seed(0)
    items = draw_items("uniform", many, n, generator=generator)
    targets = torch.rand(many, dtype=torch.float64, generator=generator) - 0.5
    ours, theirs, gap = [], [], 0.0
    for turn in range(3):  # interleaved: a busy machine slows both
        ours.append(seconds(lambda: nearest_subset(items, targets)) / many)
        own = range(turn * few, (turn + 1) * few)
        found: list[float] = []

        def run(own: range = own, found: list[float] = found) -> None:
            found += [program(items[i].numpy(), float(targets[i])) for i in own]

        theirs.append(seconds(run) / few)
        best = nearest_subset(items[own], targets[own])[1]
        gap = max(gap, float((torch.tensor(found) - best).abs().max()))
    return {
        "items": n,
        "ours_ms": 1e3 * min(ours),
        "highs_ms": 1e3 * min(theirs),
        "ratio": min(theirs) / min(ours),
        "largest_gap": gap,
    }


def many_problems(n: int, problems: int) -> float:
    """Processor seconds of so many problems."""
    generator = torch.Generator().manual_seed(1)
    items = draw_items("uniform", problems, n, generator=generator)
    targets = torch.full((problems,), 0.25, dtype=torch.float64)
    return seconds(lambda: nearest_subset(items, targets))


def with_replacement(q: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distinct units and their factors: counts over draws · q."""
    drawn = torch.multinomial(q, draws, replacement=True, generator=generator)
    units, counts = drawn.unique(return_counts=True)
    return units, counts / (draws * q[units])


def against_replacement(share: Tensor, terms: Tensor, draws: int, runs: int) -> dict[str, Any]:
    """Relative variance of Σ terms at equal distinct counts, over inputs, and times per draw."""
    generator = torch.Generator().manual_seed(2)
    q, total = share / share.sum(), terms.sum(1)
    begun, sizes, theirs = time.process_time(), [], []
    for _ in range(runs):
        units, factor = with_replacement(q, draws, generator)
        sizes.append(len(units))
        theirs.append((terms[:, units] * factor).sum(1) / total - 1)
    spent = {"with_replacement": time.process_time() - begun}
    kept = round(sum(sizes) / runs)
    odds = inclusion(share, kept, smallest=0.0)
    result = {"draws": draws, "distinct": kept, "of": len(share)}
    base = float(torch.stack(theirs).square().mean())
    result["with_replacement_variance"] = base
    for name, sample in (("systematic", systematic_sample), ("pivotal", pivotal_sample)):
        begun, ours = time.process_time(), []
        for _ in range(runs):
            units = sample(odds, kept, generator=generator)
            ours.append((terms[:, units] / odds[units]).sum(1) / total - 1)
        spent[name] = time.process_time() - begun
        variance = float(torch.stack(ours).square().mean())
        result |= {f"{name}_variance": variance, f"{name}_ratio": base / variance}
    dropped = share.argsort(descending=True)[kept:]
    result["largest_kept_unscaled"] = float((terms[:, dropped].sum(1) / total).square().mean())
    return result | {f"{name}_us": 1e6 * own / runs for name, own in spent.items()}


def sums_of_a_row() -> tuple[Tensor, Tensor]:
    """Shares and terms of the positive weights into a unit of a trained network's second layer."""
    chosen = task("digits-mlp")
    data = chosen.data(data_dir=None)
    model = trained(chosen, data, seed=0, progress=False).model
    with torch.no_grad():
        hidden = model.act1(model.fc1(model.flatten(data.x_train[:128]))).double()
    row = model.fc2.weight[0].detach().double().clamp(min=0)
    terms = hidden * row
    share = (terms / terms.sum(1, keepdim=True)).amax(0)
    return share[row > 0], terms[:, row > 0]


def at_size(small: bool) -> dict[str, float]:
    """Processor seconds of what has a target in the specification."""
    generator = torch.Generator().manual_seed(3)
    count = 10**4 if small else 10**5
    scores = torch.rand(count, dtype=torch.float64, generator=generator)
    odds = inclusion(scores, count // 5, smallest=0.0)
    found = {
        "inclusion_and_pivotal_s": seconds(
            lambda: pivotal_sample(
                inclusion(scores, count // 5, smallest=0.0), count // 5, generator=generator
            )
        ),
        "pivotal_s": seconds(lambda: pivotal_sample(odds, count // 5, generator=generator)),
        "systematic_s": seconds(lambda: systematic_sample(odds, count // 5, generator=generator)),
    }
    mlp = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
                        nn.Linear(100, 10))  # fmt: skip
    x = torch.rand(128, 784, generator=generator)
    found["share_lenet300_s"] = seconds(lambda: calibrate(mlp, x, "share", progress=False))
    conv = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    images = torch.rand(16 if small else 128, 64, 16, 16, generator=generator)
    found["share_conv_64_patches_s"] = seconds(
        lambda: calibrate(conv, images, "share", max_positions=64, progress=False)
    )
    found["share_conv_64_patches_peak_mb"] = peak_of(patches, shares, small)[0] / 1e6
    return found


def patches(small: bool) -> tuple[nn.Module, Tensor]:
    """In the process that is measured: a convolution and its images, with everything imported."""
    torch.set_num_threads(1)
    conv = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    images = torch.rand(16 if small else 128, 64, 16, 16)
    calibrate(conv, images[:2], "share", max_positions=64, progress=False)
    return conv, images


def shares(conv: nn.Module, images: Tensor) -> None:
    """Of 64 patches of each image."""
    calibrate(conv, images, "share", max_positions=64, progress=False)


def layers_of(widths: tuple[int, ...], samples: int) -> tuple[list[Tensor], list[Tensor]]:
    """Random weights of a trained network's size, and the second moments that they see."""
    g = torch.Generator().manual_seed(4)
    weights = [
        torch.randn(out, wide, generator=g, dtype=torch.float64) / wide**0.5
        for wide, out in pairwise(widths)
    ]
    # Neighbouring pixels are alike: a smoothed image, cut off at 0.
    x = torch.randn(samples, widths[0] + 8, generator=g, dtype=torch.float64)
    x = torch.stack([x[:, lag : lag + widths[0]] for lag in range(8)]).sum(0).relu()
    grams = []
    for weight in weights:
        grams.append(x.T @ x / len(x))
        x = (x @ weight.T).relu()
    return weights, grams


def prepared(widths: tuple[int, ...], feedback: bool) -> tuple[Any, ...]:
    """In the process that is measured."""
    torch.set_num_threads(1)
    weights, grams = layers_of(widths, 2000)
    construct(weights[-1:], 2, generator=torch.Generator().manual_seed(0))  # imports and such
    return weights, grams if feedback else None, widths


def built(weights: list[Tensor], grams: list[Tensor] | None, widths: tuple[int, ...]) -> float:
    """The largest error of a layer's weights, relative to their norm."""
    made = construct(
        weights, 8, generator=torch.Generator().manual_seed(5), gram=grams, nonnegative=True
    )
    return max(float((one - w).norm() / w.norm())
               for one, w in zip(made.effective(), weights, strict=True))  # fmt: skip


def constructions(small: bool) -> dict[str, Any]:
    """Processor seconds and peak of both, in turn; the ratio is the median of so many."""
    widths = (784, 50, 10) if small else (784, 500, 10)
    found: dict[str, list[float]] = {"feedback": [], "per weight": []}
    peaks = dict.fromkeys(found, 0)
    for _ in range(1 if small else 3):
        for way in found:
            peak, spent, _ = peak_of(prepared, built, widths, way == "feedback")
            found[way].append(spent)
            peaks[way] = max(peaks[way], peak)
    return {
        "widths": list(widths),
        "items": 8,
        "seconds": {way: min(spent) for way, spent in found.items()},
        "peak_mb": {way: peak / 1e6 for way, peak in peaks.items()},
        "feedback_over_per_weight": float(
            np.median(np.array(found["feedback"]) / np.array(found["per weight"]))
        ),
    }


def network(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers without biases, ReLU between."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for wide, out in pairwise(widths):
        parts += [nn.Linear(wide, out, bias=False), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def trained_so(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Adam on the weights, batches of 128."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def searches(small: bool) -> dict[str, Any]:
    """Processor seconds of a search and of a training with as many steps, in turn."""
    cases = {"64-300-100-10, 1346 samples, 30 epochs": ((64, 300, 100, 10), 1346, 30)}
    if not small:
        cases["784-300-100-10, 10000 samples, 6 epochs"] = ((784, 300, 100, 10), 10_000, 6)
    found = {}
    for name, (widths, samples, epochs) in cases.items():
        g = torch.Generator().manual_seed(6)
        x, y = torch.rand(samples, widths[0], generator=g), torch.arange(samples) % 10
        rule = replace(recipes["edge-popup"], selection=EdgePopup(epochs=epochs))

        def search(
            rule: Recipe = rule, widths: tuple[int, ...] = widths, x: Tensor = x, y: Tensor = y
        ) -> None:
            prune(network(widths), rule, 0.5, data=(x, y), progress=False)

        own, theirs = [], []
        for _ in range(1 if small else 3):
            own.append(seconds(search))
            theirs.append(seconds(lambda: trained_so(network(widths), x, y, epochs)))  # noqa: B023
        found[name] = {
            "steps": epochs * -(-samples // 128), "search_s": min(own), "training_s": min(theirs),
            "search_over_training": float(np.median(np.array(own) / np.array(theirs))),
        }  # fmt: skip
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few problems, in seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    small = options.small
    results: dict[str, Any] = {"versions": versions()}
    results["highs"] = [
        against_highs(n, 2 if small else 6, 50 if small else 2000) for n in ((8, 12) if small else
                                                                           (8, 12, 16))
    ]  # fmt: skip
    problems = 1000 if small else 100_000
    results["seconds_of_100000" if not small else "seconds_of_1000"] = {
        str(n): many_problems(n, problems) for n in (8, 16)
    }
    share, terms = sums_of_a_row()
    results["draws"] = [
        against_replacement(share, terms, draws, 50 if small else 1000) for draws in (40, 160, 400)
    ]
    results["targets"] = at_size(small)
    results["constructions"] = constructions(small)
    results["searches"] = searches(small)
    print(json.dumps(results, indent=1))
    name = "random_networks-small.json" if small else "random_networks.json"
    print(write_text(HERE / "results" / name, json.dumps(results, indent=1) + "\n"))


if __name__ == "__main__":
    main()
