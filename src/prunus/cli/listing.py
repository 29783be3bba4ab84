"""`prunus list`: the tables of everything that has a name."""

import textwrap
from enum import StrEnum
from typing import Annotated, Any

import typer

__all__ = ["Kind", "listing"]

MEASURED = (
    "measured: test error in % without → with +ls, and with +ls the layer's relative error, where "
    "the first layer of a 784-500-500-10 network (MNIST, dense 1.69 %) keeps 157 of 784 weights "
    "into each output, or 255 of 500 nodes; one network, differences below 0.1 are noise "
    "(docs/which_selector.md). What the measurements support:"
)


class Kind(StrEnum):
    """What can be listed."""

    recipes = "recipes"
    granularities = "granularities"
    scores = "scores"
    allocations = "allocations"
    selections = "selections"
    joint = "joint"
    compensations = "compensations"
    schedules = "schedules"
    statistics = "statistics"
    tasks = "tasks"
    data = "data"
    reproductions = "reproductions"


def listing(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(Kind)}.")] = "recipes",
) -> None:
    """Print a table of names: recipes with their papers, the parts they are made of, tasks, data.

    Example: prunus list scores
    """
    from prunus.check import unknown
    from prunus.report.text import table_text, width_here

    if kind not in list(Kind):
        raise unknown("table", kind, list(Kind))
    rows = _rows(Kind(kind))
    if not rows:
        typer.echo(f"no {kind} yet")
        return
    typer.echo(table_text(rows))
    if Kind(kind) is Kind.recipes:
        from prunus.presets import ADVICE

        typer.echo(textwrap.fill(MEASURED, width_here()))
        for line in ADVICE:
            typer.echo(textwrap.fill(f"- {line}", width_here(), subsequent_indent="  "))


def _rows(kind: Kind) -> list[dict[str, Any]]:
    if kind is Kind.recipes:
        from prunus.presets import PRESETS, recipes

        return [
            {
                "name": f"{name}[+ls]" if f"{name}+ls" in recipes else name,
                "keeps": preset.says,
                "measured": preset.measured or "",
                "paper": preset.paper,
            }
            for name, preset in PRESETS.items()
        ]
    if kind is Kind.tasks:
        from prunus.bench.data.tasks import TASKS

        return [{"name": task.name, "what": task.title} for task in TASKS.values()]
    if kind is Kind.data:
        from prunus.bench.data.sets import DATA_SETS

        place = "from --data-dir or PRUNUS_DATA, else fetched from OpenML"
        return [
            {"name": name, "where from": "scikit-learn" if name == "digits" else place}
            for name in DATA_SETS
        ]
    if kind is Kind.reproductions:
        from prunus.reproduce import REPRODUCTIONS

        return [{"name": name, "module": module} for name, module in REPRODUCTIONS.items()]
    return [
        {"name": name, "written as": _signature(part), "what": _first_line(part)}
        for name, part in _parts(kind).items()
    ]


def _parts(kind: Kind) -> dict[str, Any]:
    from prunus import allocation, compensation, granularity, joint, schedules, scores, selection
    from prunus.calibration import STATISTICS

    tables: dict[Kind, Any] = {
        Kind.granularities: granularity.GRANULARITIES,
        Kind.scores: scores.SCORES,
        Kind.allocations: allocation.ALLOCATIONS,
        Kind.selections: selection.SELECTIONS,
        Kind.joint: joint.JOINTS,
        Kind.compensations: compensation.COMPENSATIONS,
        Kind.schedules: schedules.SCHEDULES,
        Kind.statistics: STATISTICS,
    }
    return dict(tables[kind])


def _signature(part: Any) -> str:
    import dataclasses

    fields = [
        field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}"
        for field in dataclasses.fields(part)
    ]
    return f"{part.__name__}({', '.join(fields)})"


def _first_line(part: Any) -> str:
    return str(part.__doc__).strip().splitlines()[0]
