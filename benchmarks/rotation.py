"""Width of a trained decoder with and without a rotation of its stream, on draws of calibration.

The task `tiny-llama` (4 blocks, width 128, trained on Python's language reference): channels of the
stream alone go, by two scores, with and without least squares, in the basis that came and in the
principal axes (`Rotate`). Perplexity is that of the test windows; every draw calibrates on 64 other
windows of the training text, the same for all recipes, so that differences are paired.

    python benchmarks/rotation.py
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus import Recipe
from prunus.bases import Rotate
from prunus.bench import task, trained
from prunus.compensation import LeastSquares
from prunus.coupling import couple
from prunus.granularity import Node
from prunus.host import versions
from prunus.scores import Magnitude, RemovalError

RESULTS = Path(__file__).parent / "results"
SCORES = {"L2 norm of what reads it": Magnitude(reduction="l2"), "removal error": RemovalError()}
WIDTHS = (0.9, 0.75)


def recipe_of(score: Any, fitted: bool, turned: bool) -> Recipe:
    """Channels by a score."""
    more: dict[str, Any] = {"compensation": LeastSquares()} if fitted else {}
    if turned:
        more["basis"] = Rotate()
    return Recipe(granularity=Node(), score=score, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "rotation.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = task("tiny-llama")
    data = chosen.data()
    model = trained(chosen, data, seed=0).model
    windows = data.x_train
    (stream,) = [g for g in couple(model, windows[:2]).groups if g.embeddings]
    rows = []
    for draw, width in itertools.product(range(options.draws), WIDTHS):
        generator = torch.Generator().manual_seed(100 + draw)
        own = windows[torch.randperm(len(windows), generator=generator)[:64]].split(16)
        for (name, score), fitted, turned in itertools.product(
            SCORES.items(), (False, True), (False, True)
        ):
            begun = time.process_time()
            pruned = prunus.prune(
                model,
                recipe_of(score, fitted, turned),
                {stream.name: width, "*": 1.0},
                data=list(own),
                layers="*",
                measure=False,
            )
            rows.append(
                {
                    "draw": draw, "width": width, "score": name, "least_squares": fitted,
                    "rotated": turned, "channels": pruned.plan.kept[stream.name],
                    **{k: float(v) for k, v in chosen.evaluate(pruned.model, data).items()},
                    "seconds": time.process_time() - begun,
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    facts = {
        "benchmark": "rotation",
        "versions": versions(),
        "dense": {k: float(v) for k, v in chosen.evaluate(model, data).items()},
        "rows": rows,
    }
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
