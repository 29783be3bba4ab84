"""`magnitude` with data on VGG-16 beside one forward pass over them; one thread, processor time.

Layer errors need what every layer gives to W − W′, so that the least is the pass itself and the
products of all layers once more. Runs take turns; ratios are medians of three.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "layer_errors.json"
WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
SIDE, IMAGES, BATCH, REPEATS = 96, 64, 16, 3


def vgg16() -> Any:
    """Simonyan and Zisserman (2015), configuration D, for images of 96²."""
    from torch import nn

    parts: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width == 0:
            parts.append(nn.MaxPool2d(2))
            continue
        parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        channels = width
    parts += [nn.Flatten(), nn.Linear(512 * (SIDE // 32) ** 2, 4096), nn.ReLU(inplace=True)]
    parts += [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 1000)]
    return nn.Sequential(*parts).eval()


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of a call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def main() -> None:
    """Measure, print, keep."""
    import torch

    import prunus
    from prunus.files import write_text
    from prunus.host import host_facts, versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = vgg16(), list(torch.randn(given.images, 3, SIDE, SIDE).split(BATCH))

    def forward() -> None:
        with torch.no_grad():
            for batch in x:
                model(batch)

    def prune(measure: bool) -> None:
        prunus.prune(model, "magnitude", 0.5, data=x, measure=measure, progress=False)

    runs = {
        "forward_s": forward,
        "errors_s": lambda: prune(True),
        "plain_s": lambda: prune(False),
        "no_data_s": lambda: prunus.prune(model, "magnitude", 0.5, progress=False),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    forward()
    for _ in range(REPEATS):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    row: dict[str, Any] = {"network": "vgg16", "side": SIDE, "images": given.images}
    row |= {name: median(values) for name, values in taken.items()}
    for name in ("errors_s", "plain_s"):
        pairs = zip(taken[name], taken["forward_s"], strict=True)
        row[f"{name[:-2]}_over_forward"] = median(a / b for a, b in pairs)
    print(json.dumps(row))
    facts = {"rows": [row], "versions": versions(), "host": host_facts()}
    write_text(RESULTS, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
