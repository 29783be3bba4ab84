"""Kernels in a lower precision, exact duplicates, and the smallest chain."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from prunus.dpp import DPP, KDPP, draw_once, greedy_map, sample_batch, swap_chain

LOW = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def rank_four(n: int = 60) -> torch.Tensor:
    x = torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x @ x.T


@pytest.mark.parametrize("dtype", LOW)
def test_rounded_kernels_keep_the_rank_of_the_exact_one(dtype, g):
    kernel = rank_four().to(dtype)  # rounding makes it indefinite, by far more than 1e-8
    assert float(torch.linalg.eigvalsh(kernel.double())[0]) < -1e-8
    assert KDPP(kernel).rank == 4 == KDPP(rank_four()).rank
    assert len(set(KDPP(kernel).sample(4, generator=g).tolist())) == 4
    assert len(set(draw_once(kernel, 3, generator=g).tolist())) == 3
    assert sample_batch(kernel[None], 4, generator=g).shape == (1, 4)
    assert len(greedy_map(kernel, 10)) == 4
    assert DPP(kernel).inclusion().shape == (60,)
    with pytest.raises(ValueError, match="exceeds numerical rank 4"):
        KDPP(kernel).sample(5, generator=g)


def test_numpy_kernels_count_by_their_own_dtype():
    assert KDPP(rank_four().numpy().astype(np.float32)).rank == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_asymmetry_of_the_last_place_is_averaged_out(dtype, g):
    kernel = (torch.eye(30) + 0.5).to(dtype)
    kernel[0, 1] += 2 * torch.finfo(dtype).eps
    assert len(KDPP(kernel).sample(7, generator=g)) == 7
    assert len(sample_batch(kernel[None], 7, generator=g)[0]) == 7


def test_what_is_no_rounding_stays_refused(g):
    kernel = torch.eye(30) + 0.5
    kernel[0, 1] += 1e-3
    with pytest.raises(ValueError, match="must be symmetric"):
        KDPP(kernel)
    with pytest.raises(ValueError, match="must be symmetric"):
        sample_batch(kernel[None], 7, generator=g)
    exact = torch.eye(30, dtype=torch.float64) + 0.5
    exact[0, 1] += 1e-7  # rounding in float32, an error in float64
    with pytest.raises(ValueError, match="must be symmetric"):
        KDPP(exact)
    indefinite = torch.eye(30)
    indefinite[0, 0] = -0.01
    with pytest.raises(ValueError, match="not positive semi-definite"):
        KDPP(indefinite).sample(3, generator=g)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        sample_batch(indefinite[None], 3, generator=g)


def test_complex_kernels_are_not_told_to_drop_their_phases():
    with pytest.raises(
        TypeError, match=r"^`L` must be real, got torch\.complex128\. Pass real num"
    ):
        KDPP(torch.eye(3, dtype=torch.complex128))


def test_duplicates_never_come_together():
    x = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x[4] = x[1] * 1.7  # the same direction
    kernel = x @ x.T
    dpp = KDPP(kernel)
    assert dpp.log_prob([1, 4]) == -math.inf
    assert dpp.log_prob([0, 1, 4]) == -math.inf
    assert DPP(kernel).log_prob([1, 4]) == -math.inf
    total = sum(
        math.exp(dpp.log_prob([i, j])) for i in range(6) for j in range(i) if {i, j} != {1, 4}
    )
    assert total == pytest.approx(1, abs=1e-12)


def test_units_do_not_make_a_set_singular():
    scale = torch.logspace(-60, 60, 5, dtype=torch.float64)
    kernel = (torch.eye(5, dtype=torch.float64) + 0.5) * torch.outer(scale, scale)
    whole = torch.linalg.slogdet(torch.eye(5, dtype=torch.float64) + 0.5).logabsdet
    assert KDPP(kernel).log_normaliser(5) == pytest.approx(float(whole + 2 * scale.log().sum()))
    pair = kernel[[0, 1]][:, [0, 1]] / scale[:2].outer(scale[:2])
    want = float(torch.linalg.det(pair).log() + 2 * scale[:2].log().sum())
    got = KDPP(kernel).log_prob([0, 1]) + KDPP(kernel).log_normaliser(2)
    assert got == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("start", [[0], [1]])
def test_one_of_two_items_has_the_law_at_any_number_of_steps(steps, start):
    kernel = torch.tensor([[3.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    g = torch.Generator().manual_seed(5)
    draws = 2000
    hits = sum(
        int(swap_chain(kernel, 1, steps=steps, start=start, generator=g)[0] == 0)
        for _ in range(draws)
    )
    # 5 standard deviations of Binomial(2000, 3/4): false alarm 6e-7; the chain that always swaps
    # between equal items would give 0 or 2000.
    assert abs(hits - 0.75 * draws) < 5 * math.sqrt(draws * 0.75 * 0.25)
    assert swap_chain(kernel, 1, steps=0, start=start, generator=g).tolist() == start


def test_two_zero_items_have_no_law(g):
    with pytest.raises(ValueError, match=r"zero on both items. Add a jitter"):
        swap_chain(torch.zeros(2, 2), 1, generator=g)


@pytest.mark.parametrize("dtype", [torch.float64, *LOW])
@pytest.mark.parametrize(("k", "floor"), [(2, None), (3, None), (4, 1e-6)])
def test_probabilities_of_all_sets_sum_to_one_in_every_precision(dtype, k, floor):
    """Rounding raises the rank of the entries as they come; no set may be likelier for it."""
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    dpp = KDPP((x @ x.T).to(dtype), floor=floor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if floor else "error")  # k exceeds the rank
        each = {s: math.exp(dpp.log_prob(s)) for s in itertools.combinations(range(8), k)}
        single = dpp.inclusion(k)
    assert sum(each.values()) == pytest.approx(1, abs=1e-4)
    of_sets = [sum(p for s, p in each.items() if i in s) for i in range(8)]
    torch.testing.assert_close(single, torch.tensor(of_sets).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, *LOW])
def test_a_dpp_of_random_size_takes_rounding_for_zero(dtype, scale, g):
    """Beside I, what rounding leaves of vanishing eigenvalues would be items, or negative ones."""
    if dtype == torch.float16 and scale > 1:
        scale = 1e3  # in its range
    kernel = (rank_four() * scale).to(dtype)
    assert float(torch.linalg.eigvalsh(kernel.double())[0]) < 0
    dpp = DPP(kernel)
    single, both = dpp.inclusion(), dpp.pair_inclusion()
    assert float(single.min()) >= 0
    assert float(single.max()) <= 1
    assert float(both.min()) >= 0
    values = torch.linalg.eigvalsh(rank_four() * scale)[-4:]
    close = 1e-9 if dtype == torch.float64 else 0.3 * float((values / (1 + values)).sum())
    assert float(single.sum()) == pytest.approx(float((values / (1 + values)).sum()), abs=close)
    assert max(len(dpp.sample(generator=g)) for _ in range(20)) <= 4


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e-12, 1e-3])
def test_a_small_kernel_keeps_the_digits_of_its_probabilities(scale):
    kernel = rank_four(6) * scale
    # L − L² + L³ … without the difference from I: four terms are exact to a share of trace⁴.
    exact = sum((-1) ** i * torch.linalg.matrix_power(kernel, i + 1) for i in range(4))
    short = float(kernel.diagonal().sum()) ** 4
    assert torch.allclose(DPP(kernel).inclusion(), exact.diagonal(), rtol=1e-12 + short, atol=0)


def test_rare_items_beside_common_ones_have_no_negative_probability():
    size = torch.logspace(-12, 3, 12, dtype=torch.float64)
    kernel = (torch.eye(12, dtype=torch.float64) + 0.5) * torch.outer(size, size)
    single = DPP(kernel).inclusion()
    assert bool((single > 0).all())
    assert bool((single <= kernel.diagonal() / (1 + kernel.diagonal()) + 1e-15).all())
