"""A small language model pruned by many recipes: the grid, its page, and what is told apart.

`benchmarks/grids/llm.yaml` has single weights. Here whole units are added, at equal parameters: of
the model's 869 504 a kv group with its query heads holds 24 576, an FFN channel 384, so that 64
channels weigh as much as a group, 88 channels of four blocks as one MLP, 120 as one block but for
its norms. All records go into one folder; pairs share the draw of the calibration windows. Of depth
every choice is tried, and the best on the test pages stands beside the channels.

    python benchmarks/llm.py [--small]
"""

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from prunus.bench import read_records, run
from prunus.bench.data.cache import trained
from prunus.bench.data.language import python_text, score
from prunus.bench.data.tasks import task
from prunus.bench.grid import load_grid, make_grid
from prunus.bench.grid.sweep import cells, unique
from prunus.bench.statistics.intervals import holm, paired
from prunus.bench.statistics.tables import tables
from prunus.files import write_text
from prunus.report.grid import grid_page

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "results" / "llm"
LS = "score=RemovalError(), compensation=LeastSquares()"

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
    (["*.mlp.*"], {"88 FFN channels, Wanda+ls": f"Recipe(granularity=Node(), {LS})"}, 264 / 352),
    (["*.mlp.*"], {"120 FFN channels, Wanda+ls": f"Recipe(granularity=Node(), {LS})"}, 232 / 352),
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
    (("kv groups, importance+ls", 0.5), ("64 FFN channels, importance+ls", 288 / 352)),
    (("2 attention halves, best", None), ("64 FFN channels, Wanda+ls", 288 / 352)),
    (("2 attention halves, best", None), ("kv groups, Wanda+ls", 0.5)),
    (("1 MLP half, best", None), ("88 FFN channels, Wanda+ls", 264 / 352)),
    (("1 block, best", None), ("120 FFN channels, Wanda+ls", 232 / 352)),
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


def depth() -> list[dict[str, Any]]:
    """The perplexity without every block, every MLP, and every two attentions but the first.

    No score chooses: the best of each is what any score of depth could reach at most.
    """
    data = python_text()
    model = trained(task("tiny-llama"), data, seed=0).model
    sets = {
        "1 block": [((f"{i}.self_attn.o_proj", f"{i}.mlp.down_proj"), str(i)) for i in range(4)],
        "1 MLP half": [((f"{i}.mlp.down_proj",), str(i)) for i in range(4)],
        "2 attention halves": [
            ((f"{i}.self_attn.o_proj", f"{j}.self_attn.o_proj"), f"{i}, {j}")
            for i, j in ((1, 2), (1, 3), (2, 3))
        ],
    }
    rows = []
    for what, choices in sets.items():
        for names, gone in choices:
            own = copy.deepcopy(model)
            with torch.no_grad():
                for name in names:  # what a part writes to the stream; without it it is absent
                    own.get_submodule(f"model.layers.{name}").weight.zero_()
            found = score(own, data)["perplexity"]
            rows.append({"what": what, "gone": gone, "perplexity": found})
            print(rows[-1], flush=True)
    return rows


Key = tuple[str, float | None]
Scores = dict[Key, dict[int, float]]


def scores(folder: Path) -> tuple[Scores, dict[Key, int | None]]:
    """{(recipe, density): {seed: perplexity}}, and the parameters that are left."""
    found: Scores = {}
    left: dict[Key, int | None] = {}
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
        if row["seeds"] < 2:
            row["says"] = "one draw"
        elif row.get("p_holm", 0.0) > 0.05:
            row["says"] = "not told apart"
        else:
            row["says"] = "holds" if row["mean"] > 0 else "contradicted"
    return rows


def pages(folder: Path) -> None:
    """A page of the single weights, whose recipes share their densities, and one of the units."""
    grid = load_grid(HERE / "grids" / "llm.yaml", [])
    single = {cell.label for cell in cells(grid)}
    rows = unique(read_records([folder]).rows)
    for name, what in (("report", "single weights"), ("units", "whole units")):
        own = [row for row in rows if (row.recipe in single) == (name == "report")]
        title = f"{grid.name}: {what}"
        page = grid_page(tables(own, "perplexity"), title=title, lead=f"{len(own)} finished runs.")
        print(write_text(folder / f"{name}.html", page))


def main() -> None:
    """Run what has no record yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    for grid in grids(options.small):
        run(grid, out=options.out)
    known, left = scores(options.out)
    wholes = depth()
    draws = {seed for own in known.values() for seed in own}
    for what in dict.fromkeys(row["what"] for row in wholes):
        best = min(row["perplexity"] for row in wholes if row["what"] == what)
        known[f"{what}, best", None] = dict.fromkeys(draws, best)
        left[f"{what}, best", None] = None
    means = [
        {
            "recipe": recipe, "density": density, "parameters": left[recipe, density],
            "draws": len(own), "perplexity": sum(own.values()) / len(own),
        }
        for (recipe, density), own in sorted(known.items(), key=str)
    ]  # fmt: skip
    text = json.dumps(
        {"means": means, "differences": differences(known), "depth": wholes}, indent=1
    )
    write_text(options.out / "orderings.json", text + "\n")
    pages(options.out)
    for row in differences(known):
        print(row)


if __name__ == "__main__":
    main()
