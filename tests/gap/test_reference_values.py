"""Reference values worked out apart from this implementation, and tables against their meaning."""

import itertools
import math

import numpy as np
import pytest
import torch

from prunus.reproduce.gap_networks import bernstein_rule, walk_rule
from prunus.theory.gap import ACTIVATIONS, custom_activation, laws, layer_norms
from prunus.theory.gap import concentration as c
from prunus.theory.gap.apriori import gaussian_scale, sup_bound
from prunus.theory.gap.convolution import Geometry, conv_norm
from prunus.theory.gap.drawn_layers import _order_maximum
from prunus.theory.gap.inverse import minimal_width
from prunus.theory.gap.mean_square import mean_field, water_filling
from prunus.theory.gap.network import global_densities, random_network
from prunus.theory.gap.norms import spectral_norm
from prunus.theory.gap.walks import ORDERS, _log, log_walk_table, walk_weights
from reference.gap import conv_matrix


def matrix(n, m, shift):
    return torch.sin(shift + torch.arange(n * m, dtype=torch.float64)).reshape(n, m) / math.sqrt(m)


KERNEL = torch.sin(1 + torch.arange(108, dtype=torch.float64)).reshape(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("order", "counts"),
    [
        (3, {(1, 1): 15, (1, 2): 9, (2, 1): 9, (1, 3): 1, (3, 1): 1, (2, 2): 3}),
        (4, {(1, 1): 105, (1, 2): 87, (1, 3): 18, (1, 4): 1, (2, 2): 53, (2, 3): 6, (3, 2): 6,
             (2, 1): 87, (3, 1): 18, (4, 1): 1}),
    ],
)  # fmt: skip
def test_walk_counts(order, counts):
    found = walk_weights(order)
    nonzero = {(a + 1, b + 1): w for a, row in enumerate(found) for b, w in enumerate(row) if w}
    assert nonzero == counts


@pytest.mark.parametrize(
    ("law", "n", "m", "q", "best"),
    [
        (laws.uniform(1), 10, 10, 1, 16),
        (laws.uniform(1), 10, 10, 0.01, 6),
        (laws.uniform(1), 100, 100, 0.1, 24),
        (laws.uniform(1), 1000, 1000, 0.1, 64),
        (laws.uniform(1), 300, 100, 0.01, 14),
        (laws.normal(1), 10, 10, 0.1, 8),
        (laws.normal(1), 100, 100, 1, 64),
        (laws.normal(1), 100, 100, 0.1, 18),
        (laws.normal(1), 1000, 1000, 0.1, 56),
        (laws.normal(1), 300, 100, 0.1, 24),
    ],
)
def test_best_orders(law, n, m, q, best):
    moments = c._log_trace_moments(n, m, laws.pruned_moments(law, "random", 1 - q))
    assert ORDERS[int(((moments - math.log(0.01)) / (2 * np.array(ORDERS))).argmin())] == best


def test_matrices_of_sines():
    norms = [spectral_norm(matrix(*shape)).value for shape in ((6, 5, 1), (7, 6, 2), (4, 7, 3))]
    assert norms == pytest.approx([1.46288352, 1.62720315, 1.07359254], rel=1e-8)


def test_before_the_mask_is_drawn():
    """The Bernstein route's numbers, and the simulated 95 % quantile below every bound."""
    w = matrix(50, 40, 1)
    variances = w.square() * (1 - 0.9) / 0.9
    spread = float(torch.maximum(variances.sum(0).max(), variances.sum(1).max()))
    largest = float(w.abs().max()) * 0.9 / 0.9
    assert spread == pytest.approx(0.07117635, rel=1e-6)
    assert largest == pytest.approx(0.15811244, rel=1e-6)
    bernstein = c.matrix_bernstein(50, 40, spread, largest, 0.05)
    assert bernstein == pytest.approx(1.50097204, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2000, 50, 40, dtype=torch.float64, generator=generator) < 0.9
    quantile = float(torch.linalg.matrix_norm(w - w * masks / 0.9, 2).quantile(0.95))
    assert quantile == pytest.approx(0.553, rel=0.02)  # 2000 draws: about 1 % of noise
    assert _order_maximum(np.array([1.0, 3.0, 4.0, 9.0])) == pytest.approx(
        [1, 3, 16 / 3, 62.4857143], rel=1e-8
    )


def test_reshapes_and_strides_of_a_kernel():
    shapes = (
        KERNEL.reshape(4, -1),
        KERNEL.transpose(0, 1).reshape(3, -1),
        KERNEL.permute(0, 2, 1, 3).reshape(12, -1),
        KERNEL.permute(0, 3, 1, 2).reshape(12, -1),
    )
    found = [3 * spectral_norm(shape).value for shape in shapes]
    assert found == pytest.approx([17.5986, 20.8388, 17.5599, 20.7200], rel=1e-5)
    true = float(torch.linalg.svdvals(conv_matrix(KERNEL, 8, 2, 1))[0])
    assert true == pytest.approx(8.1262, rel=1e-4)
    strided = Geometry(size=(8, 8), stride=(2, 2), padding=((1, 1), (1, 1)))
    assert true <= conv_norm(KERNEL, strided).value <= 8.55557291 * 1.1


def test_plans_keep_what_they_should():
    sizes = (784000, 500000, 5000)
    for product, kept, uniform in [(0.99, 0.9939178, 0.9966555), (0.5, 0.6907973, 0.7937005)]:
        plan = water_filling(sizes, product)
        share = sum(p * n for p, n in zip(plan, sizes, strict=True)) / sum(sizes)
        assert share == pytest.approx(kept, rel=1e-6)
        assert product ** (1 / 3) == pytest.approx(uniform, rel=1e-6)
        assert share < uniform


def test_root_mean_squares_of_the_output():
    widths = [300, 300, 300, 10]
    for phi, variance, size in (("relu", 2, 0.25819889), ("tanh", 1, 0.18137233)):
        options = {"laws": laws.normal(math.sqrt(variance / 300)), "activations": phi}
        gap = mean_field(widths, 0.9, **options).value
        assert gap / mean_field(widths, 0.9, relative=True, **options).value == pytest.approx(
            size, rel=1e-6
        )


def test_limit_of_the_energy_below():
    """√2 erfinv(1/2) cuts a normal law in half; N = 10⁷ is at the limit, N = 10⁴ above it."""
    limit = 0.0713259177
    assert laws.energy_below(laws.normal(1), 10**7, 5 * 10**6) == pytest.approx(limit, rel=1e-6)
    assert laws.energy_below(laws.normal(1), 10**4, 5000) > limit


def test_gaussian_scales():
    """χ over the deviation: uniform 1.0854; a hardly truncated normal 1, a flat one as uniform."""
    k = math.sqrt(3)
    assert gaussian_scale(laws.uniform(k)) == pytest.approx(1.08540188, rel=1e-8)
    assert gaussian_scale(laws.normal(0.3)) == 0.3
    assert gaussian_scale(laws.truncated_normal(1, 8)) == pytest.approx(1, rel=1e-6)
    flat = gaussian_scale(laws.truncated_normal(50, k))
    assert flat == pytest.approx(1.08540188, rel=2e-3)
    law = laws.truncated_normal(1.0, 1.0)
    assert math.sqrt(law.variance) < gaussian_scale(law) < 1
    options = {"laws": laws.truncated_normal(0.1, 0.1), "route": "width"}
    assert sup_bound([50, 50, 50, 10], 0.9, **options).value > 0


@pytest.mark.parametrize(
    ("depth", "exponent", "method", "walks", "engine"),
    [
        (2, 0.25, "magnitude", 131, 131),
        (3, 0.25, "magnitude", 268, 268),
        (5, 0.25, "magnitude", 827, 827),
        (2, 0.5, "magnitude", 23, 23),
        (3, 0.5, "magnitude", 34, 34),
        (2, 0.5, "random", 4856, 4751),
        (3, 0.5, "random", 18850, 15866),
    ],
)
def test_minimal_widths_by_walk_moments_and_by_the_engine(depth, exponent, method, walks, engine):
    """The published widths are those of walk moments alone; beyond 4096 the Chernoff form helps."""
    alone, _ = minimal_width(depth, 0.1, exponent, method=method, rule=walk_rule)
    assert abs(alone - walks) <= 1
    best, _ = minimal_width(depth, 0.1, exponent, method=method)
    assert best == engine
    assert best <= alone


@pytest.mark.parametrize(("depth", "width"), [(2, 9.8e5), (3, 6.5e7)])
def test_minimal_widths_by_bernstein(depth, width):
    found, _ = minimal_width(
        depth, 0.1, 0.5, method="random", rule=bernstein_rule, largest=3 * 10**8
    )
    assert found == pytest.approx(width, rel=0.02)


@pytest.mark.slow
def test_the_shipped_table_is_regenerated_exactly():
    """Every order, bit for bit."""
    for p in ORDERS:
        exact = np.array([[_log(count) for count in row] for row in walk_weights(p)])
        np.testing.assert_array_equal(log_walk_table()[p], exact)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activation_table_holds_the_slopes(name):
    """Slopes, κ₂, φ(0) and ranges on a fine grid: inside the table, and within 1e-4 of it."""
    phi = ACTIVATIONS[name]
    s = torch.linspace(-12, 12, 480_002, dtype=torch.float64, requires_grad=True)
    values = phi.function(s)
    (slope,) = torch.autograd.grad(values.sum(), s)
    assert phi.low <= float(slope.min()) + 1e-12
    assert float(slope.max()) <= phi.high + 1e-12
    assert float(slope.min()) - phi.low < 1e-4
    assert phi.high - float(slope.max()) < 1e-4
    both = (slope.square() + slope.flip(0).square()) / 2
    assert float(both.max()) <= phi.kappa + 1e-12
    assert phi.kappa - float(both.max()) < 1e-4
    assert float(phi.function(torch.zeros(1, dtype=torch.float64)).abs()) <= phi.at_zero
    assert float(values.detach().abs().max()) <= phi.sup
    assert float(values.detach().max() - values.detach().min()) <= phi.width


def test_activations_of_ones_own():
    half = custom_activation("half", lambda x: 0.5 * x, 0.5, 0.5)
    assert (half.lipschitz, half.kappa, half.at_zero) == (0.5, 0.25, 0)
    value = sup_bound([20, 20, 5], 0.9, activations=half, route="product").value
    plain = sup_bound([20, 20, 5], 0.9, activations="identity", route="product").value
    assert value == pytest.approx(plain / 2, rel=1e-12)
    with pytest.raises(ValueError, match="finite slopes in this order"):
        custom_activation("bad", torch.relu, 1.0, 0.0)
    with pytest.raises(ValueError, match="`kappa` is at most"):
        custom_activation("bad", torch.relu, 0.0, 1.0, kappa=2.0)


def test_global_threshold_in_the_mean_field():
    """One density for laws of one scale is uniform; with two the flatter layer loses more."""
    alike = random_network([50, 50, 50], 0.5, laws=laws.normal(1), method="magnitude")
    assert global_densities(alike, 0.3) == pytest.approx([0.3, 0.3], abs=1e-9)
    apart = random_network(
        [50, 50, 50], 0.5, laws=[laws.normal(1), laws.uniform(0.5)], method="magnitude"
    )
    found = global_densities(apart, 0.5)
    assert found[0] > 0.5 > found[1]
    assert sum(found) == pytest.approx(1)
    assert global_densities(apart, 1.0) == (1, 1)
    options = {"laws": laws.normal(0.2), "method": "magnitude"}
    one = mean_field([50, 50, 50], 0.5, scope="global", **options).value
    assert one == pytest.approx(mean_field([50, 50, 50], 0.5, **options).value, rel=1e-3)
    with pytest.raises(ValueError, match="takes magnitude pruning and one density"):
        mean_field([50, 50, 50], 0.5, scope="global")


def test_heavy_tails_fall_back_on_energy_and_say_so():
    """A fourth moment of 5·10⁵ v² says nothing of a matrix of one entry: Frobenius and Markov."""
    heavy = laws.moments_law(0.02, fourth=200)
    tiny = layer_norms.layer_norm(1, 1, heavy, 0.5, part="dense")
    assert tiny.route == c.FROBENIUS
    assert tiny.value == pytest.approx(math.sqrt(0.02 / 0.5), rel=1e-12)
    found = sup_bound([1, 1], 0.9, laws=heavy, delta=0.9)
    assert found.vacuous
    assert found.value < math.inf
    assert "energy" in found.reason or "any pruning" in found.reason
    assert (
        layer_norms.layer_norm(50, 50, laws.moments_law(0.02, fourth=0.0012), 0.05).route
        == "heavy tail"
    )


@pytest.mark.parametrize("n", [20, 100, 300])
@pytest.mark.parametrize("q", [0.01, 0.1, 1.0])
def test_walk_moments_are_below_bernstein(n, q):
    logs = laws.pruned_moments(laws.uniform(1), "random", 1 - q)
    for delta in (0.01, 0.05):
        bernstein = c.matrix_bernstein(n, n, n * q / 3, 1, delta)
        assert c.iid_norm(n, n, logs, delta).value <= bernstein


def test_monotone_over_ranges():
    """Non-decreasing in q, 1/δ, n, m and variance, for every method; all pairs of neighbours.

    In q up to 1/2: beyond, V has little norm left and ‖F‖ + ‖f‖ takes over, which falls.
    """
    law = laws.uniform(1)
    for method in laws.METHODS:

        def value(n=30, m=20, q=0.2, delta=0.05, law=law, method=method):
            return sup_bound([m, n, 5], 1 - q, laws=law, delta=delta, method=method).value

        series = [
            [value(q=q) for q in (0.0, 0.01, 0.05, 0.2, 0.5)],
            [value(delta=d) for d in (0.5, 0.1, 0.01, 1e-6)],
            [value(n=n) for n in (10, 20, 40, 80)],
            [value(m=m) for m in (10, 20, 40, 80)],
            [value(law=laws.uniform(k)) for k in (0.5, 1.0, 2.0)],
        ]
        for row in series:
            assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(row)), (method, row)


def test_narrow_and_empty_networks():
    for method in laws.METHODS:
        one = sup_bound([1, 1, 1], 0.5, laws=laws.uniform(1), method=method)
        assert 0 <= one.value <= one.trivial
    assert (
        layer_norms.layer_norm(1, 1, laws.uniform(1), 0.1, part="dense").value >= 0.9
    )  # 90 % quantile
    assert spectral_norm(torch.zeros(3, 3)).value == 0
