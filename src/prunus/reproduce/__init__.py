"""Figures and tables of the papers, with our numbers beside the published ones.

A reproduction is a module with one function `reproduce`, named in `REPRODUCTIONS`.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from prunus.check import unknown
from prunus.files import Rows, write_text

__all__ = ["REPRODUCTIONS", "Known", "Reproduction", "reproduction", "save"]

Scale = Literal["small", "full"]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A reproduction, as `prunus reproduce list` shows it.

    Attributes:
        module: has the function `reproduce`.
        says: what is set beside the paper.
        data: what `--full` reads from the folder with the data sets.
        small: processor time at small scale, as measured on a busy machine of two cores.
        full: the same with `--full`; "about" where it is estimated from its parts, empty where
            nobody knows.
        resumes: runs on the benchmark's harness: keeps records, goes on where it stopped, and takes
            workers or a cluster.
    """

    module: str
    says: str
    data: str = ""
    small: str
    full: str = ""
    resumes: bool = False


REPRODUCTIONS: dict[str, Known] = {
    "acharyya2021-cifar": Known(
        module="prunus.reproduce.acharyya2021_cifar",
        says="Acharyya et al. (2021): six methods on the first layer of a CIFAR-10 MLP",
        data="CIFAR-10",
        small="12 s",
        full="80 min",
        resumes=True,
    ),
    "acharyya2021-mnist": Known(
        module="prunus.reproduce.acharyya2021_mnist",
        says="Acharyya et al. (2021): six methods on the first layer of an MNIST MLP",
        data="MNIST",
        small="17 s",
        full="40 min",
        resumes=True,
    ),
    "acharyya2021-simulation": Known(
        module="prunus.reproduce.acharyya2021_simulation",
        says="Acharyya et al. (2021): pruned students: published, closed form, simulated",
        small="95 s",
    ),
    "baykal2022": Known(
        module="prunus.reproduce.baykal2022",
        says="Baykal et al. (2022), Liebenwein et al. (2020): SiPP and PFP, and their statements",
        data="MNIST",
        small="30 s",
        full="4 min",
        resumes=True,
    ),
    "frankle2019-claims": Known(
        module="prunus.reproduce.frankle2019_claims",
        says="Frankle and Carbin (2019): the published claims alone, each judged",
        data="MNIST",
        small="about 30 s",
        full="about 35 min",
        resumes=True,
    ),
    "frankle2019-mnist": Known(
        module="prunus.reproduce.frankle2019_mnist",
        says="Frankle and Carbin (2019): lottery tickets, their controls, every claim judged",
        data="MNIST",
        small="88 s",
        full="about 4 h",
        resumes=True,
    ),
    "gap-independence": Known(
        module="prunus.reproduce.gap_independence",
        says="Qian and Klabjan (2021): their independent weights against trained layers",
        small="17 s",
    ),
    "gap-mnist": Known(
        module="prunus.reproduce.gap_mnist",
        says="Qian and Klabjan (2021): plan for a limit, prune, certify, measure",
        data="MNIST",
        small="33 s",
    ),
    "gap-tightness": Known(
        module="prunus.reproduce.gap_tightness",
        says="Qian and Klabjan (2021): how tight bounds and predictions are, and their coverage",
        small="28 s",
    ),
    "han2015-lenet": Known(
        module="prunus.reproduce.han2015_lenet",
        says="Han et al. (2015), tables 3 and 4: LeNet-300-100 and LeNet-5 twelvefold smaller",
        data="MNIST",
        small="46 s",
        full="about 60 min",
        resumes=True,
    ),
    "han2015b-lenet": Known(
        module="prunus.reproduce.han2015b_lenet",
        says="Han et al. (2015b), Deep compression: both LeNets in smaller and smaller files",
        data="MNIST, CIFAR-10",
        small="24 s",
        full="about 60 min",
        resumes=True,
    ),
    "pensia2020": Known(
        module="prunus.reproduce.pensia2020",
        says="Pensia et al. (2020): networks inside random ones by theorem, law and measurement",
        data="MNIST",
        small="30 s",
        full="4 min",
    ),
    "ramanujan2020": Known(
        module="prunus.reproduce.ramanujan2020",
        says="Ramanujan et al. (2020): subnetworks of random weights, controls, every conclusion "
        "judged",
        data="MNIST",
        small="57 s",
        full="about 20 min",
        resumes=True,
    ),
    "ye2020": Known(
        module="prunus.reproduce.ye2020",
        says="Ye et al. (2020a, b): greedy subnetworks, their rates, one Gram against their search",
        data="MNIST",
        small="about 150 s",
        full="about 5 min",
        resumes=True,
    ),
    "yang2023": Known(
        module="prunus.reproduce.yang2023",
        says="Yang et al. (2023): gain and collapse by pruning at initialisation",
        small="44 s",
    ),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Reproduction:
    """What a reproduction found.

    Attributes:
        name: as in `prunus reproduce NAME`.
        title: one line for the reader.
        paper: what is reproduced, with figure or table number.
        conditions: how the numbers were made and in what they differ from the paper's, in words.
        rows: one flat record per table line; columns are the keys of the first.
        figures: Vega-Altair charts by file stem, with the tidy records each draws.
        tables: the rows as a paper would print them, by title; where empty, `rows` are the table.
    """

    name: str
    title: str
    paper: str
    conditions: Sequence[str]
    rows: Rows
    figures: Mapping[str, tuple[Any, Rows]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)

    def shown(self) -> dict[str, list[dict[str, str]]]:
        """{title: rows of text}: `tables`, or else all rows."""
        if self.tables:
            return {title: [dict(row) for row in rows] for title, rows in self.tables.items()}
        return {"": [{str(key): _text(row.get(key)) for key in self.rows[0]} for row in self.rows]}


@runtime_checkable
class Reproduce(Protocol):
    """The call of every reproduction."""

    def __call__(
        self, *, scale: Scale, seed: int, data_dir: Path | None, progress: bool | None
    ) -> Reproduction: ...


def reproduction(name: str) -> Reproduce:
    """The function behind `name`; ValueError with near matches for an unknown name."""
    if name not in REPRODUCTIONS:
        raise unknown("reproduction", name, REPRODUCTIONS)
    function: Reproduce = importlib.import_module(REPRODUCTIONS[name].module).reproduce
    return function


def _text(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def save(result: Reproduction, folder: Path) -> list[Path]:
    """Write the table as JSON and Markdown, each figure as SVG, PNG, CSV and JSON; the paths.

    Raises:
        ValueError: a figure has the reproduction's own name, and would replace its table.
    """
    from prunus.report.figure import save_figure
    from prunus.report.grid import markdown_table

    if result.name in result.figures:
        raise ValueError(
            f"A figure of {result.name!r} has that name too, under which the table is written. "
            f"Give the figure another."
        )
    table = {
        "name": result.name,
        "title": result.title,
        "paper": result.paper,
        "conditions": list(result.conditions),
        "rows": [dict(row) for row in result.rows],
        "tables": result.shown() if result.tables else {},
    }
    words = "".join(f"- {line}\n" for line in result.conditions)
    parts = [
        f"**{title}**\n\n{markdown_table(rows)}" if title else markdown_table(rows)
        for title, rows in result.shown().items()
    ]
    text = "\n".join([f"# {result.title}\n\n{result.paper}\n", words, *parts])
    written = [
        write_text(folder / f"{result.name}.json", json.dumps(table, indent=1) + "\n"),
        write_text(folder / f"{result.name}.md", text),
    ]
    for stem, (chart, records) in result.figures.items():
        written += save_figure(chart, folder / stem, records)
    return written
