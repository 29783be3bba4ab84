"""Figures and tables of the papers, with our numbers beside the published ones.

A reproduction is a module with one function `reproduce`, named in `REPRODUCTIONS`.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from prunus.check import unknown
from prunus.files import write_text

__all__ = ["REPRODUCTIONS", "Reproduction", "reproduction", "save"]

Scale = Literal["small", "full"]

REPRODUCTIONS: dict[str, str] = {  # name -> module with a function `reproduce`
    "gap-independence": "prunus.reproduce.gap_independence",
    "gap-mnist": "prunus.reproduce.gap_mnist",
    "gap-tightness": "prunus.reproduce.gap_tightness",
    "yang2023": "prunus.reproduce.yang2023",
    "acharyya2021-cifar": "prunus.reproduce.acharyya2021_cifar",
    "acharyya2021-mnist": "prunus.reproduce.acharyya2021_mnist",
    "han2015-lenet": "prunus.reproduce.han2015_lenet",
    "acharyya2021-simulation": "prunus.reproduce.acharyya2021_simulation",
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
    """

    name: str
    title: str
    paper: str
    conditions: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    figures: Mapping[str, tuple[Any, Sequence[Mapping[str, Any]]]] = field(default_factory=dict)


class Reproduce(Protocol):
    """The call of every reproduction."""

    def __call__(
        self, *, scale: Scale, seed: int, data_dir: Path | None, progress: bool | None
    ) -> Reproduction: ...


def reproduction(name: str) -> Reproduce:
    """The function behind `name`; ValueError with near matches for an unknown name."""
    if name not in REPRODUCTIONS:
        raise unknown("reproduction", name, REPRODUCTIONS)
    function: Reproduce = importlib.import_module(REPRODUCTIONS[name]).reproduce
    return function


def save(result: Reproduction, folder: Path) -> list[Path]:
    """Write the table as JSON and each figure as SVG, PNG, CSV and JSON; return the paths."""
    from prunus.report.figure import save_figure

    table = {
        "name": result.name,
        "title": result.title,
        "paper": result.paper,
        "conditions": list(result.conditions),
        "rows": [dict(row) for row in result.rows],
    }
    written = [write_text(folder / f"{result.name}.json", json.dumps(table, indent=1) + "\n")]
    for stem, (chart, records) in result.figures.items():
        written += save_figure(chart, folder / stem, records)
    return written
