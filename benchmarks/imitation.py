"""Node selection from one Gram: against a search over mini-batches, and at the stated sizes.

One thread, processor time. The search is ours, from the constants of the authors' code (Ye et al.
2020): a mini-batch of 128 samples and 50 candidates a pick. Both sides choose in the first hidden
layer of the digits MLP, in turn, in one run; the time of the Gram counts.

    python benchmarks/imitation.py             N = 512, and a consumer of 2048 columns
    python benchmarks/imitation.py --small     N = 64, and 256 columns

Results go to benchmarks/results/imitation.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from prunus.bench.data.cache import trained
from prunus.bench.data.tasks import task
from prunus.calibration import calibrate
from prunus.coupling import Group, Slot
from prunus.files import write_text
from prunus.imitation import (
    consumers_of,
    forward_trace,
    line_steps,
    local_form,
    output_form,
    refit_scales,
    refit_steps,
    uniform_steps,
)
from prunus.layer import Layer
from prunus.nodes import ClassView, class_view
from prunus.reproduce.ye2020_layer import hidden_layers, published_search

HERE = Path(__file__).parent
TARGETS = {
    "form": 0.2, "refit, every count": 0.5, "line, every count": 1.0,
    "forward elimination, every count": 10.0,
}  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time, and the answer."""
    begun = time.process_time()
    answer = work()
    return time.process_time() - begun, answer


def view_of(classes: int, taps: int, out: int) -> ClassView:
    """One convolution that reads so many channels, with inputs whose neighbours are correlated."""
    g = torch.Generator().manual_seed(0)
    wide = classes * taps
    x = torch.randn(2 * wide, wide + 8, generator=g, dtype=torch.float64)
    x = torch.relu(sum((0.8**lag * x[:, lag : lag + wide] for lag in range(8)), torch.zeros(1)))
    weight = torch.randn(out, wide, generator=g)
    layer = Layer(name="conv", weight=weight, taps=taps, gram=x.T @ x / len(x), samples=len(x))
    every = torch.arange(classes)
    slot = Slot("conv.weight", 1, "in", index=every, unit=every)
    group = Group(
        name="classes", size=classes, slots=(slot,), producers=(), consumers=("conv",), norms=(),
        exact=True,
    )  # fmt: skip
    return class_view(group, {"conv": layer})


def sizes(classes: int) -> dict[str, float]:
    """Seconds of every part."""
    view = view_of(classes, 1, classes)
    spent = {}
    spent["form"], form = timed(lambda: local_form(view))
    spent["uniform set, every count"], _ = timed(lambda: uniform_steps(form))
    spent["refit, every count"], _ = timed(lambda: refit_steps(form))
    spent["line, every count"], _ = timed(lambda: line_steps(form))
    wide = view_of(classes, 4, classes)
    spent["forward elimination, every count"], _ = timed(lambda: forward_trace(consumers_of(wide)))
    return spent


def against_search(picks: int, runs: int) -> dict[str, Any]:
    """Time and output error of one Gram and of the search, on the digits MLP."""
    chosen = task("digits-mlp")
    data = chosen.data(data_dir=None)
    model = trained(chosen, data, seed=0, progress=False).model
    hidden = next(hidden_layers(model, data, len(data.x_train)))
    x = hidden.before
    consumer = torch.nn.Sequential(torch.nn.Linear(x.shape[1], hidden.consumer.weight.shape[0]))
    consumer = consumer.double()
    consumer[0].weight.data.copy_(hidden.consumer.weight)
    calibrate(consumer, x[:8], ("gram",))  # imports and such
    ours, theirs = [], []
    for run in range(runs):
        begun = time.process_time()
        gram = calibrate(consumer, x, ("gram",), progress=False)["0"]
        layer = Layer(name=hidden.consumer.name, weight=gram.weight, gram=gram.gram, samples=len(x))
        place = next(iter(hidden.view.consumers.values()))[1]
        own = ClassView(
            name="fc1",
            group=hidden.view.group,
            producers={},
            consumers={layer.name: (layer, place)},
        )
        form = local_form(own)
        order = refit_steps(form).trace.order[:picks]
        ours.append(time.process_time() - begun)
        begun = time.process_time()
        found = published_search(hidden, picks, generator=torch.Generator().manual_seed(run))
        theirs.append(time.process_time() - begun)
    errors = {}
    n = x.shape[1]
    for k in (20, 30, 50, 100):
        if k > picks:
            continue
        kept = torch.zeros(n, dtype=torch.bool)
        kept[order[:k]] = True
        local = hidden.judged(kept, refit_scales(form, kept), ls=False)["output error"]
        output = torch.zeros(n, dtype=torch.bool)
        output[refit_steps(hidden.output).trace.order[:k]] = True
        far = hidden.judged(output, refit_scales(hidden.output, output), ls=False)["output error"]
        search = torch.zeros(n, dtype=torch.bool)
        search[found[:k]] = True
        equal = torch.full((n,), n / k, dtype=torch.float64)
        errors[k] = {
            "refit": local, "global refit": far,
            "search": hidden.judged(search, equal, ls=False)["output error"],
        }  # fmt: skip
    full = calibrate(model, data.x_train.double(), ("gram",), progress=False)
    passes, _ = timed(
        lambda: output_form(
            class_view(
                full.groups[0],
                calibrate(model, data.x_train.double(), ("taylor_gram",), progress=False),
            )
        )
    )
    return {
        "picks": picks,
        "seconds_one_gram_every_count": float(np.median(ours)),
        "seconds_search": float(np.median(theirs)),
        "ratio": float(np.median(np.array(theirs) / np.array(ours))),
        "seconds_output_form": passes,
        "output_error": errors,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few classes, in seconds")
    parser.add_argument("--runs", type=int, default=5, help="the median of so many ratios")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    found = against_search(30 if options.small else 100, options.runs)
    print(f"{found['picks']} picks: search {found['seconds_search']:.2f} s, one Gram (every count) "
          f"{found['seconds_one_gram_every_count']:.3f} s: ratio {found['ratio']:.0f}; form at the "
          f"outputs {found['seconds_output_form']:.2f} s")  # fmt: skip
    for k, errors in found["output_error"].items():
        shown = ", ".join(f"{rule} {error:.2g}" for rule, error in errors.items())
        print(f"  {k} classes: output error {shown}")
    spent = sizes(64 if options.small else 512)
    for what, seconds in spent.items():
        target = "" if options.small or what not in TARGETS else f" (target {TARGETS[what]} s)"
        print(f"{what}: {seconds:.2f} s{target}")
    name = "imitation-small.json" if options.small else "imitation.json"
    results = {"against_search": found, "seconds": spent, "targets": TARGETS}
    path = HERE / "results" / name
    write_text(path, json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
