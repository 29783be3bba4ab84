"""Grids of blocks and experts have their random baseline."""

import pytest

from prunus.bench.grid import cells, make_grid
from prunus.bench.grid.cell import random_twin, recipe_of


@pytest.mark.parametrize(
    "recipe", ["block-gap", "Recipe(granularity=Blocks(part='mlp'), score=BlockGap())", "reap"]
)
def test_what_is_taken_out_whole_has_a_random_twin(recipe):
    pytest.importorskip("transformers")
    twin = random_twin(recipe_of(recipe))
    assert twin.granularity == recipe_of(recipe).granularity
    grid = make_grid({"tasks": ["tiny-llama"], "recipes": [recipe], "densities": [0.5], "seeds": 1})
    assert repr(twin) in {cell.recipe for cell in cells(grid)}
