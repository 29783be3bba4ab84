"""A small language model pruned by many recipes: the grid, its page, and what is told apart.

`benchmarks/grids/llm.yaml` has single weights. Here whole units are added, at equal parameters: of
the model's 869 504 a kv group with its query heads holds 24 576, an FFN channel 384, so that 64
channels weigh as much as a group, 88 channels of four blocks as one MLP, 120 as one block but for
its norms. All records go into one folder; pairs share the draw of the calibration windows.

    python benchmarks/llm.py [--small]
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.bench import read_records, run
from prunus.bench.grid import load_grid, make_grid
from prunus.bench.statistics.intervals import holm, paired
from prunus.cli.report import report
from prunus.files import write_text

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "results" / "llm"
LS = "score=RemovalError(), compensation=LeastSquares()"
HALVES = "Recipe(granularity=Blocks(part={!r}), score=BlockGap())"

# Layers, recipes and densities of the units: (what, layers, {label: recipe}, density).
UNITS: tuple[tuple[list[str] | None, dict[str, str], float], ...] = (
    (["*.self_attn.*"], {
        "kv groups, importance": "importance-node",
        "kv groups, importance+ls": "importance-node+ls",
        "kv groups, Wanda+ls": f"Recipe(granularity=Node(), {LS})",
    }, 0.5),
    (["*.mlp.*"], {
        "64 FFN channels, importance": "importance-node",
        "64 FFN channels, importance+ls": "importance-node+ls",
        "64 FFN channels, Wanda+ls": f"Recipe(granularity=Node(), {LS})",
    }, 288 / 352),
    (None, {"2 attention halves": HALVES.format("attention")}, 1 / 3),
    (["*.mlp.*"], {"88 FFN channels, Wanda+ls": f"Recipe(granularity=Node(), {LS})"}, 264 / 352),
    (None, {"1 MLP half": HALVES.format("mlp")}, 0.75),
    (["*.mlp.*"], {"120 FFN channels, Wanda+ls": f"Recipe(granularity=Node(), {LS})"}, 232 / 352),
    (None, {"1 block, cosine": "block-cosine", "1 block, gap": "block-gap"}, 0.75),
)  # fmt: skip

# (worse, better) as published or expected; a density or None for what has one alone.
PAIRS: tuple[tuple[str, str, Sequence[float | None]], ...] = (
    ("magnitude", "wanda", (0.7, 0.5, 0.3)),
    ("magnitude-row", "wanda", (0.7, 0.5, 0.3)),
    ("magnitude", "wanda-layer", (0.7, 0.5, 0.3)),
    ("magnitude 2:4", "wanda 2:4", (None,)),
    ("wanda", "sparsegpt", (0.7, 0.5, 0.3)),
    ("wanda-layer", "sparsegpt", (0.7, 0.5, 0.3)),
    ("wanda 2:4", "sparsegpt 2:4", (None,)),
    ("magnitude", "magnitude+ls", (0.7, 0.5, 0.3)),
    ("wanda", "wanda+ls", (0.7, 0.5, 0.3)),
    ("magnitude 2:4", "magnitude+ls 2:4", (None,)),
    ("wanda 2:4", "wanda+ls 2:4", (None,)),
    ("sparsegpt", "wanda+ls", (0.7, 0.5, 0.3)),
    ("sparsegpt", "magnitude+ls", (0.7, 0.5, 0.3)),
    ("sparsegpt 2:4", "wanda+ls 2:4", (None,)),
    ("wanda", "wanda, pruned inputs", (0.7, 0.5, 0.3)),
    ("wanda+ls", "wanda+ls, pruned inputs", (0.7, 0.5, 0.3)),
    ("magnitude+ls", "magnitude+ls, pruned inputs", (0.7, 0.5, 0.3)),
    ("sparsegpt", "sparsegpt, pruned inputs", (0.7, 0.5, 0.3)),
)
ACROSS = (  # at other budgets: (worse, its density), (better, its density)
    (("magnitude 2:4", None), ("magnitude", 0.5)),
    (("wanda 2:4", None), ("wanda", 0.5)),
    (("sparsegpt 2:4", None), ("sparsegpt", 0.5)),
    (("magnitude+ls 2:4", None), ("magnitude+ls", 0.5)),
    (("wanda+ls 2:4", None), ("wanda+ls", 0.5)),
    (("kv groups, Wanda+ls", 0.5), ("64 FFN channels, Wanda+ls", 288 / 352)),
    (("2 attention halves", 1 / 3), ("64 FFN channels, Wanda+ls", 288 / 352)),
    (("2 attention halves", 1 / 3), ("kv groups, Wanda+ls", 0.5)),
    (("1 MLP half", 0.75), ("88 FFN channels, Wanda+ls", 264 / 352)),
    (("1 block, cosine", 0.75), ("120 FFN channels, Wanda+ls", 232 / 352)),
    (("1 block, gap", 0.75), ("120 FFN channels, Wanda+ls", 232 / 352)),
)


def grids(small: bool) -> Iterator[Any]:
    """The grid of single weights, and one for each kind of unit."""
    yield load_grid(HERE / "grids" / "llm.yaml", ["seeds=2", "densities=[0.5]"] if small else [])
    for layers, recipes, density in UNITS:
        yield make_grid(
            {
                "tasks": ["tiny-llama"],
                "recipes": [{"name": n, "recipe": r} for n, r in recipes.items()],
                "densities": [density],
                "seeds": 2 if small else 5,
                "network": 0,
                "calibration": 128,
                "layers": layers,
                "exclude": None if layers else ["lm_head"],
                "without": ["random", "random-layers", "small-dense", "no-compensation",
                            "no-retraining"],
            }
        )  # fmt: skip


Scores = Mapping[tuple[str, float | None], Mapping[int, float]]


def scores(folder: Path) -> tuple[Scores, dict[tuple[str, float | None], int]]:
    """{(recipe, density): {seed: perplexity}}, and the parameters that are left."""
    found: dict[tuple[str, float | None], dict[int, float]] = {}
    left: dict[tuple[str, float | None], int] = {}
    for row in read_records([folder]).rows:
        if row.status != "done":
            raise ValueError(f"The cell {row.id} of {row.recipe} failed. Run it again.")
        key = (row.recipe, None if "2:4" in row.recipe else row.density_asked)
        found.setdefault(key, {})[row.seed] = row.after["perplexity"]
        assert row.parameters is not None
        left[key] = row.parameters[1]
    return found, left


def differences(known: Scores) -> list[dict[str, Any]]:
    """Mean of worse − better over shared draws, with Student's 95 % interval, and what it says.

    Holm's correction goes over the whole table. Where no draw takes part on either side the
    difference is a number without an interval.
    """
    asked = [((a, d), (b, d)) for a, b, densities in PAIRS for d in densities]
    pairs = [(a, b) for a, b in [*asked, *ACROSS] if a in known and b in known]
    rows = [{"worse": a, "better": b, **paired(known[a], known[b])} for a, b in pairs]
    drawn = [row for row in rows if row["low"] is not None]
    for row, p in zip(drawn, holm([row["p"] for row in drawn]), strict=True):
        row["p_holm"] = p
    for row in rows:
        if row.get("p_holm", 0.0) > 0.05:
            row["says"] = "not told apart"
        else:
            row["says"] = "holds" if row["mean"] > 0 else "contradicted"
    return rows


def main() -> None:
    """Run what has no record yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    for grid in grids(options.small):
        run(grid, out=options.out)
    known, left = scores(options.out)
    means = [
        {
            "recipe": recipe, "density": density, "parameters": left[recipe, density],
            "draws": len(own), "perplexity": sum(own.values()) / len(own),
        }
        for (recipe, density), own in sorted(known.items(), key=str)
    ]  # fmt: skip
    text = json.dumps({"means": means, "differences": differences(known)}, indent=1)
    write_text(options.out / "orderings.json", text + "\n")
    report([options.out], out=options.out / "report.html", metric="perplexity",
           title="Llama of four blocks, Python's language reference")  # fmt: skip
    for row in differences(known):
        print(row)


if __name__ == "__main__":
    main()
