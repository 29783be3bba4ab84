"""Grids of blocks and experts have their random baseline."""

import pytest

from prunus.bench import read_records, run
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


@pytest.mark.slow
def test_blocks_are_chosen_on_the_draw_of_the_seed(tmp_path):
    pytest.importorskip("transformers")
    grid = {
        "tasks": ["tiny-llama"], "recipes": ["block-cosine"], "densities": [0.75], "seeds": 2,
        "network": 0, "calibration": 16, "exclude": ["lm_head"], "without": ["small-dense"],
    }  # fmt: skip
    run(grid, out=tmp_path, progress=False)
    rows = read_records([tmp_path]).rows
    assert len(rows) == 4
    for row in rows:
        assert row.status == "done", row.traceback
        assert row.parameters[1] == row.parameters[0] - 184_576  # a block and its norms
