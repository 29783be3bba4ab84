"""The benchmark's page: filters, curves, null baselines, Pareto fronts, ranks, tables."""

import base64
import html
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prunus.files import KnownRow, Rows, write_bytes, write_text
from prunus.means import as_loss
from prunus.report.curves import FEW
from prunus.report.figure import require
from prunus.report.grid_charts import critical_difference, pareto_chart, scores_chart
from prunus.report.page import Chart, Drawing, Section, Table, Text, page, table_csv

__all__ = ["grid_page", "latex_table", "markdown_table", "pivot", "write_static"]

COSTS = {"parameters": "parameters", "macs": "multiply-adds per sample", "bytes": "bytes stored",
         "latency": "median latency (s)"}  # fmt: skip
LATEX = {"\\": r"\textbackslash ", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$"}
MARKS = {
    "random": "r",
    "random-layers": "l",
    "small-dense": "d",
    "no-compensation": "c",
    "no-retraining": "t",
}
TITLES = {"not_beaten": "baselines not beaten", "macs": "multiply-adds", "p_holm": "p (Holm)"}
# The columns on the page, scores first; the CSV files have the rest.
METHODS = ("recipe", "{at}", "mean", "low", "high", "seeds", "not_beaten", "dense", "parameters",
           "macs", "task", "schedule")  # fmt: skip
DRAWN = ("recipe", "at", "mean", "low", "high", "seeds", "task", "schedule")
COSTLY = ("recipe", "at", "mean", *COSTS, "task", "schedule")
BASELINES = ("recipe", "baseline", "{at}", "advantage", "low", "high", "p_holm", "beats",
             "seeds", "task", "schedule")  # fmt: skip


@runtime_checkable
class Findings(Protocol):
    """What `prunus.bench.statistics.tables.Tables` offers."""

    @property
    def metric(self) -> str: ...
    @property
    def level(self) -> float: ...
    @property
    def methods(self) -> Rows: ...
    @property
    def baselines(self) -> Rows: ...
    @property
    def differences(self) -> Rows: ...
    @property
    def ranks(self) -> KnownRow: ...
    @property
    def shrinkbench(self) -> Rows: ...
    @property
    def failures(self) -> Rows: ...
    @property
    def facts(self) -> Rows: ...
    @property
    def says(self) -> Sequence[str]: ...


def grid_page(found: Findings, *, title: str, lead: str = "") -> str:
    """One self-contained HTML page; equal tables give equal bytes.

    The menus at the top choose task, schedule, recipe and density in every chart and table.
    """
    words = found.metric.replace("_", " ")
    summary = "\n\n".join(found.says) or "The records hold no null baselines to compare with."
    curve_rows = [_slim(row) for row in found.methods]
    best = [str(row["recipe"]) for row in found.ranks["recipes"][:FEW]]
    at = "density" if any(row["density"] is not None for row in found.methods) else "budget"
    sections = [
        Section("What the records say", [Text(summary), Drawing(_menus(found))]),
        Section(
            "Scores",
            [
                Chart("scores", scores_chart(curve_rows, words, best=best), curve_rows,
                      f"Mean {words} over seeds with its {found.level:.0%} interval; hollow points "
                      f"are recipes that do not beat every null baseline beyond the interval. "
                      f"{_grey(best)}{_standing(found)}", shown=DRAWN),
                Table("methods", [_method(row) for row in found.methods],
                      "One row per place and recipe.", titles=TITLES,
                      shown=[c.format(at=at) for c in METHODS]),
            ],
        ),
        Section(
            "Null baselines",
            [
                Text(
                    f"The advantage is the mean of paired differences over shared seeds, positive "
                    f"where the recipe is better. A baseline counts as beaten where that is "
                    f"positive and Holm's correction over this whole table leaves p ≤ "
                    f"{(1 - found.level) / 2:.2g} (half of what the page may err "
                    f"by; the table of all pairs has the other half)."
                ),
                Table("baselines", [_plain(row) for row in found.baselines],
                      "Every recipe against its baselines.", titles=TITLES,
                      shown=[c.format(at=at) for c in BASELINES]),
            ],
        ),
        Section(
            "Score against cost",
            [
                Chart("pareto", pareto_chart(curve_rows, words, best), curve_rows,
                      f"{_grey(best)}Filled points are on the Pareto front of their task and "
                      f"schedule: no recipe here is better at the same or a lower cost.",
                      shown=COSTLY),
            ],
        ),
        Section("Ranks", _ranks(found)),
        Section(
            "Fixed compression ratios",
            [
                Table("shrinkbench", list(found.shrinkbench),
                      "Mean score at compression 2, 4, 8, 16 and 32 of the whole network, "
                      "interpolated in the logarithm between measured ratios."),
            ],
        ),
        Section("All pairs", [Drawing(_link("differences", found.differences),
                f"Paired differences between all recipes at every place, with Holm's correction "
                f"over all of them; {(1 - found.level) / 2:.2g} counts as a difference.")]),
    ]  # fmt: skip
    if found.failures:
        sections.append(Section("Failed runs", [Table("failures", list(found.failures))]))
    sections.append(
        Section("Conditions", [Table("conditions", list(found.facts), folded=True,
                caption="Versions, machines and settings, with the number of records of each.")])
    )  # fmt: skip
    text = page(title, sections, headline=_headline(found), lead=lead, footer=_footer(found))
    script = resources.files("prunus.report").joinpath("grid.js").read_text(encoding="utf-8")
    before, end, after = text.rpartition("</body>")  # the Vega bundle holds that word too
    return f"{before}<script>{script}</script>\n{end}{after}"


def pivot(found: Findings, task: str, schedule: str) -> list[dict[str, str]]:
    """The scores of one task and schedule for a paper: a row per recipe, a column per budget.

    A cell is the mean ± the standard error, the best mean in bold, then a letter for every null
    baseline that the recipe does not beat beyond the interval: r random mask, l random mask with
    equal layer counts, d dense small network, c no compensation, t no retraining.
    """
    rows = [r for r in found.methods if (r["task"], r["schedule"]) == (task, schedule)]
    higher = bool(getattr(found, "higher", False))
    best: dict[str, float] = {}
    for row in rows:
        loss = as_loss(row["mean"], higher=higher)
        best[row["budget"]] = min(best.get(row["budget"], math.inf), loss)
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        text = f"{row['mean']:.4f}"
        if row["standard_error"] is not None:
            text += f" ± {row['standard_error']:.4f}"
        if as_loss(row["mean"], higher=higher) == best[row["budget"]] < math.inf:
            text = f"**{text}**"
        if row["not_beaten"] not in (None, "none"):
            names = row["not_beaten"].split(", ")
            text += " " + "".join(mark for name, mark in MARKS.items() if name in names)
        line = lines.setdefault(row["recipe"], {"recipe": row["recipe"]})
        line[row["budget"].replace("density=", "density ")] = text
    columns = list(dict.fromkeys(key for line in lines.values() for key in line))
    return [{key: line.get(key, "") for key in columns} for line in lines.values()]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A pipe table; the first column is left-aligned."""
    columns = list(rows[0])
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[row[c].replace("|", "\\|") for c in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A `tabular` that needs no package."""
    columns = list(rows[0])

    def cell(text: str) -> str:
        for plain, special in LATEX.items():
            text = text.replace(plain, special)
        if text.startswith("**"):
            inner, _, rest = text.removeprefix("**").partition("**")
            text = rf"\textbf{{{inner}}}{rest}"
        return text

    lines = [
        " & ".join(map(cell, columns)),
        *(" & ".join(cell(r[c]) for c in columns) for r in rows),
    ]
    head, *rest = (f"{line} \\\\" for line in lines)
    body = "\n".join([f"{head} \\hline", *rest])
    return f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n{body}\n\\end{{tabular}}\n"


def write_static(found: Findings, folder: str | os.PathLike[str]) -> list[Path]:
    """CSV, Markdown and LaTeX tables; every task's curves and the critical difference as SVG, PNG.

    Without a critical difference (fewer than two blocks or recipes) its picture is left out.
    """
    target = Path(folder)
    written = [
        write_text(target / f"{name}.csv", table_csv(rows))
        for name, rows in (
            ("methods", found.methods),
            ("baselines", found.baselines),
            ("differences", found.differences),
            ("shrinkbench", found.shrinkbench),
            ("ranks", found.ranks["recipes"]),
            ("failures", found.failures),
        )
    ]
    converter = require("vl_convert", "report")
    for task, schedule in dict.fromkeys((r["task"], r["schedule"]) for r in found.methods):
        stem = "-".join((_file(task), _file(schedule)))
        rows = pivot(found, task, schedule)
        written += [
            write_text(target / f"{stem}.md", markdown_table(rows)),
            write_text(target / f"{stem}.tex", latex_table(rows)),
        ]
        words = found.metric.replace("_", " ")
        own = [_slim(r) for r in found.methods if (r["task"], r["schedule"]) == (task, schedule)]
        spec = scores_chart(own, words, static=True)
        written += [
            write_text(target / f"{stem}.svg", converter.vegalite_to_svg(spec)),
            write_bytes(target / f"{stem}.png", converter.vegalite_to_png(spec, scale=2)),
        ]
    if found.ranks["critical_difference"] is not None:
        picture = _on_paper(critical_difference(found.ranks))
        written += [
            write_text(target / "critical-difference.svg", picture),
            write_bytes(target / "critical-difference.png", converter.svg_to_png(picture, scale=2)),
        ]
    return written


def _headline(found: Findings) -> str:
    """The best recipe by mean rank, its ties, and what a small dense network has to say."""
    dense = [line for line in found.says if line.startswith("**small-dense**")]
    return "\n\n".join([_standing(found), *(dense or found.says[:1])])


def _standing(found: Findings) -> str:
    rows, reach = list(found.ranks["recipes"]), found.ranks["critical_difference"]
    if not rows:
        return ""
    first, blocks = rows[0], found.ranks["blocks"]
    said = (
        f"By mean rank over {blocks} block{'' if blocks == 1 else 's'} of task, schedule and seed "
        f"`{first['recipe']}` is best of {len(rows)} ({first['rank']:.3g})."
    )
    if reach is None:
        return f"{said} Too few blocks to say which others are told apart from it."
    ties = [f"`{r['recipe']}`" for r in rows[1:] if r["rank"] - first["rank"] < reach]
    if not ties:
        return f"{said} Every other is told apart from it (Nemenyi, {found.level:.0%})."
    more = f" and {len(ties) - FEW} more" if len(ties) > FEW else ""
    return f"{said} Not told apart from it: {', '.join(ties[:FEW])}{more}."


def _grey(best: Sequence[str]) -> str:
    if not best:
        return "No recipe has been run at every place, so that none is ranked. "
    return f"In colour the {len(best)} best by mean rank, the others grey; a menu above chooses. "


def _footer(found: Findings) -> str:
    """What the records say of themselves: versions, machines, how many runs of each."""
    facts: dict[str, list[str]] = {}
    for row in found.facts:
        name = str(row["fact"])
        key = name.removeprefix("version of ").removeprefix("host: ")
        if name.startswith("version of ") or key in ("processor", "cores", "accelerator"):
            facts.setdefault(key, []).append(str(row["value"]))
    said = "; ".join(f"{key} {', '.join(values)}" for key, values in facts.items())
    return f"Made from records alone. They were measured with: {said}." if said else ""


def _on_paper(svg: str) -> str:
    """A drawing of the page as a file of its own: black on white, with the classes' colours."""
    style = (
        "<style>text{font-family:sans-serif;fill:#1b1f24}.unit{fill:#1b1f24;stroke:#fff}"
        ".plus{stroke:#0072B2}</style>"
    )
    head, _, body = svg.partition(">")
    width, height = head.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    sized = f'{head} xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    return f'{sized}>{style}<rect width="100%" height="100%" fill="#fff"/>{body}\n'


def _file(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")


def _slim(row: KnownRow) -> dict[str, Any]:
    keep = ("task", "schedule", "recipe", "density", "budget", "mean", "low", "high", "seeds")
    slim = {k: row[k] for k in keep} | {c: row[c] for c in COSTS if row.get(c) is not None}
    slim |= {f"front_{c}": row[f"front_{c}"] for c in COSTS if row.get(c) is not None}
    slim["at"] = row["density"] if row["density"] is not None else row["density_met"]
    slim["beats"] = row["not_beaten"] in (None, "none")
    return slim


def _method(row: KnownRow) -> dict[str, Any]:
    hidden = ("budget", "latency") if row["density"] is not None else ("density", "latency")
    shown = {k: v for k, v in row.items() if k not in hidden and not k.startswith("front_")}
    if row.get("latency") is not None:
        shown["latency"] = row["latency"]
    return shown


def _plain(row: KnownRow) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != ("budget" if row["density"] else "density")}


def _menus(found: Findings) -> str:
    """The filters; Vega and the page's script both listen to them."""
    rows = found.methods
    costs = [c for c in COSTS if any(r.get(c) is not None for r in rows)]
    choices: dict[str, tuple[str, list[str], list[str]]] = {}
    for key in ("task", "schedule"):
        values = list(dict.fromkeys(str(r[key]) for r in rows))
        choices[key] = (key, values, values)
    recipes = sorted({str(r["recipe"]) for r in rows})
    densities = [f"{d:g}" for d in sorted({r["density"] for r in rows if r["density"]})][::-1]
    choices["recipe"] = ("recipe", ["all", *recipes], ["all", *recipes])
    choices["density"] = ("density", ["all", *densities], ["all", *densities])
    choices["cost"] = ("cost", costs, [COSTS[c] for c in costs])
    parts = []
    for key, (word, values, shown) in choices.items():
        options = "".join(
            f'<option value="{html.escape(v)}">{html.escape(s)}</option>'
            for v, s in zip(values, shown, strict=True)
        )
        parts.append(f'<label>{word} <select id="filter-{key}">{options}</select></label>')
    style = "display:flex;flex-wrap:wrap;gap:.4rem 1.2rem"
    button = '<button type="button" id="shown-csv">shown rows as CSV</button>'
    return f'<form id="filters" style="{style}">{"".join(parts)}{button}</form>'


def _ranks(found: Findings) -> list[Any]:
    rows = list(found.ranks["recipes"])
    reach = found.ranks["critical_difference"]
    text = (
        f"Mean ranks of the recipes over {found.ranks['blocks']} blocks (a block is a task, a "
        f"schedule and a seed; 1 is best), after Demšar (2006). "
    )
    if not rows:
        return [Text("No recipe has been run at every place, so that no ranks can be compared.")]
    if reach is None:
        text += "A critical difference needs two blocks and two recipes."
        return [Text(text), Table("ranks", rows)]
    text += (
        f"Recipes joined by a bar differ by less than {reach:.3g}, the critical difference of "
        f"Nemenyi's test at {found.level:.0%}."
    )
    return [
        Text(text),
        Drawing(critical_difference(found.ranks)),
        Table("ranks", rows, folded=True),
    ]


def _link(name: str, rows: Rows) -> str:
    encoded = base64.b64encode(table_csv(rows).encode()).decode()
    return (
        f'<a class="csv" download="{name}.csv" href="data:text/csv;charset=utf-8;base64,{encoded}">'
        f"{name}.csv</a> ({len(rows)} rows)"
    )
