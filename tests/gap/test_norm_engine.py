"""The norm engine: exact counts, reference values, coverage, and what must not be covered."""

import math

import numpy as np
import pytest
import scipy.stats as stats

from prunus.theory.gap import concentration as c
from prunus.theory.gap import laws, layer_norms
from prunus.theory.gap.walks import ORDERS, log_walk_table, trace_moment, walk_weights
from reference.gap import energy_of_smallest, walk_count


@pytest.mark.parametrize(
    ("n", "m", "p", "value"),
    [
        (3, 4, 1, 12),
        (3, 4, 2, 96),
        (3, 4, 3, 1032),
        (3, 4, 4, 13392),
        (3, 4, 5, 200880),
        (1, 1, 6, 10395),
        (10, 10, 10, 5893341252825600),
    ],
)
def test_trace_moments(n, m, p, value):
    assert trace_moment(n, m, p) == value


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5])
def test_walk_weights_count_the_walks(p):
    """Negative control: moving one walk of the count elsewhere is seen."""
    counted = walk_count(p)
    table = walk_weights(p)
    found = {(a + 1, b + 1): w for a, row in enumerate(table) for b, w in enumerate(row) if w}
    assert found == counted
    wrong = dict(counted)
    wrong[1, 1] += 1
    assert found != wrong


def test_sums_of_logarithms_are_those_of_scipy():
    """To the last bit, on the terms that `profile_norm` adds, −∞ among them."""
    for p in ORDERS:
        terms = log_walk_table()[p] + 0.3 * np.arange(p)[:, None] - 0.7 * np.arange(p)
        assert c._log_sum(terms) == c.special.logsumexp(terms)
    assert c._log_sum(np.zeros((3, 4))) == c.special.logsumexp(np.zeros((3, 4)))


def test_walk_weights_known():
    assert sum(map(sum, walk_weights(5))) == 4742
    assert walk_weights(6)[2][2] == 862
    assert walk_weights(10)[4][4] == 219386


@pytest.mark.parametrize("p", [p for p in ORDERS if p <= 20])
def test_shipped_table_is_the_generated_one(p):
    exact = np.array([[math.log(w) if w else -math.inf for w in row] for row in walk_weights(p)])
    np.testing.assert_allclose(log_walk_table()[p], exact, rtol=1e-14)
    n, m = 7, 11  # the weights reproduce the trace moment, here with falling factorials of 7 and 11
    total = sum(
        w * math.perm(n, a + 1) * math.perm(m, b + 1)
        for a, row in enumerate(walk_weights(p))
        for b, w in enumerate(row)
    )
    assert total == trace_moment(n, m, p)


REFERENCE = [
    (laws.uniform(1), 10, 10, 1, 4.311138, 4.084705, 3.451989),
    (laws.uniform(1), 10, 10, 0.01, 1.523896, 1.277550, 0.684866),
    (laws.uniform(1), 100, 100, 0.1, 4.670257, 4.491654, 4.064005),
    (laws.uniform(1), 1000, 1000, 0.1, 12.554521, 12.397652, 12.029046),
    (laws.uniform(1), 300, 100, 0.01, 2.894798, 2.718828, 2.323936),
    (laws.normal(1), 10, 10, 0.1, 4.366491, 3.876208, 2.632148),
    (laws.normal(1), 100, 100, 1, 20.885223, 20.609087, 19.865875),
    (laws.normal(1), 100, 100, 0.1, 8.785104, 8.381431, 7.433940),
    (laws.normal(1), 1000, 1000, 0.1, 22.435713, 22.082163, 21.268733),
    (laws.normal(1), 300, 100, 0.1, 11.096707, 10.708667, 9.796913),
]


@pytest.mark.parametrize(("law", "n", "m", "q", "tight", "loose", "mean"), REFERENCE)
def test_reference_thresholds(law, n, m, q, tight, loose, mean):
    logs = laws.pruned_moments(law, "random", 1 - q)
    assert c.iid_norm(n, m, logs, 0.01).value == pytest.approx(tight, rel=1e-6)
    assert c.iid_norm(n, m, logs, 0.05).value == pytest.approx(loose, rel=1e-6)
    assert c.expected_norm(n, m, logs) == pytest.approx(mean, rel=1e-6)
    assert c.iid_norm(m, n, logs, 0.05).value == pytest.approx(loose, rel=1e-6)  # transpose
    if min(n, m) >= 20 and law.kind == "uniform":
        bernstein = c.matrix_bernstein(n, m, max(n, m) * q / 3, 1, 0.05)
        assert loose < bernstein


def test_reference_thresholds_of_other_routes():
    rescaled = laws.pruned_moments(laws.uniform(1), "random_rescaled", 0.9)
    assert c.iid_norm(100, 100, rescaled, 0.01).value == pytest.approx(4.777012, rel=1e-6)
    kept = laws.kept_moments(laws.uniform(1), "random_rescaled", 0.9)
    assert c.iid_norm(100, 100, kept, 0.01).value == pytest.approx(12.710342, rel=1e-6)
    sparse = laws.pruned_moments(laws.normal(1), "random_rescaled", 0.2)
    assert c.iid_norm(100, 100, sparse, 0.01).value == pytest.approx(48.333490, rel=1e-6)
    assert c.profile_norm(50, 40, 1, 8, 10, 0.05) == pytest.approx(7.930346, rel=1e-6)
    for n, rho, value in [(1000, 0.1, 26.35), (5000, 1, 147.06), (20000, 1, 288.76)]:
        assert c.chernoff_norm(n, n, rho, 0.01) == pytest.approx(value, rel=5e-3)
    assert c.matrix_bernstein(100, 100, 10, 1, 0.01) == pytest.approx(17.756868, rel=1e-6)
    assert c.davidson_szarek(1000, 1000, 1, 0.01) == pytest.approx(66.280407, rel=1e-6)
    t = layer_norms.magnitude_threshold(laws.uniform(1), 10**4, 10**3, 1e-3)
    assert t == pytest.approx(0.10948622, rel=1e-6)
    value = layer_norms.layer_norm(
        100, 100, laws.uniform(1), 0.009, method="magnitude", threshold=t
    ).value
    assert value == pytest.approx(0.52901714, rel=1e-6)
    heavy = c.heavy_tail(1000, 1000, 1, 3, 0.05)
    assert heavy == pytest.approx(218, rel=5e-3)


def test_scales_of_the_moment_class():
    dense, _ = c.moment_class(laws.dense_moments(laws.uniform(1)))
    np.testing.assert_allclose(np.exp(dense), math.sqrt(1 / 3), rtol=1e-9)
    masked, _ = c.moment_class(laws.pruned_moments(laws.uniform(1), "random", 0.9))
    np.testing.assert_allclose(np.exp(masked), math.sqrt(0.2), rtol=1e-9)


def test_second_order_moment_is_the_true_one():
    """E Tr (D Dᵀ)² = nm·3ρ + nm(m − 1 + n − 1)ρ² for masked standard Gaussians, from scratch."""
    n, m, rho = 6, 9, 0.3
    logs = laws.pruned_moments(laws.normal(1), "random", 1 - rho)
    bound = c._log_trace_moments(n, m, logs)[0]
    exact = n * m * 3 * rho + n * m * (m - 1 + n - 1) * rho**2
    assert math.exp(bound) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("law", [laws.normal(0.7), laws.truncated_normal(1.0, 1.5)])
def test_truncated_moments_against_quadrature(law):
    for cut in (0.01, 0.4, 1.2):
        grid = np.linspace(0, cut, 20001)
        density = stats.norm.pdf(grid, scale=law.parent)
        if law.kind == "truncated_normal":
            density = density / math.erf(law.bound / law.parent / math.sqrt(2))
        for k in (1, 2, 10, 64):
            # Simpson; scaled by the cut so that high powers stay in range
            values = 2 * density * (grid / cut) ** (2 * k)
            h = grid[1]
            simpson = (
                h / 3 * (values[0] + values[-1] + 4 * values[1::2].sum() + 2 * values[2:-1:2].sum())
            )
            exact = math.log(simpson) + 2 * k * math.log(cut)
            assert laws.below(law, cut)[k - 1] == pytest.approx(exact, abs=1e-7)


def test_sum_of_copies_of_normals():
    one = laws.dense_moments(laws.normal(1))
    np.testing.assert_allclose(
        laws.sum_of_copies(one, 9), laws.dense_moments(laws.normal(3)), rtol=1e-12
    )


def test_energy_of_the_smallest():
    assert laws.energy_below(laws.uniform(1), 10**4, 10**3) == pytest.approx(
        1.00270117e-3, rel=1e-8
    )
    assert laws.energy_below(laws.normal(1), 10**4, 5000) == pytest.approx(0.0713524487, rel=1e-7)
    assert laws.energy_below(laws.normal(1), 100, 50) == pytest.approx(0.0739725894, rel=1e-7)
    law, rng = laws.truncated_normal(1.0, 1.0), np.random.default_rng(0)

    def draw(rng, size):
        return stats.truncnorm.rvs(-1, 1, size=size, random_state=rng)

    mean, error = energy_of_smallest(draw, 12, 3000, 40, rng)
    # four standard errors: false alarm below 1e-4; dropping one weight moves it by 20 errors
    assert abs(laws.energy_below(law, 40, 12) * law.variance - mean) < 4 * error
    assert abs(laws.energy_below(law, 40, 11) * law.variance - mean) > 8 * error


def draw_layer(method, law, n, m, p, rng):
    weight = (
        rng.uniform(-law.bound, law.bound, (n, m))
        if law.kind == "uniform"
        else rng.normal(0, math.sqrt(law.variance), (n, m))
    )
    if method == "magnitude":
        k = n * m - round(p * n * m)
        mask = np.ones(n * m, dtype=bool)
        mask[np.argsort(np.abs(weight).ravel(), kind="stable")[:k]] = False
        return weight, weight * mask.reshape(n, m)
    mask = rng.random((n, m)) < p
    return weight, weight * mask / (p if method == "random_rescaled" else 1)


SETTINGS = [
    (method, kind, n, m, p)
    for method in ("random", "random_rescaled", "magnitude")
    for kind in ("uniform", "normal")
    for n, m, p in [(1, 7, 0.5), (7, 1, 0.9), (2, 2, 0.5), (12, 30, 0.9), (25, 25, 0.6)]
]


def count_violations(method, law, n, m, p, delta, draws, rng, factor=1.0):
    total, k = n * m, n * m - round(p * n * m)
    threshold = (
        layer_norms.magnitude_threshold(law, total, k, delta / 2) if method == "magnitude" else None
    )
    share = delta / 2 if method == "magnitude" else delta
    bound = layer_norms.layer_norm(
        n, m, law, share, method=method, density=p, threshold=threshold
    ).value
    pairs = [draw_layer(method, law, n, m, p, rng) for _ in range(draws)]
    norms = np.array([np.linalg.norm(w - v, 2) for w, v in pairs])
    return int((norms > factor * bound).sum()), bound, norms


@pytest.mark.parametrize(("method", "kind", "n", "m", "p"), SETTINGS)
def test_thresholds_cover(method, kind, n, m, p):
    """400 draws at δ = 0.1: more violations than the 99.99997 % binomial quantile fail."""
    rng = np.random.default_rng(abs(hash((n, m, int(10 * p)))) % 2**32)
    law = laws.uniform(1) if kind == "uniform" else laws.normal(1)
    violations, bound, norms = count_violations(method, law, n, m, p, 0.1, 400, rng)
    limit = stats.binom.isf(1e-6 / len(SETTINGS), 400, 0.1)
    assert violations <= limit, f"false-alarm probability {1e-6 / len(SETTINGS):.1e}"
    # negative control: 0.9 × the measured (1 − 2δ) quantile as a bound is caught
    low = 0.9 * np.quantile(norms, 0.8)
    assert (norms > low).sum() > stats.binom.isf(0.001, 400, 0.1)
    assert bound > np.quantile(norms, 0.9)


def test_exact_size_masks_are_covered():
    rng, n, m, k = np.random.default_rng(5), 20, 30, 60
    logs = laws.pruned_moments(laws.uniform(1), "random", 1 - k / (n * m))
    bound = c.iid_norm(n, m, logs, 0.1).value
    violations = 0
    for _ in range(400):
        d = np.zeros(n * m)
        d[rng.permutation(n * m)[:k]] = rng.uniform(-1, 1, k)
        violations += np.linalg.norm(d.reshape(n, m), 2) > bound
    assert violations <= stats.binom.isf(1e-6, 400, 0.1)


@pytest.mark.parametrize("delta", [0.3, 0.01, 1e-9])
def test_concentration_of_one_entry_is_covered(delta):
    """A matrix of one entry ±1 among many: its norm is what the bound is about, nearly attained."""
    assert c.concentrated_norm(2.0, 3.0, delta) == pytest.approx(
        2 + 3 * math.sqrt(2 * math.log(1 / delta)), rel=1e-12
    )
    # a sum of n signs over √n tends to a normal, of which the bound covers the tail
    n = 400
    tail = math.sqrt(2 * math.log(1 / delta))
    assert stats.binom.sf(math.floor((tail * math.sqrt(n) + n) / 2), n, 0.5) <= delta


@pytest.mark.parametrize(("total", "kept"), [(10, 3), (100, 50), (7, 0), (7, 7)])
def test_exact_sizes_pay_the_probability_of_their_count(total, kept):
    chance = stats.binom.pmf(kept, total, kept / total)
    assert layer_norms.fixed_size_delta(0.05, total, kept) == pytest.approx(0.05 * chance, rel=1e-6)


def test_monotone_in_everything():
    law = laws.uniform(1)
    base = layer_norms.layer_norm(30, 20, law, 0.05, density=0.9).value
    assert layer_norms.layer_norm(30, 20, law, 0.05, density=0.8).value >= base
    assert layer_norms.layer_norm(30, 20, law, 0.01, density=0.9).value >= base
    assert layer_norms.layer_norm(31, 20, law, 0.05, density=0.9).value >= base
    assert layer_norms.layer_norm(30, 21, law, 0.05, density=0.9).value >= base
    doubled = layer_norms.layer_norm(30, 20, laws.uniform(2), 0.05, density=0.9).value
    assert doubled == pytest.approx(2 * base, rel=1e-12)
    assert layer_norms.layer_norm(30, 20, law, 0.05, density=1.0).value == 0


def test_curve_is_the_single_calls():
    densities = [0.1, 0.5, 0.99]
    logs = np.stack([laws.pruned_moments(laws.normal(1), "random", p) for p in densities])
    curve = c.iid_norm_curve(40, 60, logs, 0.05)
    single = [c.iid_norm(40, 60, row, 0.05).value for row in logs]
    np.testing.assert_allclose(curve, single, rtol=1e-13)


def test_tiny_delta_and_large_sides_stay_finite():
    logs = laws.pruned_moments(laws.uniform(1), "random", 0.9)
    assert 0 < c.iid_norm(100, 100, logs, 1e-300).value < 1e4
    large = layer_norms.layer_norm(10**5, 10**5, laws.normal(1e-3), 0.01, density=0.9)
    assert large.route == "Chernoff"
    assert (
        large.value
        < c.iid_norm(
            10**5, 10**5, laws.pruned_moments(laws.normal(1e-3), "random", 0.9), 0.01
        ).value
    )


def test_bad_laws_are_refused():
    with pytest.raises(ValueError, match=r"no such distribution: variance 2\.0"):
        laws.moments_law(2.0, 1.0)
    with pytest.raises(ValueError, match=r"no such distribution: fourth moment 0\.5"):
        laws.moments_law(1.0, 10.0, 0.5)
    with pytest.raises(ValueError, match="whole law"):
        laws.quantile(laws.moments_law(1.0, 2.0), 0.5)
    with pytest.raises(ValueError, match="`delta` must lie"):
        layer_norms.layer_norm(3, 3, laws.uniform(1), 1.5, density=0.5)
    with pytest.raises(ValueError, match="`density` must lie"):
        layer_norms.layer_norm(3, 3, laws.uniform(1), 0.5, method="random_rescaled", density=0.0)
