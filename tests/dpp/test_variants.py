"""Every other sampler follows the law of the exact one, or says that it is approximate."""

import math

import numpy as np
import pytest
import torch

from prunus.dpp import (
    KDPP,
    DualKDPP,
    draw_once,
    edge_kernel,
    fourier_features,
    gaussian_from_features,
    greedy_map,
    reserve,
    sample_batch,
    swap_chain,
)
from prunus.dpp import projection as projections
from prunus.dpp.sequential import draw_marginal
from reference import chi_square
from reference import dpp as slow


def rbf(n, seed, jitter=0.01):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    return np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1)) + jitter * np.eye(n)


def check(draw, kernel, k, draws=5_000):
    law = slow.k_dpp(kernel, k)
    p = chi_square.p_value(draw, slow.sets(len(kernel), k), law, draws)
    assert p > 1e-6, f"p = {p:.2g}; a right sampler fails once in 10⁶ seeds"


@pytest.mark.parametrize("k", [2, 6])
def test_batched_draws_follow_the_law(k):
    kernels = torch.tensor(np.stack([rbf(8, 0), rbf(8, 1), np.diag(np.arange(1.0, 9.0))]))
    g = torch.Generator().manual_seed(0)
    many = kernels.repeat_interleave(5_000, dim=0)
    drawn = sample_batch(many, k, generator=g).view(3, 5_000, k)
    for kernel, sets in zip(kernels.numpy(), drawn.tolist(), strict=True):
        queue = iter(sets)
        check(lambda queue=queue: tuple(next(queue)), kernel, k)


def test_batched_edges():
    g = torch.Generator().manual_seed(0)
    b = np.random.default_rng(0).normal(size=(8, 4))
    low = torch.tensor(b @ b.T)[None]
    assert sample_batch(low, 4, generator=g).shape == (1, 4)  # k = rank
    with pytest.raises(ValueError, match="k=5 exceeds numerical rank 4 of a kernel of the batch"):
        sample_batch(low, 5, generator=g)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        sample_batch(low - torch.eye(8), 2, generator=g)
    skew = low.repeat(2, 1, 1)
    skew[1, 0, 1] += 0.1
    with pytest.raises(ValueError, match="must be symmetric, got entries of kernel 1 that differ"):
        sample_batch(skew, 2, generator=g)
    with pytest.raises(TypeError, match="`kernels` must be real"):
        sample_batch(low.to(torch.complex128), 2, generator=g)
    assert sample_batch(low, 0, generator=g).shape == (1, 0)
    assert sample_batch(low, 8, generator=g).tolist() == [list(range(8))]


def test_accept_reject_follows_the_law(monkeypatch):
    monkeypatch.setattr(projections, "_LARGE", 1)
    monkeypatch.setattr(projections, "_FEW", 1)
    kernel, g = rbf(9, 2), torch.Generator().manual_seed(1)
    for k in (3, 6):
        dpp = KDPP(kernel)
        check(lambda dpp=dpp, k=k: tuple(dpp.sample(k, generator=g).tolist()), kernel, k)


def test_sequential_sampler_on_a_kernel_that_is_no_projection(monkeypatch):
    from prunus.dpp import sequential

    monkeypatch.setattr(sequential, "_BLOCK", 3)
    kernel = rbf(8, 3)
    marginal = np.eye(8) - np.linalg.inv(np.eye(8) + 2 * kernel)
    law = slow.dpp(2 * kernel)
    g = torch.Generator().manual_seed(2)
    p = chi_square.p_value(
        lambda: tuple(draw_marginal(marginal, g).tolist()),
        list(law),
        np.array([*law.values()]),
        8_000,
    )
    assert p > 1e-6, f"p = {p:.2g}; a right sampler fails once in 10⁶ seeds"


def test_dual_follows_the_law_and_its_numbers():
    b = np.random.default_rng(4).normal(size=(9, 5))
    kernel, dual = b @ b.T, DualKDPP(b)
    g = torch.Generator().manual_seed(3)
    assert dual.rank == 5
    for k in (3, 5):
        check(lambda k=k: tuple(dual.sample(k, generator=g).tolist()), kernel, k)
        expected = slow.inclusion(slow.k_dpp(kernel, k), 9, k).diagonal().copy()
        torch.testing.assert_close(dual.inclusion(k), torch.tensor(expected), atol=1e-9, rtol=0)
        assert dual.log_normaliser(k) == pytest.approx(
            math.log(slow.elementary(kernel, k)), abs=1e-9
        )
    assert dual.sample(0, generator=g).tolist() == []
    assert dual.inclusion(0).tolist() == [0.0] * 9
    assert dual.log_normaliser(0) == 0.0
    with pytest.raises(ValueError, match="k=6 exceeds numerical rank 5"):
        DualKDPP(np.c_[b, b]).sample(6, generator=g)
    with pytest.raises(ValueError, match="`features` must not all be zero"):
        DualKDPP(np.zeros((4, 2))).sample(1, generator=g)


def test_dual_at_ten_thousand_items():
    g = torch.Generator().manual_seed(4)
    items = torch.randn(10_000, 8, dtype=torch.float64, generator=g)
    features = fourier_features(items, 200, bandwidth=0.1, generator=g)
    near = features[:200] @ features[:200].T
    exact = gaussian_from_features(items[:200], bandwidth=0.1, jitter=0.0)
    # entries have a standard error of at most 1/√200 each; 40 000 of them
    assert float((near - exact).abs().max()) < 6 / math.sqrt(200)
    dual = DualKDPP(features)
    drawn = dual.sample(100, generator=g)
    assert len(set(drawn.tolist())) == 100
    assert float(dual.inclusion(100).sum()) == pytest.approx(100, rel=1e-9)


def test_swap_chain_follows_the_law():
    kernel, g = rbf(8, 5), torch.Generator().manual_seed(5)
    state = swap_chain(kernel, 3, steps=200, generator=g)

    def draw():
        nonlocal state
        state = swap_chain(kernel, 3, steps=30, start=state, generator=g)
        return tuple(state.tolist())

    check(draw, kernel, 3, draws=4_000)


def test_swap_chain_from_entries_alone():
    """The same chain without a kernel matrix, from a Gram matrix."""
    rng = np.random.default_rng(6)
    x, w = rng.normal(size=(80, 40)), rng.normal(size=40)
    gram = x.T @ x / 80
    kernel = edge_kernel(gram, w, bandwidth=0.5)

    def entries(rows, columns):
        block = (w[rows] ** 2 * gram[rows, rows])[:, None] + w[columns] ** 2 * gram[
            columns, columns
        ]
        block = block - 2 * gram[np.ix_(rows, columns)] * np.outer(w[rows], w[columns])
        return np.exp(-0.5 * np.maximum(block, 0)) + 0.01 * (rows[:, None] == columns)

    sets = [
        swap_chain(source, 12, n=n, steps=500, generator=torch.Generator().manual_seed(7)).tolist()
        for source, n in ((kernel, None), (entries, 40))
    ]
    assert sets[0] == sets[1]


def test_swap_chain_mixes_from_the_worst_start():
    """Inclusion after 2n steps from the lowest indices agrees with the exact one."""
    kernel = rbf(40, 8)
    exact = KDPP(kernel).inclusion(6).numpy()
    g, hits = torch.Generator().manual_seed(8), np.zeros(40)
    for _ in range(400):
        hits[swap_chain(kernel, 6, start=range(6), generator=g).numpy()] += 1
    z = (hits - 400 * exact) / np.sqrt(400 * exact * (1 - exact))
    assert (z**2).mean() < 2  # 40 squared normals: beyond 2 once in 10⁴


def test_swap_chain_refuses_a_singular_start():
    b = np.random.default_rng(9).normal(size=(8, 3))
    g = torch.Generator().manual_seed(9)
    low = b @ b.T
    low[:, 1], low[1] = low[:, 0], low[0]
    low[1, 1] = low[0, 0]
    with pytest.raises(ValueError, match="The kernel is singular on the 2 items of the start"):
        swap_chain(low, 2, start=[0, 1], generator=g)
    assert len(swap_chain(low, 2, start=greedy_map(low, 2), generator=g)) == 2
    with pytest.raises(ValueError, match=r"`start` must hold k=2 distinct items in 0\.\.7"):
        swap_chain(low, 2, start=[0, 0], generator=g)


@pytest.mark.parametrize(("k", "size"), [(3, 4), (7, 3)])
def test_draw_once_follows_the_law(k, size, monkeypatch):
    monkeypatch.setattr(reserve, "_SMALL", 1)
    monkeypatch.setattr(reserve, "_SHARE", size / 9)
    monkeypatch.setattr(reserve, "_LEAST", 0.05)
    monkeypatch.setattr(reserve, "KDPP", None)  # no way out to the other sampler
    monkeypatch.setattr(reserve, "_TRIES", 10_000)
    kernel, g = rbf(9, 11, 0.1), torch.Generator().manual_seed(11)
    check(lambda: tuple(draw_once(kernel, k, generator=g).tolist()), kernel, k, draws=1_500)


def test_draw_once_without_its_correction_is_rejected(monkeypatch):
    """Negative control: every S_A is accepted, whatever its reserve is likely to do."""
    monkeypatch.setattr(reserve, "_SMALL", 1)
    monkeypatch.setattr(reserve, "_SHARE", 4 / 9)
    monkeypatch.setattr(reserve, "_LEAST", 0.0)
    monkeypatch.setattr(reserve, "_most_probable", lambda *a: 1e-9)
    monkeypatch.setattr(reserve, "_size_probability", lambda *a: 1e-9)
    kernel, g = rbf(9, 11, 0.1), torch.Generator().manual_seed(11)
    law = slow.k_dpp(kernel, 3)
    p = chi_square.p_value(
        lambda: tuple(draw_once(kernel, 3, generator=g).tolist()), slow.sets(9, 3), law, 1_500
    )
    assert p < 1e-6


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 2.0])
def test_no_size_of_the_reserve_is_more_probable_than_the_bound(log_alpha, monkeypatch):
    """Over every S_A and every size, by enumeration."""
    monkeypatch.setattr(reserve, "_LEAST", 0.0)
    kernel = rbf(13, 12, 0.1)
    others, held = np.arange(6), np.arange(6, 13)
    inner = kernel[np.ix_(held, held)]
    bound = reserve._most_probable(kernel, inner, others, held, log_alpha)
    worst = 0.0
    for size in range(7):
        for first in slow.sets(6, size):
            given = reserve._given(kernel, inner, np.array(first, dtype=int), held)
            logs = np.log(np.linalg.eigvalsh(given))
            worst = max(worst, *(reserve._size_probability(logs, log_alpha, m) for m in range(8)))
    assert bound is not None
    assert worst <= bound
    assert bound < 1.0 or log_alpha != 0.0  # the bound says something in the middle


def test_draw_once_where_it_is_meant_to_be_used():
    """Layer-like kernels: the reserve serves them, and the sizes of its parts are right."""
    rng = np.random.default_rng(13)
    x = rng.gamma(0.4, 1.0, size=(2000, 300)) * (rng.random((2000, 300)) < 0.3)
    g = torch.Generator().manual_seed(13)
    for beta in (0.1, 10.0):
        kernel = edge_kernel(x.T @ x / 2000, rng.normal(size=300), bandwidth=beta)
        exact = KDPP(kernel)
        for k in (30, 150, 270):
            drawn = [reserve._draw(kernel.numpy(), k, g, 75) for _ in range(40)]
            assert sum(d is None for d in drawn) <= 1
            hits = np.zeros(300)
            for d in drawn:
                if d is not None:
                    assert len(d) == k
                    assert (np.diff(d) > 0).all()
                    hits[d] += 1
            total, p = len([d for d in drawn if d is not None]), exact.inclusion(k).numpy()
            z = (hits - total * p) / np.sqrt(total * p * (1 - p) + 1e-12)
            # The mean of 300 nearly independent squared normals has a spread of 0.08: six of
            # them, false alarm 1e-8 a case. Negative control: marginals of half the size.
            assert abs((z**2).mean() - 1) < 0.5
            p = exact.inclusion(k // 2).numpy()
            z = (hits - total * p) / np.sqrt(total * p * (1 - p) + 1e-12)
            assert abs((z**2).mean() - 1) > 0.5


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_draw_once_does_not_mind_the_kernel_s_scale(scale, monkeypatch):
    monkeypatch.setattr(reserve, "_SMALL", 1)
    kernel = rbf(100, 15, 0.1)
    expected = draw_once(kernel, 30, generator=torch.Generator().manual_seed(15))
    monkeypatch.setattr(reserve, "KDPP", None)  # served by the reserve, not handed over
    found = draw_once(kernel * scale, 30, generator=torch.Generator().manual_seed(15))
    assert torch.equal(found, expected)


def test_draw_once_hands_over_what_it_cannot_serve(monkeypatch):
    monkeypatch.setattr(reserve, "_SMALL", 1)
    g = torch.Generator().manual_seed(14)
    b = np.random.default_rng(14).normal(size=(300, 20))
    assert len(draw_once(b @ b.T, 10, generator=g)) == 10  # singular
    with pytest.raises(ValueError, match="k=21 exceeds numerical rank 20"):
        draw_once(b @ b.T, 21, generator=g)
    assert draw_once(np.eye(300), 0, generator=g).tolist() == []
    assert len(draw_once(np.eye(300), 300, generator=g)) == 300
    assert len(draw_once(np.eye(300), 299, generator=g)) == 299
    with pytest.raises(ValueError, match="not positive semi-definite"):
        draw_once(np.eye(300) - 0.02 * np.ones((300, 300)), 20, generator=g)


@pytest.mark.slow
def test_guard_drift_up_to_n_2000():
    """The residual mass of a large projection stays within the guard."""
    x = np.random.default_rng(10).normal(size=(2000, 20))
    dpp = KDPP(gaussian_from_features(x, bandwidth=0.02))
    g = torch.Generator().manual_seed(10)
    for k in (200, 1000, 1900):
        assert len(dpp.sample(k, generator=g)) == k
