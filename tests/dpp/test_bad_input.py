"""Every entry of `prunus.dpp` meets the same bad kernels, and names what is wrong with them."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from prunus.dpp import (
    DPP,
    KDPP,
    draw_once,
    edge_kernel,
    gaussian_kernel,
    greedy_map,
    linear_kernel,
    node_kernel,
    poisson_odds,
    sample_batch,
    swap_chain,
)

CALLS = {
    "k-dpp": lambda kernel, k, g: KDPP(kernel).sample(k, generator=g),
    "draw_once": lambda kernel, k, g: draw_once(kernel, k, generator=g),
    "batch": lambda kernel, k, g: sample_batch(kernel[None], k, generator=g)[0],
    "map": lambda kernel, k, g: greedy_map(kernel, k),
    "poisson": lambda kernel, k, g: poisson_odds(kernel, k)[0],
    "chain": lambda kernel, k, g: swap_chain(kernel, k, generator=g),
    "dpp": lambda kernel, k, g: DPP(kernel),
}
GOOD = torch.eye(4, dtype=torch.float64) + 0.1


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestEveryEntry:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, call, bad, g):
        kernel = GOOD.clone()
        kernel[1, 2] = kernel[2, 1] = bad
        with pytest.raises(ValueError, match=r"must be finite, got .* at index \[(0, )?1, 2\]"):
            call(kernel, 2, g)

    def test_not_square(self, call, g):
        with pytest.raises(ValueError, match="must be square"):
            call(GOOD[:, :3], 2, g)

    def test_not_symmetric(self, call, g):
        kernel = GOOD.clone()
        kernel[0, 1] += 1e-3
        with pytest.raises(ValueError, match="must be symmetric"):
            call(kernel, 2, g)

    def test_complex(self, call, g):
        with pytest.raises(TypeError, match="must be real"):
            call(GOOD.to(torch.complex128), 2, g)

    def test_whole_numbers_and_half_precision_are_taken_and_left_alone(self, call, g):
        for dtype in (torch.int64, torch.float16):
            kernel = 2 * torch.eye(4, dtype=dtype)
            call(kernel, 2, g)
            assert torch.equal(kernel, 2 * torch.eye(4, dtype=dtype))


SIZED = {name: call for name, call in CALLS.items() if name != "dpp"}


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("k", [-1, 5, 2.5, True])
def test_sizes(name, k, g):
    sizes = r"\[1, 3\]" if name == "poisson" else r"\[0, 4\]"  # odds of none or all: 0 or infinite
    with pytest.raises(ValueError, match=rf"`k` must be a whole number in {sizes}, got"):
        SIZED[name](GOOD, k, g)


@pytest.mark.parametrize("name", ["k-dpp", "draw_once", "batch"])
def test_exact_samplers_refuse_indefinite_and_empty_kernels(name, g):
    with pytest.raises(ValueError, match="not positive semi-definite: eigenvalue -"):
        CALLS[name](GOOD - 1.05 * torch.eye(4), 2, g)
    with pytest.raises(ValueError, match=r"positive eigenvalue, got 0|numerical rank 0"):
        CALLS[name](torch.zeros(4, 4), 2, g)


@pytest.mark.parametrize("name", ["k-dpp", "draw_once", "batch"])
def test_bandwidths_off_the_scale(name, g):
    gram, row = torch.eye(6), torch.ones(6)
    flat = edge_kernel(gram, row, bandwidth=1e-30, jitter=0.0)  # all ones
    assert len(CALLS[name](flat, 1, g)) == 1
    with pytest.raises(ValueError, match=r"k=2 exceeds numerical rank 1.* jitter eps"):
        CALLS[name](flat, 2, g)
    far = edge_kernel(gram, row, bandwidth=1e30)  # diagonal: conditional Poisson
    assert len(set(CALLS[name](far, 3, g).tolist())) == 3


def test_kernels_refuse_what_is_not_finite():
    eye, broken = torch.eye(3), torch.eye(3)
    broken[1, 2] = math.nan
    said = r"`gram` must be finite, got nan at index \[1, 2\]"
    for build in (
        gaussian_kernel,
        linear_kernel,
        lambda gram: edge_kernel(gram, np.ones(3)),
        lambda gram: node_kernel(gram, np.ones((2, 3))),
    ):
        with pytest.raises(ValueError, match=said):
            build(broken)
    with pytest.raises(ValueError, match=r"`row` must be finite, got inf at index \[0\]"):
        edge_kernel(eye, [math.inf, 1.0, 1.0])


def test_the_chain_s_memory_does_not_grow_with_the_kernel(g):
    """n = 16384: the matrix would take 2.1 GB; the stated need is 8 (7 k² + 8 n) bytes."""
    n, k = 16384, 200
    x = np.random.default_rng(0).normal(size=(n, 3))

    def entries(i, j):
        i, j = np.asarray(i), np.asarray(j)
        square = ((x[i][..., :, None, :] - x[j][..., None, :, :]) ** 2).sum(-1)
        return np.exp(-square) + 0.01 * (i[..., :, None] == j[..., None, :])

    tracemalloc.start()
    drawn = swap_chain(entries, k, n=n, steps=100, generator=g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(drawn.tolist())) == k
    # the entries of this test take 3 differences and their squares for each of k² pairs
    assert peak <= 8 * (7 * k * k + 8 * n) + 8 * 5 * k * k
