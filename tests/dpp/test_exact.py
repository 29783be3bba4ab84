"""The k-DPP and the DPP against enumeration, on tame and on hostile kernels."""

import math

import numpy as np
import pytest
import torch

from prunus.dpp import DPP, KDPP, edge_kernel
from prunus.dpp import exact as module
from prunus.dpp.batched import _draw_items
from prunus.dpp.projection import draw_projection
from reference import chi_square, fixture
from reference import dpp as slow


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fixture_kernel():
    x = fixture.inputs()
    return slow.gaussian_edges(x, fixture.ROW, fixture.BETA, fixture.JITTER)


def rbf(n, seed, jitter=0.0):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    return np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1)) + jitter * np.eye(n)


def low_rank(n, r, seed):
    b = np.random.default_rng(seed).normal(size=(n, r))
    return b @ b.T


def wide(n, seed):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return (q * np.logspace(-4, 4, n)) @ q.T


KERNELS = {
    "rbf": (rbf(9, 1), 4),
    "rbf jitter": (rbf(10, 2, 0.01), 3),
    "above half": (rbf(9, 3, 0.01), 7),
    "low rank, k = rank": (low_rank(9, 4, 4), 4),
    "low rank": (low_rank(10, 6, 5), 4),
    "wide spectrum": (wide(8, 6), 5),
    "diagonal": (np.diag(np.random.default_rng(7).uniform(0.1, 3, 9)), 4),
    "fixture": (fixture_kernel(), 3),
}


def test_fixture_values():
    dpp = KDPP(fixture_kernel())
    assert dpp.log_normaliser(3) == pytest.approx(3.752075914524, abs=1e-10)
    assert math.exp(dpp.log_normaliser(3)) == pytest.approx(42.609443815812, rel=1e-10)
    expected = {
        1: [0.125] * 8,
        3: [
            0.43837371, 0.41551309, 0.34965755, 0.43922240,
            0.32786276, 0.34956876, 0.29989351, 0.37990822,
        ],
        7: [
            0.95230942, 0.94309627, 0.90185003, 0.95263117,
            0.85786628, 0.78217175, 0.67935909, 0.93071598,
        ],
    }  # fmt: skip
    for k, values in expected.items():
        torch.testing.assert_close(
            dpp.inclusion(k), torch.tensor(values, dtype=torch.float64), atol=1e-8, rtol=0
        )
    torch.testing.assert_close(
        dpp.inclusion(1), torch.full((8,), 0.125, dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", KERNELS)
def test_numbers_equal_enumeration(name):
    kernel, k = KERNELS[name]
    n = len(kernel)
    law = slow.k_dpp(kernel, k)
    pairs = slow.inclusion(law, n, k)
    dpp = KDPP(kernel)
    # determinants of the reference lose digits on the wide spectrum
    tolerance = 1e-8 if "wide" in name or "low" in name else 1e-11
    both = dpp.pair_inclusion(k)
    torch.testing.assert_close(both, torch.tensor(pairs), atol=tolerance, rtol=0)
    torch.testing.assert_close(
        dpp.inclusion(k), torch.tensor(pairs.diagonal()), atol=tolerance, rtol=0
    )
    assert float(both.diagonal().sum()) == pytest.approx(k, abs=1e-10)
    torch.testing.assert_close(both.sum(1), k * both.diagonal(), atol=1e-9, rtol=0)
    assert dpp.log_normaliser(k) == pytest.approx(
        math.log(slow.elementary(kernel, k)), abs=1e-7 if "wide" in name else 1e-10
    )
    likely = slow.sets(n, k)[int(law.argmax())]
    assert dpp.log_prob(likely) == pytest.approx(math.log(law.max()), abs=1e-7)
    assert dpp.log_prob(torch.tensor(likely)) == dpp.log_prob(likely)


@pytest.mark.parametrize("draws", [5_000, pytest.param(60_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KERNELS)
def test_samples_follow_the_law(name, draws):
    kernel, k = KERNELS[name]
    dpp, g = KDPP(kernel), generator(11)
    law = slow.k_dpp(kernel, k)
    cells = slow.sets(len(kernel), k)
    p = chi_square.p_value(lambda: tuple(dpp.sample(k, generator=g).tolist()), cells, law, draws)
    assert p > 1e-6, f"p = {p:.2g}; a right sampler fails once in 10⁶ seeds"


def test_the_same_test_rejects_a_slightly_wrong_sampler(monkeypatch):
    """Negative control: eigenvectors drawn uniformly instead of in proportion to ∏ λ."""
    kernel, k = KERNELS["fixture"]
    monkeypatch.setattr(module.tilt, "tilt", lambda logs, size: 0.0)
    monkeypatch.setattr(
        module.tilt, "coins", lambda logs, x: (np.full(8, 0.375), np.full(8, 0.625))
    )
    dpp, g = KDPP(kernel), generator(11)
    law = slow.k_dpp(kernel, k)
    p = chi_square.p_value(
        lambda: tuple(dpp.sample(k, generator=g).tolist()), slow.sets(8, k), law, 5_000
    )
    assert p < 1e-6


def test_dpp_of_random_size():
    kernel = rbf(7, 8, 0.05) * 1.5
    law = slow.dpp(kernel)
    dpp, g = DPP(kernel), generator(3)
    p = chi_square.p_value(
        lambda: tuple(dpp.sample(generator=g).tolist()),
        list(law),
        np.array([*law.values()]),
        5_000,
    )
    assert p > 1e-6, f"p = {p:.2g}; a right sampler fails once in 10⁶ seeds"
    pairs = sum(slow.inclusion(np.array([law[s] for s in slow.sets(7, k)]), 7, k) for k in range(8))
    torch.testing.assert_close(dpp.pair_inclusion(), torch.tensor(pairs), atol=1e-12, rtol=0)
    torch.testing.assert_close(dpp.inclusion(), torch.tensor(pairs.diagonal()), atol=1e-12, rtol=0)
    assert dpp.log_prob([0, 3]) == pytest.approx(math.log(law[0, 3]), abs=1e-10)
    assert dpp.log_prob([]) == pytest.approx(math.log(law[()]), abs=1e-10)
    with pytest.raises(ValueError, match="not positive semi-definite: eigenvalue"):
        DPP(kernel - 2 * np.eye(7))


@pytest.mark.parametrize("beta", [10 / 60000, 0.01, 0.1, 0.5])
def test_kernels_on_which_the_public_sampler_fails(beta):
    """e_k runs over hundreds of decades here; the law must not notice."""
    rng = np.random.default_rng(0)
    x = rng.gamma(0.4, 60.0, size=(3000, 200)) * (rng.random((3000, 200)) < 0.2)
    x[:, :20] = 1.0  # constant inputs, as the border of an image
    kernel = edge_kernel(torch.tensor(x.T @ x), torch.tensor(rng.normal(size=200) * 0.05),
                         bandwidth=beta * 0.05)  # fmt: skip
    dpp = KDPP(kernel)
    for k in (1, 20, 100, 180, 199):
        drawn = dpp.sample(k, generator=generator(k))
        assert drawn.dtype == torch.int64
        assert len(drawn) == k
        assert (drawn.diff() > 0).all()
        assert math.isfinite(dpp.log_prob(drawn))
        included = dpp.inclusion(k)
        assert float(included.sum()) == pytest.approx(k, rel=1e-9)
        assert float(included.min()) > 0
        assert float(included.max()) <= 1 + 1e-9


def test_graded_kernel_is_drawn_to_relative_accuracy():
    """L = DAD over 24 decades: its plain rank is 5 of 9, that of A is 9."""
    d = np.logspace(0, -12, 9)
    inner = 0.7 * np.eye(9) + 0.3
    kernel = inner * d[:, None] * d
    dpp = KDPP(kernel)
    assert dpp.rank == 9
    for k in (3, 6, 8):  # minors of DAD are minors of A times ∏ d²
        weights = np.array(
            [np.linalg.det(inner[np.ix_(s, s)]) * np.prod(d[list(s)] ** 2) for s in slow.sets(9, k)]
        )
        law = weights / weights.sum()
        expected = slow.inclusion(law, 9, k).diagonal()
        torch.testing.assert_close(dpp.inclusion(k), torch.tensor(expected), rtol=1e-9, atol=0)
        assert dpp.log_normaliser(k) == pytest.approx(math.log(weights.sum()), rel=1e-12)
    singular = np.ones((9, 9)) * d[:, None] * d
    with pytest.raises(ValueError, match="k=2 exceeds numerical rank 1 of the 9 x 9 kernel"):
        KDPP(singular).sample(2, generator=generator())


def test_floor_lets_k_exceed_the_rank():
    kernel = low_rank(8, 3, 1)
    with pytest.raises(ValueError, match=r"k=5 exceeds numerical rank 3.*pass floor=1e-8"):
        KDPP(kernel).inclusion(5)
    dpp = KDPP(kernel, floor=1e-8)
    lifted = kernel + 1e-8 * np.trace(kernel) / 8 * np.eye(8)
    law = slow.k_dpp(lifted, 5)
    with pytest.warns(UserWarning, match="k=5 exceeds numerical rank 3"):
        included = dpp.inclusion(5)
    expected = torch.tensor(slow.inclusion(law, 8, 5).diagonal().copy())
    torch.testing.assert_close(included, expected, atol=1e-6, rtol=0)
    with pytest.warns(UserWarning, match="k=5 exceeds"):
        assert len(dpp.sample(5, generator=generator())) == 5
    with pytest.warns(UserWarning, match="k=5 exceeds"):
        found = dpp.log_prob(slow.sets(8, 5)[int(law.argmax())])
    assert found == pytest.approx(math.log(law.max()), abs=1e-5)
    assert len(dpp.sample(3, generator=generator())) == 3  # within the rank: no warning


def test_trivial_sizes_need_no_decomposition(monkeypatch):
    monkeypatch.setattr(module, "spectrum", None)
    dpp = KDPP(np.zeros((5, 5)))
    assert dpp.sample(0, generator=generator()).tolist() == []
    assert dpp.sample(5, generator=generator()).tolist() == [0, 1, 2, 3, 4]
    assert dpp.inclusion(5).tolist() == [1.0] * 5
    assert dpp.log_prob([]) == 0.0
    assert dpp.pair_inclusion(0).abs().sum() == 0


def test_same_seed_same_set_and_inputs_untouched():
    kernel = torch.tensor(rbf(30, 0, 0.01))
    before = kernel.clone()
    dpp = KDPP(kernel)
    assert torch.equal(dpp.sample(9, generator=generator(5)), dpp.sample(9, generator=generator(5)))
    assert torch.equal(kernel, before)


def test_any_memory_layout_and_dtype_is_taken():
    readonly = rbf(6, 0, 0.01)
    wide = np.kron(readonly, np.ones((2, 2)))[::2, ::2]
    readonly.setflags(write=False)
    expected = KDPP(rbf(6, 0, 0.01)).inclusion(2)
    for same in (readonly, wide, readonly.tolist(), readonly.astype(np.float32).astype(float)):
        torch.testing.assert_close(KDPP(same).inclusion(2), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        KDPP(readonly[::-1, ::-1]).inclusion(2), expected.flip(0), atol=1e-12, rtol=0
    )
    learnt = torch.nn.Parameter(torch.tensor(rbf(6, 0, 0.01)))
    for same in (learnt, learnt.detach().to_sparse()):
        assert torch.equal(KDPP(same).inclusion(2), expected)
        assert KDPP(same).log_prob([0, 4]) == KDPP(readonly).log_prob([0, 4])
        assert torch.equal(DPP(same).inclusion(), DPP(readonly).inclusion())
    # half precision holds three digits
    half = KDPP(readonly.astype(np.float16)).inclusion(2)
    assert half.dtype == torch.float64
    torch.testing.assert_close(half, expected, atol=5e-3, rtol=0)


def test_a_row_of_zeros_is_drawn_from_uniformly():
    """All items of w = 0 coincide: L = 11ᵀ + εI."""
    kernel = edge_kernel(np.eye(7), np.zeros(7))
    pairs = KDPP(kernel).pair_inclusion(3)
    expected = torch.full((7, 7), 3 * 2 / (7 * 6), dtype=torch.float64).fill_diagonal_(3 / 7)
    torch.testing.assert_close(pairs, expected, atol=1e-12, rtol=0)


def test_what_is_no_projection_is_caught():
    """The residual must weigh m − t; renormalising would hide eigenvectors gone wrong."""
    vectors = np.linalg.eigh(rbf(8, 0))[1]
    vectors[:, 3] *= 1.001
    with pytest.raises(ArithmeticError, match="must weigh 3 after 0 steps"):
        draw_projection(vectors, np.array([2, 3, 5]), generator())
    with pytest.raises(ArithmeticError, match="must weigh 3 after 0 steps"):
        _draw_items(torch.tensor(vectors[None][:, :, [2, 3, 5]]), generator())


def test_bad_input():
    good = rbf(6, 0, 0.01)
    for k in (-1, 7, 2.5, True):
        with pytest.raises(ValueError, match=r"`k` must be a whole number in \[0, 6\], got"):
            KDPP(good).sample(k, generator=generator())
    broken = good.copy()
    broken[1, 2] = math.inf
    with pytest.raises(ValueError, match=r"`L` must be finite, got inf at index \[1, 2\]"):
        KDPP(broken)
    with pytest.raises(ValueError, match=r"`L` must be square, got shape \(6, 5\)"):
        KDPP(good[:, :5])
    skew = good.copy()
    skew[0, 1] += 1e-3
    with pytest.raises(ValueError, match="`L` must be symmetric, got entries that differ"):
        KDPP(skew)
    skew[0, 1] = good[0, 1] + 1e-10  # rounding is averaged out silently
    KDPP(skew).sample(2, generator=generator())
    with pytest.raises(ValueError, match="not positive semi-definite: eigenvalue -"):
        KDPP(good - np.eye(6)).sample(2, generator=generator())
    with pytest.raises(ValueError, match="must have a positive eigenvalue, got 0 as the largest"):
        KDPP(np.zeros((4, 4))).sample(2, generator=generator())
    with pytest.raises(TypeError, match="`L` must be real"):
        KDPP(good.astype(complex))
    with pytest.raises(ValueError, match="`S` must be a set of items, got an index twice"):
        KDPP(good).log_prob([1, 1])
    with pytest.raises(ValueError, match=r"`S` must be a whole number in \[0, 5\], got 0\.5"):
        KDPP(good).log_prob([0.5])
    for bad in ("01", 3):
        with pytest.raises(TypeError, match=f"`S` must be a set of item indices, got {bad!r}"):
            KDPP(good).log_prob(bad)
    with pytest.raises(ValueError, match=r"k=2 exceeds numerical rank 1.*jitter eps"):
        KDPP(np.ones((4, 4))).sample(2, generator=generator())
    with pytest.raises(ValueError, match="`floor` must be a finite number > 0"):
        KDPP(good, floor=-1.0)
    assert len(KDPP(np.eye(5, dtype=np.int64)).sample(2, generator=generator())) == 2
