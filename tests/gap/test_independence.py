"""The map of independence: rank-one structure is seen, iid weights are not accused."""

import torch
from torch import nn

from prunus.reproduce.gap_independence import layer_map


def test_structured_layers_stand_out_and_independent_ones_do_not():
    """Shuffling keeps a layer's law; iid layers lie near 1, a rank-one part far above."""
    generator = torch.Generator().manual_seed(0)
    free, bound = nn.Linear(30, 20), nn.Linear(30, 20)
    with torch.no_grad():
        free.weight.copy_(torch.randn(20, 30, generator=generator))
        ones = torch.outer(torch.ones(20), torch.ones(30))
        bound.weight.copy_(ones * torch.randn(20, 1, generator=generator))
    rows = layer_map(nn.Sequential(free, bound), 60, generator=generator)
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        ratio = row["D over shuffled"]
        if row["layer"] == "0":
            assert row["engine over shuffled"] > 1  # the theory covers what it speaks of
            assert 0.6 < ratio < 1.2  # one draw against a 95 % quantile
        elif row["method"] == "random":
            assert ratio > 1.4 or row["density"] == 0.9
            assert row["W over shuffled"] > 2
