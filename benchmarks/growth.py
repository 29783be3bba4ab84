"""What grows with the work: times over width, layers and samples, with the exponents fitted.

One thread, processor time, the least of three. Width: an MLP of three square layers; layers: chains
of convolutions with norms, 16 channels; samples: the statistics of a 256-wide MLP. Exponents are
slopes of log time over log size in the upper half of the sizes.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "growth.json"
FIGURES = HERE.parent / "docs" / "figures"
SIZES = {
    "width": (128, 256, 512, 1024),
    "layers": (8, 16, 32, 64),
    "samples": (1024, 2048, 4096, 8192),
}


def seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """The least processor time of some calls, after one to warm up."""
    call()
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return min(taken)


def mlp(width: int) -> Any:
    from torch import nn

    parts: list[nn.Module] = []
    for _ in range(3):
        parts += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10)).eval()


def chain(layers: int) -> Any:
    from torch import nn

    parts: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
    for _ in range(layers - 1):
        parts += [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def calls(axis: str, size: int) -> dict[str, Callable[[], Any]]:
    """What is timed at one size."""
    import torch

    import prunus
    from prunus.coupling import couple

    torch.manual_seed(0)
    if axis == "samples":
        model, x = mlp(256), torch.randn(size, 256)
        return {
            "calibrate": lambda: prunus.calibrate(model, x, progress=False),
            "prune magnitude, layer errors": lambda: prunus.prune(model, "magnitude", 0.5, data=x),
        }
    model = mlp(size) if axis == "width" else chain(size)
    x = torch.randn(64, size) if axis == "width" else torch.randn(2, 3, 8, 8)

    def nodes() -> Any:
        return prunus.prune(model, "l1-filter", 0.5, data=x, measure=False, progress=False)

    found: dict[str, Callable[[], Any]] = {
        "forward pass": lambda: model(x),
        "couple": lambda: couple(model, x),
        "prune l1-filter and compact": lambda: nodes().compact(x),
    }
    if axis == "width":
        found["prune wanda+ls"] = lambda: prunus.prune(model, "wanda+ls", 0.5, data=x)
        if size > 512:
            del found["prune wanda+ls"]  # a minute
    return found


def exponents(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """{(axis, series): slope} over the upper half of the sizes."""
    import numpy as np

    found = {}
    for axis in SIZES:
        for series in dict.fromkeys(r["series"] for r in rows if r["axis"] == axis):
            own = [r for r in rows if r["axis"] == axis and r["series"] == series]
            own = sorted(own, key=lambda r: r["size"])[-(len(own) // 2 + 1) :]
            x, y = np.log([r["size"] for r in own]), np.log([r["seconds"] for r in own])
            found[axis, series] = float(np.polyfit(x, y, 1)[0])
    return found


def draw(rows: list[dict[str, Any]]) -> None:
    """One picture per axis."""
    from prunus.report.figure import figure, save_figure

    for axis in SIZES:
        own = [
            {"size": r["size"], "seconds": r["seconds"], "series": r["series"], "kind": kind}
            for r in rows
            if r["axis"] == axis
            for kind in ("theory", "measured")
        ]
        chart = figure(
            own,
            x="size",
            y="seconds",
            x_title=axis,
            y_title="processor time, s",
            x_scale="log",
            y_scale="log",
            title=f"Time over {axis}, one thread",
        )
        save_figure(chart, FIGURES / f"growth-{axis}", [r for r in rows if r["axis"] == axis])


def main() -> None:
    """Measure unless --draw, keep, draw and print the exponents."""
    import torch

    from prunus.files import write_text
    from prunus.host import host_facts, versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="only from what is kept")
    parser.add_argument("--axes", nargs="*", default=list(SIZES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    rows: list[dict[str, Any]] = kept["rows"]
    for axis in () if given.draw else given.axes:
        rows = [r for r in rows if r["axis"] != axis]
        for size in SIZES[axis]:
            for series, call in calls(axis, size).items():
                row = {"axis": axis, "size": size, "series": series, "seconds": seconds(call)}
                rows.append(row)
                print(row, flush=True)
        facts = {"rows": rows, "versions": versions(), "host": host_facts()}
        write_text(RESULTS, json.dumps(facts, indent=1) + "\n")
    draw(rows)
    for (axis, series), slope in exponents(rows).items():
        print(f"{series}: {axis}^{slope:.2f}")


if __name__ == "__main__":
    main()
