"""The picture of docs/speed.md and its exponents, from the kept times of `least_squares.py`."""

import json
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from prunus.report.figure import save_figure

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "docs" / "figures"
SERIES = {
    "sparsegpt_s": "SparseGPT sweep",
    "cg_1e-03_s": "conjugate gradients, excess ≤ 1e-3",
    "cholesky_s": "a factorisation per row",
}


def points(rows: list[dict[str, Any]], density: float) -> list[dict[str, Any]]:
    """Times of layers n × n, one row each."""
    return [
        {"inputs": row["inputs"], "n": row["n"], "method": name, "seconds": row[key]}
        for row in rows
        for key, name in SERIES.items()
        if row["density"] == density and key in row
    ]


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Slope of log time over log n of each method, over both kinds of inputs."""
    found = {}
    for name in SERIES.values():
        own = [(np.log(r["n"]), np.log(r["seconds"])) for r in rows if r["method"] == name]
        x, y = np.array(own).T
        found[name] = float(np.polyfit(x, y, 1)[0])
    return found


def main() -> None:
    """Draw, and print the exponents."""
    kept = json.loads((HERE / "results" / "least_squares.json").read_text())["rows"]
    rows = points(kept, 0.5)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("n:Q", title="inputs and outputs of the layer").scale(type="log", nice=False),
        y=alt.Y("seconds:Q", title="processor time, s").scale(type="log"),
        color=alt.Color("method:N", title=None),
        shape=alt.Shape("inputs:N", title="inputs"),
    )
    chart = (base.mark_line(opacity=0.5) + base.mark_point(size=60, filled=True)).properties(
        width=420, height=280, title="Least squares of a layer, half kept, one thread"
    )
    save_figure(chart, FIGURES / "speed-least-squares", rows)
    for name, slope in exponents(rows).items():
        print(f"{name}: n^{slope:.2f}")


if __name__ == "__main__":
    main()
