"""Masks of the recipes on small networks are those of the kept table, whatever the engine does."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import prunus

PATH = Path(__file__).parents[2] / "benchmarks" / "mask_digests.py"
spec = importlib.util.spec_from_file_location("mask_digests", PATH)
assert spec is not None
assert spec.loader is not None
mask_digests = importlib.util.module_from_spec(spec)
sys.modules["mask_digests"] = mask_digests
spec.loader.exec_module(mask_digests)
KEPT = json.loads(mask_digests.TABLE.read_text())
RECIPES = sorted({key.split(" | ")[0] for key in KEPT})
SMALL = ("mlp-norm", *mask_digests.PARTS)  # one of them serves every recipe


def compare(recipe: str, network: str, density: float, seed: int) -> list[str]:
    key = f"{recipe} | {network} | {density} | {seed}"
    assert key in KEPT
    now = {key: mask_digests.digest(recipe, network, density, seed)}
    return mask_digests.different(now, KEPT)


def test_the_table_has_what_it_says_and_every_recipe_is_served():
    keys = [key for key, _ in mask_digests.keys_of(list(prunus.recipes), mask_digests.NETWORKS)]
    assert set(keys) == set(KEPT)
    served = {key.split(" | ")[0] for key, row in KEPT.items() if "masks" in row}
    assert served == set(prunus.recipes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_small_network(recipe):
    network = next(n for n in SMALL if "masks" in KEPT[f"{recipe} | {n} | 0.5 | 0"])
    assert not compare(recipe, network, 0.5, 0)


@pytest.mark.parametrize("recipe", ["random-edge", "rigl", "random-node"])
def test_another_seed_is_noticed(recipe):
    """The negative control: masks drawn with another seed are not the kept ones."""
    row = mask_digests.digest(recipe, "mlp-norm", 0.5, 1)
    assert mask_digests.different({f"{recipe} | mlp-norm | 0.5 | 0": row}, KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_network(recipe):
    """About ten minutes a core for all recipes; both densities, two seeds."""
    found = mask_digests.different(mask_digests.table([recipe], mask_digests.NETWORKS), KEPT)
    assert not found, "\n".join(found)
