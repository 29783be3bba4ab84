"""Conjugate gradients against factorised systems: the excess, its bound, and who ends up where."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.compensation import COMPENSATIONS, LeastSquares, least_squares, output_error
from prunus.compensation.conjugate import NotDefinite, conjugate_gradients, costs_less
from prunus.compensation.descent import System, descend
from prunus.compensation.exact import cost_of, solve_exactly
from prunus.granularity import NM
from prunus.layer import Layer

F64 = torch.float64
RIDGE = 1e-8


def inputs(kind, n, seed, samples=400):
    """Samples whose second moments are tame, correlated, decaying, singular or badly scaled."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, n, generator=g, dtype=F64)
    mix = torch.randn(n, n, generator=g, dtype=F64)
    if kind == "correlated":
        return x @ mix + 1.0
    if kind == "decaying":
        q = torch.linalg.qr(mix)[0]
        return x @ (q * torch.arange(1, n + 1).to(F64).pow(-1.5)) @ q.T
    if kind == "singular":
        return (x @ mix)[: n // 2]
    if kind == "scaled":
        return x @ mix * torch.logspace(-5, 5, n, dtype=F64)
    if kind == "dead":
        return (x @ mix).relu() * (torch.arange(n) % 5 > 0)
    return x


KINDS = ["tame", "correlated", "decaying", "singular", "scaled", "dead"]


def case(kind, n, share, seed, rows=12):
    g = torch.Generator().manual_seed(1000 + seed)
    x = inputs(kind, n, seed)
    w = torch.randn(rows, n, generator=g, dtype=F64)
    mask = torch.rand(rows, n, generator=g) < share
    mask[0], mask[1] = False, True
    return x, w, x.T @ x / len(x), mask


def objective(fit, w, gram, mask):
    """J of every row: the layer error and the ridge's part."""
    change = ((fit.weight - w) * mask).square().sum(1)
    return fit.after + RIDGE * gram.diagonal().mean() * change


@pytest.mark.parametrize("kind", KINDS)
@given(
    n=st.sampled_from([3, 17, 60]),
    share=st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.97]),
    rtol=st.sampled_from([1e-1, 1e-3, 1e-6]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_the_excess_is_below_its_bound_and_the_bound_is_as_asked(kind, n, share, rtol, seed):
    _, w, gram, mask = case(kind, n, share, seed)
    fit = least_squares(w, gram, mask, solver="cg", rtol=rtol)
    best = least_squares(w, gram, mask, solver="cholesky")
    assert fit.solver == "cg"
    assert best.solver == "cholesky"
    assert (fit.weight[~mask] == 0).all()
    # Both objectives carry the rounding of differences between numbers as large as the output's
    # power; that is what the solver calls nothing, too.
    rounding = 1e-12 * (w.square() @ gram.diagonal())
    reached, least = objective(fit, w, gram, mask), objective(best, w, gram, mask)
    assert (reached - least <= fit.excess + rounding).all()
    assert fit.excess.sum() <= rtol * reached.sum() + rounding.sum()
    assert (reached <= fit.before + rounding).all()
    torch.testing.assert_close(fit.before, best.before, rtol=1e-9, atol=float(rounding.sum()))


def test_a_bound_that_says_less_would_be_seen():
    """The control: the same comparison turns down a hundredth of the bound."""
    broken = 0
    for seed in range(5):
        _, w, gram, mask = case("correlated", 60, 0.5, seed)
        fit = least_squares(w, gram, mask, solver="cg", rtol=1e-2)
        best = least_squares(w, gram, mask, solver="cholesky")
        gap = objective(fit, w, gram, mask) - objective(best, w, gram, mask)
        broken += int((gap > fit.excess / 100 + 1e-12 * (w.square() @ gram.diagonal())).any())
    assert broken == 5


@pytest.mark.parametrize("intercept", [False, True])
def test_aims_at_the_dense_outputs_through_the_cross_moment(intercept):
    x, w, _, mask = case("correlated", 40, 0.5, 3)
    pruned = x + 0.3 * x.roll(1, dims=1)
    moments = {
        "gram": pruned.T @ pruned / len(x),
        "cross": x.T @ pruned / len(x),
        "dense_gram": x.T @ x / len(x),
    }
    more = {"mean": pruned.mean(0), "dense_mean": x.mean(0), "bias": torch.zeros(12, dtype=F64)}
    given = {**moments, **(more | {"intercept": True} if intercept else {})}
    fit = least_squares(w, mask=mask, solver="cg", rtol=1e-9, **given)
    best = least_squares(w, mask=mask, solver="cholesky", **given)
    torch.testing.assert_close(fit.after, best.after, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fit.weight, best.weight, rtol=1e-2, atol=1e-3)
    # rows that keep all their weights still have something to make up for
    assert not torch.equal(fit.weight[1], w[1])
    measured = (x @ w.T - pruned @ fit.weight.T - (fit.bias if intercept else 0)).square().mean(0)
    torch.testing.assert_close(measured, fit.after, rtol=1e-6, atol=1e-9)


def test_groups_nodes_and_blocks_of_m():
    x, w, gram, _ = case("correlated", 24, 0.5, 5)
    grams = torch.stack([gram, inputs("decaying", 24, 6).T @ inputs("decaying", 24, 6)])
    layer = Layer(name="conv", weight=w, bias=None, groups=2, gram=grams, samples=1)
    g = torch.Generator().manual_seed(0)
    masks = {
        "node": (torch.rand(1, 24, generator=g) < 0.5).expand(12, 24).clone(),
        "edge": torch.rand(12, 24, generator=g) < 0.5,
    }
    pools = NM(2, 4).pool("fc", torch.rand(12, 24, generator=g))
    kept = pools.argsort(1, descending=True).argsort(1) < 2
    masks["2:4"] = NM(2, 4).unpool(kept, (12, 24))
    for mask in masks.values():
        fitted = LeastSquares(solver="cg", rtol=1e-4).fit(layer, mask)
        best = LeastSquares(solver="cholesky").fit(layer, mask)
        assert best[3] == {}
        assert 0 <= fitted[3]["excess"] <= 1e-4
        error = output_error(layer, fitted[0], None)
        assert error <= (1 + 1e-4) * output_error(layer, best[0], None)


def test_rows_that_the_steps_do_not_serve_are_factorised(monkeypatch):
    module = importlib.import_module("prunus.compensation.conjugate")
    monkeypatch.setattr(module, "ROUNDS", 0)
    monkeypatch.setattr(module, "LATER_STEPS", 1)
    _, w, gram, mask = case("decaying", 60, 0.5, 2)
    fit = least_squares(w, gram, mask, solver="cg", rtol=1e-9)
    best = least_squares(w, gram, mask, solver="cholesky")
    torch.testing.assert_close(fit.weight, best.weight)
    assert (fit.excess == 0).all()


def test_steps_on_the_kept_weights_alone_reach_the_bound(monkeypatch):
    module = importlib.import_module("prunus.compensation.conjugate")
    monkeypatch.setattr(module, "ROUNDS", 0)
    for kind in KINDS:
        _, w, gram, mask = case(kind, 60, 0.5, 4)
        masked = w * mask
        before = (((w - masked) @ gram) * (w - masked)).sum(1)
        damping = RIDGE * float(gram.diagonal().mean())
        power = w.square() @ gram.diagonal()
        target = (w - masked) @ gram
        found = conjugate_gradients(
            gram, target, mask, before, power, damping=damping, rtol=1e-3, lost=w - masked
        )
        assert found.met.all(), kind
        exact, _, _ = solve_exactly(gram, target, mask, RIDGE, full_rows=False)
        least = before - (exact * target).sum(1)
        assert (found.reached - least <= found.bound + 1e-12 * power).all(), kind
        assert (found.change[~mask] == 0).all()


def test_the_choice_is_by_cost_and_small_layers_are_factorised_as_ever():
    half = torch.arange(784)[None].add(torch.arange(784)[:, None]) % 2 == 0  # two masks: shared
    assert cost_of(half, full_rows=False) < 2.1 * (392**3 / 3 + 392 * 392**2)
    g = torch.Generator().manual_seed(0)
    for n, share in [(300, 0.5), (784, 0.2), (784, 0.5), (784, 0.57), (784, 0.8), (1024, 0.5)]:
        mask = torch.rand(n, n, generator=g) < share
        assert not costs_less(n, n, cost_of(mask, full_rows=False)), (n, share)
    mask = torch.rand(2048, 2048, generator=g) < 0.5
    assert costs_less(2048, 2048, cost_of(mask, full_rows=False))
    nodes = mask[:1].expand(2048, 2048)
    assert not costs_less(2048, 2048, cost_of(nodes, full_rows=False))


def test_auto_takes_either_by_what_they_cost(monkeypatch):
    module = importlib.import_module("prunus.compensation.least_squares")
    _, w, gram, mask = case("correlated", 40, 0.5, 7)
    exact = least_squares(w, gram, mask, solver="cholesky")
    auto = least_squares(w, gram, mask)
    assert auto.solver == "cholesky"
    assert torch.equal(auto.weight, exact.weight)
    monkeypatch.setattr(module, "costs_less", lambda *_: True)
    assert least_squares(w, gram, mask).solver == "cg"
    # without a factor for all inputs, each row's own block is tried, as ever
    monkeypatch.setattr(module, "conjugate_gradients", _refuse)
    again = least_squares(w, gram, mask)
    assert again.solver == "cholesky"
    assert torch.equal(again.weight, exact.weight)
    with pytest.raises(ValueError, match="not positive definite even with ridge 1e-04"):
        least_squares(w, gram, mask, solver="cg")


def _refuse(*_, **__):
    raise NotDefinite


def test_bad_input():
    _, w, gram, mask = case("tame", 17, 0.5, 0)
    with pytest.raises(ValueError, match="`rtol` must be"):
        least_squares(w, gram, mask, solver="cg", rtol=0.0)
    with pytest.raises(ValueError, match="`rtol` must be"):
        LeastSquares(rtol=float("nan"))
    with pytest.raises(ValueError, match=r"auto, cg, cholesky, pinv"):
        COMPENSATIONS["LeastSquares"](solver="lu")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_units_do_not_matter(scale):
    _, w, gram, mask = case("correlated", 60, 0.5, 8)
    one = least_squares(w, gram, mask, solver="cg")
    other = least_squares(w, gram * scale, mask, solver="cg")
    torch.testing.assert_close(other.after / scale, one.after, rtol=1e-2, atol=0)
    assert other.excess.sum() <= 1e-3 * other.after.sum()


def test_float32_weights_on_one_row_and_one_input():
    for shape in [(1, 1), (1, 9), (5, 1)]:
        x = torch.randn(50, shape[1], dtype=F64, generator=torch.Generator().manual_seed(1))
        w = torch.ones(shape, dtype=torch.float32)
        for mask in (torch.ones(shape), torch.zeros(shape), torch.arange(shape[1]) % 2 == 0):
            mask = mask.bool().expand(shape).clone()
            fit = least_squares(w, x.T @ x / 50, mask, solver="cg")
            best = least_squares(w, x.T @ x / 50, mask, solver="cholesky")
            assert fit.weight.dtype == torch.float32
            torch.testing.assert_close(fit.after, best.after, rtol=1e-3, atol=1e-12)


@pytest.fixture(params=[False, True], ids=["single", "half"])
def half(request, monkeypatch):
    """Steps in single precision, and in half whether or not this processor is quick at it."""
    module = importlib.import_module("prunus.compensation.descent")
    monkeypatch.setattr(module, "multiplies_half", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("kind", KINDS)
def test_either_precision_reaches_the_bound_and_says_no_less_than_is_true(kind, rtol, half):
    _, w, gram, mask = case(kind, 60, 0.5, 11, rows=80)
    assert (System.of(gram + torch.eye(60, dtype=F64), 1.0).half is not None) == half
    fit = least_squares(w, gram, mask, solver="cg", rtol=rtol)
    best = least_squares(w, gram, mask, solver="cholesky")
    reached, least = objective(fit, w, gram, mask), objective(best, w, gram, mask)
    rounding = 1e-12 * (w.square() @ gram.diagonal())
    assert (reached - least <= fit.excess + rounding).all()
    assert fit.excess.sum() <= rtol * reached.sum() + rounding.sum()
    assert (reached <= fit.before + rounding).all()


def test_what_the_steps_leave_is_what_they_say_whatever_they_multiply_in(half):
    """Half precision alone would end where its recurrence, not the residual, is small."""
    _, w, gram, mask = case("tame", 60, 0.5, 12, rows=80)
    matrix = gram / gram.diagonal().mean() + 1e-3 * torch.eye(60, dtype=F64)
    system, removed = System.of(matrix, 1e-3), 1 - mask.to(F64)
    rest, none = -w * removed, torch.zeros(80, dtype=F64)
    floor = torch.full((80,), 1e-6, dtype=F64)
    found = descend(system, rest, removed, none, floor, 1e-8)
    x = found.x.double()
    left = (rest - (x * system.scale) @ system.inverse) * removed
    assert ((left @ matrix) * left).sum() <= floor.sum()
    assert ((rest @ matrix) * rest).sum() > 1e6 * floor.sum()
    exact = (x * system.scale) @ system.inverse * system.scale
    torch.testing.assert_close(found.product.double(), exact, rtol=1e-4, atol=1e-4)
    assert (found.x[mask] == 0).all()


def test_a_matrix_without_a_factor_has_no_system():
    assert System.of(torch.diag(torch.tensor([1.0, -1.0], dtype=F64)), 1e-8) is None


@pytest.mark.parametrize("kind", [*KINDS, "one sign"])
def test_a_product_in_low_precision_allows_for_what_it_rounds(kind, half):
    """Where all of U has one sign and rounds downwards, its errors add up over a row."""
    n = 512
    g = torch.Generator().manual_seed(3)
    if kind == "one sign":
        matrix = torch.linalg.inv(0.4981 * torch.eye(n, dtype=F64) + 0.5019)
        rows = torch.ones(2, n, dtype=F64)
    else:
        x = inputs(kind, n, 13)
        matrix = x.T @ x / len(x)
        matrix = matrix / matrix.diagonal().mean() + 1e-2 * torch.eye(n, dtype=F64)
        rows = torch.randn(64, n, generator=g, dtype=F64)
    system = System.of(matrix, 1e-2)
    exact = ((rows @ system.inverse) * rows).sum(1)
    said = system.by_inverse(rows)
    assert (said >= exact).all()
    s = rows / system.scale
    assert (said <= exact + 0.1 * system.spread * s.square().sum(1)).all()
    if half and kind == "one sign":  # a negative control: the product alone says too little
        alone = ((s.bfloat16() @ system.half.T) * s).sum(1)
        assert (alone < exact - 0.1 * s.square().sum(1)).all()
