"""What sparsity inside a training costs: a step of LeNet-300-100, and one change of large masks.

A step (batch 128 of MNIST, density 0.1, one thread) without sparsity, with `sparsify`, and with a
loop that multiplies gradients and weights by masks by hand, in turn, in processor time; the median
over repetitions and the median of ratios to the plain step. Then one change of the masks of a layer
of 5000 × 5000 weights: an exchange of RigL, and a step of gradual pruning.

    python benchmarks/sparsify.py [--small]
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus.bench import fresh_model, load_data, task
from prunus.courses import Dynamic, GradientGrowth, Gradual
from prunus.files import write_text
from prunus.host import host_facts, versions

OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-3),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
}
WAYS = ("plain", "gradual", "rigl", "movement", "masks by hand")
LONG = 10**7  # steps of the training, of which no run sees the end


class Loop:
    """A training that goes on for as many steps as it is asked."""

    def __init__(self, way: str, kind: str, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """A fresh network, its optimizer, and the way's zeros."""
        self.model, self.batches = fresh_model(task("mnist-lenet300"), 0), batches
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.by_hand: list[tuple[nn.Parameter, Tensor]] = []
        if way == "masks by hand":
            masks = prunus.prune(self.model, "magnitude-erk", 0.1, progress=False).masks
            own = dict(self.model.named_parameters())
            self.by_hand = [(own[name], mask.float()) for name, mask in masks.items()]
        elif way != "plain":
            recipe = prunus.recipes[way]
            if recipe.schedule.density(0.0, 0.1) == 1.0:  # all its changes at the start
                early = replace(recipe.schedule, start=0.0, stop=20 / LONG, every=10)
                recipe = replace(recipe, schedule=early)
            prunus.sparsify(self.model, recipe, 0.1, optimizer=self.optimizer, steps=LONG)

    def run(self, steps: int) -> float:
        """Processor seconds of a step."""
        begun = time.process_time()
        for _ in range(steps):
            x, y = next(self.batches)
            functional.cross_entropy(self.model(x), y).backward()
            for parameter, mask in self.by_hand:
                parameter.grad.mul_(mask)
            self.optimizer.step()
            for parameter, mask in self.by_hand:
                parameter.data.mul_(mask)
            self.optimizer.zero_grad()
        return (time.process_time() - begun) / steps


def steps(repetitions: int) -> list[dict[str, Any]]:
    """Times of a step, the ways in turn."""
    data = load_data("mnist")
    whole = list(zip(data.x_train.split(128), data.y_train.split(128), strict=True))[:-1]
    rows = []
    for kind in OPTIMIZERS:
        loops = {way: Loop(way, kind, itertools.cycle(whole)) for way in WAYS}
        for loop in loops.values():
            loop.run(30)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repetitions):
            for way, loop in loops.items():
                times[way].append(loop.run(10))
        for way in WAYS:
            ratios = [t / plain for t, plain in zip(times[way], times["plain"], strict=True)]
            rows.append({
                "optimizer": kind, "way": way,
                "ms": round(1e3 * statistics.median(times[way]), 3),
                "over_plain": round(statistics.median(ratios), 3),
            })  # fmt: skip
    return rows


def changes(side: int, repetitions: int) -> list[dict[str, Any]]:
    """Seconds of one step with a change of masks, beyond one without, one layer."""
    rows = []
    for name, course in (
        ("rigl", Dynamic(every=2, stop=1.0, grow=GradientGrowth())),
        ("gradual", Gradual(start=0.0, stop=1.0, every=2)),
    ):
        model = nn.Linear(side, side, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        recipe = replace(prunus.recipes[name], schedule=course)
        count = 2 * repetitions + 2
        sparse = prunus.sparsify(model, recipe, 0.1, optimizer=optimizer, steps=count)
        taken: list[float] = []
        for _ in range(count):
            model.weight.grad = torch.randn_like(model.weight)
            begun = time.process_time()
            optimizer.step()
            taken.append(time.process_time() - begun)
        sparse.remove()
        extra = [
            due - other for other, due in zip(taken[::2], taken[1::2], strict=True)
        ]  # every second is due
        rows.append({"change": name, "weights": side**2, "s": round(statistics.median(extra), 3)})
    return rows


def main() -> None:
    """Measure, print, and keep the numbers of the full sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="seconds; nothing is kept")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    found = {
        "steps": steps(2 if small else 40),
        "changes": changes(500 if small else 5000, 2 if small else 4),
    }
    for row in (*found["steps"], *found["changes"]):
        print(row)
    if not small:
        path = Path(__file__).parent / "results" / "sparsify.json"
        facts = {"host": host_facts(), "versions": versions()}
        write_text(path, json.dumps({**facts, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
