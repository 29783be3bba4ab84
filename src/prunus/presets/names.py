"""Recipes by name: every preset, and with `+ls` least squares on its masks."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from prunus.check import unknown
from prunus.compensation import LeastSquares
from prunus.presets.methods import PRESETS
from prunus.recipe import Recipe

__all__ = ["Recipes", "recipes", "resolve"]


class Recipes(Mapping[str, Recipe]):
    """{name: Recipe}: every preset, and with `+ls` least squares on the same masks.

    A preset whose parts refuse least squares exists without it alone.
    """

    def __getitem__(self, name: str) -> Recipe:
        if name not in self._known:
            raise KeyError(str(unknown("recipe", str(name), self)))
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @cached_property
    def _known(self) -> dict[str, Recipe]:
        found = {}
        for name, preset in PRESETS.items():
            found[name] = preset.recipe
            if not preset.least_squares:
                continue
            try:
                found[f"{name}+ls"] = replace(preset.recipe, compensation=LeastSquares())
            except ValueError:  # refused by a part, with its reason
                continue
        return found

    @cached_property
    def by_digest(self) -> Mapping[str, str]:
        """{digest: name}; of several names of one recipe the first."""
        found: dict[str, str] = {}
        for name, recipe in self.items():
            found.setdefault(recipe.digest, name)
        return found

    def __repr__(self) -> str:
        return f"prunus.recipes({', '.join(self)})"


recipes = Recipes()


def resolve(recipe: str | Recipe) -> tuple[str, Recipe]:
    """(name, Recipe) of a name or a Recipe; a Recipe that no preset equals is called by its digest.

    Raises:
        ValueError: the name is unknown (near matches are suggested).
        TypeError: neither a name nor a Recipe.
    """
    if isinstance(recipe, Recipe):
        digest = recipe.digest
        return recipes.by_digest.get(digest, f"recipe-{digest[:8]}"), recipe
    if not isinstance(recipe, str):
        raise TypeError(
            f"`recipe` must be a name in prunus.recipes or a Recipe, got {type(recipe).__name__}."
        )
    if recipe not in recipes:
        raise unknown("recipe", recipe, recipes)
    return recipe, recipes[recipe]
