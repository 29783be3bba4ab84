"""Rows for the tables of a report: recipes with their papers, layers, costs."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from prunus.presets import PRESETS, resolve
from prunus.recipe import Recipe

__all__ = ["cost_rows", "layer_rows", "recipe_rows"]


class Price(Protocol):
    """What `prunus.cost.Cost` offers."""

    @property
    def parameters(self) -> int: ...
    @property
    def macs(self) -> int | None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def model_density(self) -> float: ...
    @property
    def latency(self) -> Any: ...


def recipe_rows(recipes: Iterable[str | Recipe]) -> list[dict[str, Any]]:
    """One row per base recipe: its name, what it does, its parts, its paper.

    A name with `+ls` is told by its base, since least squares keeps the masks.
    """
    rows: dict[str, dict[str, Any]] = {}
    for given in recipes:
        name, recipe = resolve(given)
        base = name.partition("+")[0]
        preset = PRESETS.get(base)
        rows.setdefault(
            base,
            {
                "recipe": base,
                "removes": _first_line(preset.says) if preset else "a recipe of your own",
                "granularity": repr(recipe.granularity),
                "score": repr(recipe.score),
                "allocation": repr(recipe.allocation),
                "selection": repr(recipe.selection),
                "paper": preset.paper if preset else "",
            },
        )
    return list(rows.values())


def layer_rows(layers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per pruned layer: shape, kept weights, density, error on the calibration inputs."""
    rows = []
    for name, layer in layers.items():
        mask = layer.mask
        kept = int(mask.sum())
        rows.append(
            {
                "layer": name,
                "shape": " × ".join(str(n) for n in mask.shape),
                "kept": kept,
                "of": mask.numel(),
                "density": kept / mask.numel(),
                "units_without_inputs": int((~mask.any(1)).sum()),
                "inputs_unused": int((~mask.any(0)).sum()),
                "error": None if layer.error is None else float(layer.error),
            }
        )
    return rows


def cost_rows(before: Price, after: Price) -> list[dict[str, Any]]:
    """Parameters, multiply-adds, bytes and latency: before, after, and the share that is left."""
    rows: list[dict[str, Any]] = []

    def add(quantity: str, dense: float | None, pruned: float | None) -> None:
        if dense is not None and pruned is not None:
            rows.append(
                {
                    "quantity": quantity,
                    "before": dense,
                    "after": pruned,
                    "share_left": pruned / dense if dense else None,
                }
            )

    add("parameters", before.parameters, after.parameters)
    add("multiply-adds per sample", before.macs, after.macs)
    add("bytes stored", before.bytes, after.bytes)
    if before.latency is not None and after.latency is not None:
        add("median latency (s)", before.latency.median, after.latency.median)
    return rows


def _first_line(text: str) -> str:
    return text.splitlines()[0]
