"""What scores of the loss cost: curvature, rounds of `obd`, prices, and all node scores at once.

In processor time and in turn, one thread; the median over repetitions, and the median of the ratios
to the peer of the same turn. The digits MLP (64-300-100-10, 1200 samples) and the digits CNN.

    python benchmarks/second_order.py [--small]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.bench import task, trained
from prunus.files import write_text
from prunus.host import host_facts, versions
from prunus.presets import PRESETS
from prunus.scores import OBD, ObsPrice

NODES = (
    "taylor", "taylor-2017", "gate", "thinet", "obs-node", "fpgm", "apoz", "bn-scale",
    "mean-activation", "l1-filter", "importance-node", "random-node",
)  # fmt: skip


def timed(function: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


def in_turn(
    what: str, ours: Callable[[], object], peer: Callable[[], object], repetitions: int
) -> dict[str, Any]:
    """Both once for warmth, then one after the other."""
    ours(), peer()
    pairs = [(timed(ours), timed(peer)) for _ in range(repetitions)]
    return {
        "what": what,
        "s": round(statistics.median(a for a, _ in pairs), 3),
        "peer_s": round(statistics.median(b for _, b in pairs), 3),
        "ratio": round(statistics.median(a / b for a, b in pairs), 2),
    }


def measured(repetitions: int, samples: int) -> list[dict[str, Any]]:
    """All rows."""
    chosen = task("digits-mlp")
    data = chosen.data(data_dir=None)
    model = trained(chosen, data, seed=0, progress=False).model
    x, y = data.x_train[:samples], data.y_train[:samples]

    def collected(*wanted: str) -> Callable[[], object]:
        return lambda: prunus.calibrate(model, (x, y), wanted, progress=False)

    def priced() -> list[torch.Tensor]:
        layers = prunus.calibrate(model, x, ("gram", "slope"), progress=False)
        return [ObsPrice()(layer) for layer in layers.values()]

    def once(recipe: Any) -> Callable[[], object]:
        return lambda: prunus.prune(model, recipe, 0.1, data=x, progress=False)

    def scored() -> list[torch.Tensor]:
        layers = prunus.calibrate(model, x, ("curvature",), progress=False)
        return [OBD()(layer) for layer in layers.values()]

    rows = [
        in_turn("curvature over sensitivity", collected("curvature"), collected("sensitivity"),
                repetitions),
        in_turn("obd in 20 rounds over one calibration", once("obd"), scored, repetitions),
        in_turn("prices of all weights over obs", priced, once("obs"), max(1, repetitions // 3)),
    ]  # fmt: skip
    other = task("digits-cnn")
    images = other.data(data_dir=None)
    network = trained(other, images, seed=0, progress=False).model
    pair = (images.x_train[:samples], images.y_train[:samples])

    def nodes() -> None:
        for name in NODES:
            prunus.prune(network, PRESETS[name].recipe, 0.5, data=pair, progress=False)

    nodes()
    spent = statistics.median(timed(nodes) for _ in range(repetitions))
    what = f"{len(NODES)} node scores on the digits CNN, each pruned from the samples on"
    return [*rows, {"what": what, "s": round(spent, 3)}]


def main() -> None:
    """Measure, print, and keep the numbers of the full sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="seconds; nothing is kept")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    rows = measured(1 if small else 5, 100 if small else 1200)
    for row in rows:
        print(row)
    if not small:
        path = Path(__file__).parent / "results" / "second_order.json"
        facts = {"host": host_facts(), "versions": versions(), "rows": rows}
        write_text(path, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
