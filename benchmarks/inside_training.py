"""Methods inside training at equal training cost: digits CNN, every method 24 epochs in all.

python benchmarks/inside_training.py               run what is missing, then print the table
python benchmarks/inside_training.py --seeds 1     fewer networks

Records go to results/inside_training.jsonl, one line a run, and an interrupted run goes on. All
methods train with the task's rate and cosine over their own steps; the lottery ticket shares its
24 epochs among four trainings of 6, one shot among 12 before and 12 after.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus.allocation import ERK
from prunus.bench import Training, evaluate, fit, fresh_model, load_data, task
from prunus.bench.statistics.intervals import paired
from prunus.courses import Dynamic, GradientGrowth, Gradual, RandomGrowth, Static
from prunus.recipe import Recipe
from prunus.rng import generator_for
from prunus.schedules import Rewinding
from prunus.scores import Constant
from prunus.selection import RandomK
from prunus.surgery.masked import hold

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "results" / "inside_training.jsonl"
EPOCHS, EVERY, DENSITIES = 24, 20, (0.2, 0.1, 0.05)
SPARSE = Recipe(score=Constant(), allocation=ERK(), selection=RandomK(), schedule=Static())
COURSES = {
    "gradual": replace(prunus.recipes["gradual"], schedule=Gradual(every=EVERY)),
    "gradual-layer": replace(prunus.recipes["gradual-layer"], schedule=Gradual(every=EVERY)),
    "soft (global)": replace(prunus.recipes["gradual"], schedule=Gradual(every=EVERY, soft=True)),
    "rigl": replace(SPARSE, schedule=Dynamic(every=EVERY, grow=GradientGrowth())),
    "set": replace(SPARSE, schedule=Dynamic(every=EVERY, grow=RandomGrowth())),
    "static random": SPARSE,
}
METHODS = ("dense", *COURSES, "static in gradual's layers", "lottery", "one shot at half time")


def training(epochs: float) -> Training:
    """The task's own rate and batch."""
    return Training(epochs=int(epochs), learning_rate=1e-2, batch=64)


def run(method: str, density: float, seed: int) -> dict[str, object]:
    """One training and its test scores."""
    data, job = load_data("digits"), task("digits-cnn")
    model, begun = fresh_model(job, seed), time.process_time()
    steps = EPOCHS * (len(data.x_train) // 64)
    train = partial(fit, data=data, progress=False)
    order = partial(generator_for, seed, "order")

    def sparsely(model: nn.Module, recipe: Recipe, at: object) -> prunus.Pruned:
        made = []

        def tie(optimizer: torch.optim.Optimizer) -> None:
            made.append(
                prunus.sparsify(model, recipe, at, optimizer=optimizer, steps=steps, seed=seed)
            )

        train(model, training=training(EPOCHS), generator=order(), hold=tie)
        return made[0].finish(strict=True)

    if method == "dense":
        train(model, training=training(EPOCHS), generator=order())
        masks = {}
    elif method in COURSES:
        masks = sparsely(model, COURSES[method], density).masks
    elif method == "static in gradual's layers":
        counts = sparsely(fresh_model(job, seed), COURSES["gradual"], density).layers
        plan = prunus.Plan(kept={name: int(r.mask.sum()) for name, r in counts.items()})
        masks = sparsely(model, SPARSE, plan).masks
    elif method == "lottery":
        recipe = replace(prunus.recipes["lottery"], schedule=Rewinding(rounds=3))

        def part(model: nn.Module, step: prunus.schedules.Step) -> None:
            train(model, training=training(EPOCHS / 4), generator=order(step.index))

        pruned = prunus.prune(model, recipe, density, train=part, progress=False)
        model, masks = pruned.model, pruned.masks
    else:
        train(model, training=training(EPOCHS / 2), generator=order())
        pruned = prunus.prune(model, "magnitude-global", density, progress=False)
        model, masks = pruned.model, pruned.masks
        train(
            model, training=training(EPOCHS / 2), generator=order(1),
            hold=lambda optimizer: hold(model, masks, optimizer),
        )  # fmt: skip
    kept = sum(int(m.sum()) for m in masks.values())
    total = sum(m.numel() for m in masks.values())
    return {
        "method": method, "density": density, "seed": seed, "kept": kept, "total": total,
        **evaluate(model, data), "seconds": round(time.process_time() - begun, 2),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Means in % with the paired difference to static random masks."""
    lines = ["| method | " + " | ".join(f"density {d:g}" for d in DENSITIES) + " |"]
    lines.append("| --- |" + " --- |" * len(DENSITIES))
    for method in METHODS:
        cells = []
        for density in DENSITIES:
            own = error_of(rows, method, density)
            control = error_of(rows, "static random", density)
            if not own:
                cells.append("–")
                continue
            text = f"{statistics.fmean(own.values()):.2f}"
            shared = own.keys() & control.keys()
            if method != "static random" and len(shared) > 1:
                found = paired({s: own[s] for s in shared}, {s: control[s] for s in shared})
                text += f" ({found['mean']:+.2f}, {found['low']:+.2f} to {found['high']:+.2f})"
            cells.append(text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def error_of(rows: list[dict], method: str, density: float) -> dict[int, float]:
    """{seed: test error in %}; a dense network has no density."""
    return {
        r["seed"]: 100 * r["test_error"]
        for r in rows
        if r["method"] == method and (method == "dense" or r["density"] == density)
    }


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = (
        [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    )
    done = {(r["method"], r["density"], r["seed"]) for r in rows}
    for seed in range(args.seeds):
        for method in METHODS:
            for density in DENSITIES[:1] if method == "dense" else DENSITIES:
                if (method, density, seed) not in done:
                    rows.append(run(method, density, seed))
                    with RECORDS.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
