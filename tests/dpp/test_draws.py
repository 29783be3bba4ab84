"""Where draws come from, and several of them at once."""

import pytest
import torch

from prunus.dpp import (
    DPP,
    KDPP,
    DualKDPP,
    draw_once,
    fourier_features,
    poisson_sample,
    sample_batch,
    swap_chain,
)


def kernel(n=9):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a @ a.T + torch.eye(n)


L = kernel()
FEATURES = torch.linalg.cholesky(L)
DRAWS = {
    "KDPP": lambda **given: KDPP(L).sample(3, **given),
    "DualKDPP": lambda **given: DualKDPP(FEATURES).sample(3, **given),
    "poisson_sample": lambda **given: poisson_sample(L.diagonal(), 3, **given),
    "draw_once": lambda **given: draw_once(L, 3, **given),
    "swap_chain": lambda **given: swap_chain(L, 3, **given),
    "sample_batch": lambda **given: sample_batch(L[None], 3, **given),
    "fourier_features": lambda **given: fourier_features(L, 4, bandwidth=0.1, **given),
    "DPP": lambda **given: DPP(L).sample(**given),
}
SEVERAL = ("KDPP", "DualKDPP", "poisson_sample", "DPP")


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_is_its_generator_and_nothing_is_torchs_own(name):
    draw = DRAWS[name]
    by_seed = draw(generator=5)
    assert torch.equal(by_seed, draw(generator=torch.Generator().manual_seed(5)))
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(5)
        assert torch.equal(by_seed, draw())  # the same engine, seeded alike
        after = torch.random.get_rng_state()
        assert not torch.equal(after, draw_state(5))
        draw(generator=5)
        assert torch.equal(after, torch.random.get_rng_state())
    finally:
        torch.random.set_rng_state(state)
    with pytest.raises(TypeError, match=r"must be a torch\.Generator, a seed or None, got str"):
        draw(generator="5")
    with pytest.raises(TypeError, match="got bool"):
        draw(generator=True)
    with pytest.raises(ValueError, match="`generator` must be a whole number >= 0, got -1"):
        draw(generator=-1)


def draw_state(seed):
    return torch.Generator().manual_seed(seed).get_state()


@pytest.mark.parametrize("name", SEVERAL)
def test_several_draws_are_those_one_after_another(name):
    draw = DRAWS[name]
    generator = torch.Generator().manual_seed(2)
    alone = [draw(generator=generator) for _ in range(6)]
    together = draw(generator=2, size=6)
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]
    assert len({tuple(row.tolist()) for row in together}) > 1
    assert len(draw(generator=2, size=0)) == 0
    if name != "DPP":
        assert draw(generator=2, size=0).shape == (0, 3)
    with pytest.raises(ValueError, match="`size` must be a whole number >= 0, got -1"):
        draw(generator=2, size=-1)


def test_sets_that_are_certain_also_come_in_numbers():
    assert KDPP(L).sample(9, size=2).tolist() == [list(range(9))] * 2
    assert KDPP(L).sample(0, size=2).shape == (2, 0)
    assert poisson_sample([1.0, 0.0, 2.0], 2, size=3).tolist() == [[0, 2]] * 3
