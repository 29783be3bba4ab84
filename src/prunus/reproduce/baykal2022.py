"""Baykal et al. (2022) and Liebenwein et al. (2020): pruning by shares, downstream and in words."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.ambient import quiet
from prunus.bench.data.cache import trained
from prunus.bench.data.tasks import task
from prunus.bench.record import Record
from prunus.bench.statistics.intervals import paired, t_interval
from prunus.calibration import calibrate
from prunus.engine import prune
from prunus.files import Row
from prunus.guarantee.relative import layer_statements
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.harness import Harness, carry_out, with_interval

__all__ = ["account", "grids", "reproduce", "statements"]

SAMPLES = 128  # that calibrate, as in the authors' README
DELTA = 0.05
WANDA = "Recipe(granularity={}, score=RemovalError(), allocation={})"
SHARE = "Recipe(granularity=Edge(), score=Share())"
EDGES: dict[str, str] = {
    "magnitude, global": "magnitude-global",
    "magnitude, layer": "magnitude",
    "magnitude, row": "magnitude-row",
    "wanda, global": WANDA.format("Edge()", "Global()"),
    "wanda, layer": WANDA.format("Edge()", "Uniform()"),
    "wanda, row": "wanda",
    "sipp, global": "sipp",
    "sipp, layer": SHARE,
    "sipp, row": "sipp-row",
    "sipp, drawn": "sipp-random",
    "magnitude, row +ls": "magnitude-row+ls",
    "wanda, row +ls": "wanda+ls",
    "sipp, row +ls": "sipp-row+ls",
}
NODES: dict[str, str] = {
    "L1": "importance-node",
    "pfp": "pfp",
    "pfp, drawn": "pfp-random",
    "L1 +ls": "importance-node+ls",
    "pfp +ls": "pfp+ls",
    "random +ls": "random-node+ls",
}
NOTHING = ["random", "random-layers", "small-dense", "no-compensation", "no-retraining"]
Errors = dict[tuple[str, str, float], dict[int, float]]


@dataclass(frozen=True)
class _Plan:
    """What is pruned of one task."""

    task: str
    edges: tuple[float, ...]
    nodes: tuple[float, ...]
    seeds: int


SMALL = (_Plan("digits-mlp", (0.5, 0.2), (0.3,), 5),)
FULL = (
    _Plan("digits-mlp", (0.5, 0.3, 0.2, 0.1), (0.5, 0.3, 0.15), 5),
    _Plan("digits-cnn", (0.5, 0.2), (0.5, 0.3), 5),
    _Plan("mnist-lenet300", (0.3, 0.1), (0.3, 0.15), 5),
)
STATED = {"small": (0.9, 0.7, 0.5), "full": (0.9, 0.8, 0.7, 0.6, 0.5, 0.3)}


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """Weights and nodes by shares beside magnitude, and what is stated of the layers.

    Args:
        scale: "full": an MLP and a convolutional network on the digits, LeNet-300-100 on MNIST;
            "small": the MLP on the digits at two densities.
        seed: of the first network.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.
    """
    records = carry_out(grids(scale, seed), harness, data_dir=data_dir, progress=progress)
    said = statements(STATED[scale], range(seed, seed + 5), data_dir)
    return account(scale, records, said)


def grids(scale: Scale, seed: int = 0) -> list[Row]:
    """A grid for the edges and one for the nodes of each task."""
    return [
        {
            "name": "baykal2022",
            "tasks": [plan.task],
            "recipes": [{"name": name, "recipe": text} for name, text in recipes.items()],
            "densities": list(densities),
            "seeds": [seed + offset for offset in range(plan.seeds)],
            "calibration": SAMPLES,
            "without": NOTHING,
        }
        for plan in (FULL if scale == "full" else SMALL)
        for recipes, densities in ((EDGES, plan.edges), (NODES, plan.nodes))
    ]


def statements(
    densities: Sequence[float], seeds: Sequence[int], data_dir: Path | None
) -> list[Row]:
    """What `certify` says of the first layer of the digits MLP, network by network."""
    chosen = task("digits-mlp")
    data = chosen.data(data_dir=data_dir)
    rows = []
    for seed in seeds:
        model = trained(chosen, data, seed=seed, progress=False).model
        seen = calibrate(model, data.x_train[:SAMPLES], ("share", "gram"), progress=False)
        for name in ("sipp-row", "sipp-random"):
            for density in densities:
                found = prune(model, name, density, data=seen, seed=seed, progress=False)
                with quiet():
                    made, _ = layer_statements(
                        model, found.model, found, data.x_train[:SAMPLES], [data.x_test], DELTA,
                        False,
                    )  # fmt: skip
                at = {(s.layer, s.kind, s.level, s.status): s for s in made}
                for layer in ("fc1", "fc2"):
                    known = at.get((layer, "relative_mean", "L3", "RIG"))
                    if known is None:
                        continue
                    drawn = at.get((layer, "relative", "L2", "RIG"))
                    rows.append({
                        "recipe": name, "layer": layer, "density": density, "seed": seed,
                        "bound": known.value, "seen": known.measured,
                        "fresh": at[layer, "relative_mean", "L3", "PRED"].measured,
                        "held_out": at[layer, "relative_mean", "held-out", "RIG"].value,
                        "draws": None if drawn is None else drawn.value,
                    })  # fmt: skip
    return rows


def account(scale: Scale, records: Sequence[Record], said: Sequence[Row]) -> Reproduction:
    """Tables, figures and verdicts, of finished records and what was stated."""
    errors = _errors(records)
    rows = [_row(errors, *key) for key in errors]
    tables: dict[str, Sequence[Mapping[str, str]]] = {}
    for name in dict.fromkeys(key[0] for key in errors):
        level = statistics.fmean(errors[name, "dense", 1.0].values())
        title = f"{task(name).title}; dense {level:.2f} %"
        for kind, recipes in (("weights", EDGES), ("nodes", NODES)):
            tables[f"Test error (%), {kind}, {title}"] = _table(errors, name, recipes)
    tables["Mean relative error of a layer's outputs, digits MLP"] = _said_table(said)
    tables["Conclusions"] = _claims(errors, _layer_errors(records), said)
    return Reproduction(
        name="baykal2022",
        title="Weights and nodes by the largest share they have of an output",
        paper="Baykal et al. (2022), SiPPing neural networks; Liebenwein et al. (2020), Provable "
        "filter pruning",
        conditions=[
            f"{SAMPLES} samples calibrate, nothing is retrained. Densities are kept / total of the "
            "weights, for nodes of the nodes of each group.",
            "Intervals are Student's at 95 % over networks; verdicts are paired by network.",
            "Statements: |z' − z| / Σ|w||x|, mean over outputs, largest over inputs. bound: at the "
            "calibration inputs; seen: there; fresh: largest on 451 test images, of which none "
            "may exceed the bound but by shares that are larger than any seen; 95 % of fresh: "
            "held-out bound at δ = 0.05; over draws: of the largest output, before the draw.",
        ],
        rows=rows,
        figures={"baykal2022-statements": _figure(said)},
        tables=tables,
    )


def _errors(records: Sequence[Record]) -> Errors:
    found: Errors = {}
    for r in records:
        assert r.density_asked is not None  # grids of densities alone
        found.setdefault((r.task, "dense", 1.0), {})[r.seed] = 100 * r.before["test_error"]
        found.setdefault((r.task, r.recipe, r.density_asked), {})[r.seed] = (
            100 * r.after["test_error"]
        )
    return found


def _layer_errors(records: Sequence[Record]) -> Errors:
    """Of all layers together, for nodes."""
    found: Errors = {}
    for r in records:
        if r.recipe in NODES and r.density_asked is not None:
            key = (r.task, r.recipe, r.density_asked)
            found.setdefault(key, {})[r.seed] = sum(r.layer_error.values())
    return found


def _row(errors: Errors, name: str, what: str, density: float) -> Row:
    values = errors[name, what, density]
    low, high = t_interval(list(values.values())) or (None, None)
    return {
        "task": name, "what": what, "density": density, "seeds": len(values),
        "error_percent": statistics.fmean(values.values()), "low": low, "high": high,
    }  # fmt: skip


def _table(errors: Errors, name: str, recipes: Mapping[str, str]) -> list[dict[str, str]]:
    own = [key for key in errors if key[0] == name and key[1] in recipes]
    densities = sorted({key[2] for key in own}, reverse=True)
    lines = []
    for what in recipes:
        line = {"": what}
        for density in densities:
            row = _row(errors, name, what, density)
            line[f"{density:g}"] = with_interval(row["error_percent"], row["low"], row["high"])
        lines.append(line)
    return lines


def _said_table(said: Sequence[Row]) -> list[dict[str, str]]:
    lines = []
    for key in dict.fromkeys((r["recipe"], r["layer"], r["density"]) for r in said):
        own = [r for r in said if (r["recipe"], r["layer"], r["density"]) == key]
        drawn = [r["draws"] for r in own if r["draws"] is not None]
        lines.append({
            "recipe": key[0], "layer": key[1], "density": f"{key[2]:g}",
            "bound": f"{statistics.fmean(r['bound'] for r in own):.3f}",
            "seen": f"{statistics.fmean(r['seen'] for r in own):.3f}",
            "fresh": f"{statistics.fmean(r['fresh'] for r in own):.3f}",
            "95 % of fresh ≤": f"{statistics.fmean(r['held_out'] for r in own):.3f}",
            "over draws ≤": f"{statistics.fmean(drawn):.2f}" if drawn else "–",
        })  # fmt: skip
    return lines


def _claims(errors: Errors, layers: Errors, said: Sequence[Row]) -> list[dict[str, str]]:
    """Each conclusion with the difference that judges it."""
    found = []

    def say(says: str, where: str, one: Mapping[int, float], other: Mapping[int, float],
            bound: float = 0.0, unit: str = "points") -> None:  # fmt: skip
        """One minus other is below the bound."""
        gap = paired(one, other)
        low, high = gap["low"], gap["high"]
        if low is None:
            low = high = gap["mean"]
        verdict = "holds" if high < bound else "does not hold" if low > bound else "not told apart"
        shown = with_interval(gap["mean"], gap["low"], gap["high"])
        found.append({
            "conclusion": says, "where": where, "difference": f"{shown} {unit}",
            "verdict": verdict,
        })  # fmt: skip

    for name, what, density in errors:
        at = f"{name}, {density:g}"
        own = errors[name, what, density]

        def other(label: str, name: str = name, density: float = density) -> Mapping[int, float]:
            return errors[name, label, density]

        if what == "sipp, global" and density <= 0.3:
            say("shares ranked over all layers collapse (30 % wrong)", at,
                dict.fromkeys(own, 30.0), own)  # fmt: skip
        if what == "sipp, row" and density == 0.5:
            say("at half the weights a row's shares beat its magnitudes", at, own,
                other("magnitude, row"))  # fmt: skip
        if what == "sipp, drawn" and density <= 0.3:
            say("the unbiased draw is the best of the uncompensated shares", at, own,
                {s: min(other("sipp, row")[s], other("sipp, layer")[s]) for s in own})  # fmt: skip
        if what == "sipp, row +ls" and density < 0.5:
            say("with +ls shares are no better than magnitudes", at, other("magnitude, row +ls"),
                own, 0.5)  # fmt: skip
        if what == "pfp +ls":
            say("with +ls pfp is as good as L1 (to 0.5 points)", at, own, other("L1 +ls"), 0.5)
            pfp, plain = (layers[name, label, density] for label in ("pfp +ls", "L1 +ls"))
            say("as a set for +ls pfp leaves less error in the layers", at,
                {s: pfp[s] / plain[s] for s in pfp}, dict.fromkeys(pfp, 1.0),
                unit="of L1's, less 1")  # fmt: skip
    exceeded = sum(r["seen"] > r["bound"] for r in said)
    found.append({
        "conclusion": "no calibration input exceeds its bound", "where": "digits-mlp",
        "difference": f"{exceeded} of {len(said)} layers",
        "verdict": "holds" if not exceeded else "does not hold",
    })  # fmt: skip
    return found


def _figure(said: Sequence[Row]) -> Any:
    """Bound, held-out bound and what was seen, against density."""
    drawn: list[Row] = []
    lines = (
        ("bound", "bound, calibration inputs", "bound"),
        ("held_out", "bound, 95 % of fresh inputs", "bound"),
        ("seen", "largest on calibration inputs", "measured"),
        ("fresh", "largest on fresh inputs", "measured"),
    )
    rows = [r for r in said if r["recipe"] == "sipp-row"]
    for key, series, kind in lines:
        for layer, density in sorted({(r["layer"], r["density"]) for r in rows}):
            own = [r[key] for r in rows if (r["layer"], r["density"]) == (layer, density)]
            point = {"panel": layer, "kind": kind, "series": series, "density": density}
            drawn.append({**point, "error": statistics.fmean(own)})
    chart = figure(
        drawn, x="density", y="error", x_title="kept / total",
        y_title="mean |z' − z| / Σ|w||x|", series="series", facet="panel",
    )  # fmt: skip
    return chart, drawn
