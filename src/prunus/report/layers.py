"""What each layer keeps and what it loses, as pictures and as cells of a table."""

from typing import Any

from prunus.files import Rows
from prunus.report.charts import bars
from prunus.report.page import Block, Chart

__all__ = ["error_text", "layer_charts", "shown_layers"]

WIDEST = 24  # letters of a name beside a bar


def layer_charts(rows: Rows, what: str = "inputs") -> list[Block]:
    """Bars of the densities, and of the errors where a layer has one.

    Errors are drawn relative to the layers' outputs, in percent, which lets layers be compared;
    in squared output units where an output's size is not known. The CSV file has both.

    Args:
        rows: one per layer with layer, density, error (E‖W x − W′ x‖², squared output units, or
            None) and relative (the same over E‖W x‖², or None).
        what: the errors are measured on: "inputs" or "text" of the calibration.
    """
    shares = [{"layer": r["layer"], "density": r["density"]} for r in rows]
    drawn = _shortened(shares)
    charts: list[Block] = [
        Chart("density", bars(drawn, label="layer", value="density",
              x_title="density (kept / total)", low=0, high=1), shares, "What each layer keeps."),
    ]  # fmt: skip
    erring = [r for r in rows if r["error"] is not None and r["error"] > 0]
    if not erring:
        return charts
    numbers = [{k: r[k] for k in ("layer", "error", "relative")} for r in erring]
    if all(r["relative"] is not None for r in erring):
        drawn = [{"layer": r["layer"], "percent": 100 * r["relative"]} for r in erring]
        chart = bars(
            _shortened(drawn), label="layer", value="percent",
            x_title="output error (% of the output)",
        )  # fmt: skip
        words = f"E‖Wx − W′x‖² over E‖Wx‖² on the calibration {what}, in percent."
    else:
        chart = bars(
            _shortened(numbers), label="layer", value="error", x_title="mean squared output error"
        )
        words = f"E‖Wx − W′x‖² on the calibration {what}, in squared output units."
    return [*charts, Chart("error", chart, numbers, words)]


def _shortened(rows: Rows) -> list[dict[str, Any]]:
    """The rows with names that fit beside a bar: without what all share, cut at their beginning.

    Names of layers differ at their ends, where an axis would cut them; names that would be alike
    are left whole.
    """
    names = [str(r["layer"]) for r in rows]
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(
        len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts
    ):
        shared += 1
    bare = [".".join(p[shared:]) for p in parts]
    short = [name if len(name) <= WIDEST else f"…{name[1 - WIDEST :]}" for name in bare]
    if len({*short}) < len(names):
        short = names
    return [{**row, "layer": name} for row, name in zip(rows, short, strict=True)]


def error_text(error: float | None, relative: float | None) -> str:
    """An error in squared output units, and in brackets as a share of what the layer gives."""
    if error is None:
        return "not measured"
    return f"{error:.4g}" + ("" if relative is None else f" ({100 * relative:.3g} %)")


def shown_layers(rows: Rows) -> list[dict[str, Any]]:
    """The rows with the relative error in percent, as text; without it where no row has one."""
    known = any(row["relative"] is not None for row in rows)
    return [
        {
            key: _percent(value) if key == "relative" else value
            for key, value in row.items()
            if known or key != "relative"
        }
        for row in rows
    ]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.3g} %"
