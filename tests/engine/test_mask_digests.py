"""Masks of the recipes on the zoo are those of the kept table, whatever happens to the engine."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import prunus
from models import ZOO

PATH = Path(__file__).parents[2] / "benchmarks" / "mask_digests.py"
spec = importlib.util.spec_from_file_location("mask_digests", PATH)
assert spec is not None
assert spec.loader is not None
mask_digests = importlib.util.module_from_spec(spec)
sys.modules["mask_digests"] = mask_digests
spec.loader.exec_module(mask_digests)
KEPT = json.loads(mask_digests.TABLE.read_text())
RECIPES = sorted({key.split(" | ")[0] for key in KEPT})


def compare(recipe: str, network: str, density: float, seed: int) -> list[str]:
    key = f"{recipe} | {network} | {density} | {seed}"
    assert key in KEPT
    now = {key: mask_digests.digest(recipe, network, density, seed)}
    return mask_digests.different(now, KEPT)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_small_network(recipe):
    assert not compare(recipe, "mlp-norm", 0.5, 0)


def test_another_seed_is_noticed():
    """The negative control: masks drawn with another seed are not the kept ones."""
    row = mask_digests.digest("random-edge", "mlp-norm", 0.5, 1)
    assert mask_digests.different({"random-edge | mlp-norm | 0.5 | 0": row}, KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_whole_zoo(recipe):
    """About ten minutes a core for all recipes; every network, both densities, two seeds."""
    found = mask_digests.different(mask_digests.table([recipe], sorted(ZOO)), KEPT)
    assert not found, "\n".join(found)


def test_every_recipe_of_today_is_known():
    assert set(RECIPES) <= set(prunus.recipes)
