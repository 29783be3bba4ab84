"""Rows for the tables of a report: recipes with their papers, scores by recipe and density."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunus.files import Row, Rows
from prunus.means import mean
from prunus.presets import PRESETS, resolve
from prunus.recipe import Recipe

__all__ = ["RECIPE_COLUMNS", "recipe_rows", "score_rows"]

RECIPE_COLUMNS = ("recipe", "keeps", "parts", "paper")  # on a page; the CSV file has the parts


def recipe_rows(recipes: Iterable[str | Recipe] | Mapping[str, Recipe]) -> list[Row]:
    """One row per base recipe: its name, what it does, its parts, its paper.

    A name with `+ls` is told by its base, since least squares keeps the masks.
    """
    if isinstance(recipes, Mapping):
        named = [(str(name), recipe) for name, recipe in recipes.items()]
    else:
        named = [resolve(given) for given in recipes]
    rows: dict[str, dict[str, Any]] = {}
    for name, recipe in named:
        base = name.partition("+")[0]
        preset = PRESETS.get(base)
        rows.setdefault(
            base,
            {
                "recipe": base,
                "keeps": preset.says if preset else "a recipe of your own",
                "paper": preset.paper if preset else "",
                "granularity": repr(recipe.granularity),
                "score": repr(recipe.score),
                "allocation": repr(recipe.allocation),
                "selection": repr(recipe.selection),
                "parts": _parts(recipe),
            },
        )
    return list(rows.values())


def _parts(recipe: Recipe) -> str:
    """The recipe as a product of its parts' names, those left out that do nothing."""
    parts = (recipe.granularity, recipe.score, recipe.allocation, recipe.selection)
    return " × ".join(repr(part).partition("(")[0] for part in parts)


def score_rows(records: Rows, value: str, *, digits: int = 4) -> list[Row]:
    """A row per recipe, a column per density: the mean of `value` over seeds.

    Args:
        records: with the fields recipe, density and `value`.
        value: the field that is averaged; records where it is None are left out.
        digits: significant digits kept.
    """
    densities = sorted({r["density"] for r in records}, key=_order, reverse=True)
    recipes = list(dict.fromkeys(r["recipe"] for r in records))
    cells: dict[tuple[Any, Any], list[float]] = {}
    for record in records:
        if record.get(value) is not None:
            cells.setdefault((record["recipe"], record["density"]), []).append(record[value])
    return [
        {
            "recipe": recipe,
            **{
                f"density {density}": _mean(cells.get((recipe, density)), digits)
                for density in densities
            },
        }
        for recipe in recipes
    ]


def _mean(values: Sequence[float] | None, digits: int) -> float | None:
    if not values:
        return None
    return float(f"{mean(values):.{digits}g}")


def _order(density: Any) -> tuple[bool, float, str]:
    number = isinstance(density, int | float)
    return (number, float(density) if number else 0.0, str(density))
