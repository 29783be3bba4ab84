"""Bounds before training: reference values, order, coverage, refusal."""

import math

import pytest
import scipy.stats as stats
import torch

from prunus.theory.gap import LinearPair, Pointwise, activation
from prunus.theory.gap.apriori import product_route, sup_bound
from prunus.theory.gap.inverse import largest_pruned_count, minimal_width
from prunus.theory.gap.laws import moments_law, normal, truncated_normal, uniform
from prunus.theory.gap.mean_square import (
    kept_energy,
    markov_gap,
    mean_field,
    mean_square_bound,
    mean_square_plan,
    water_filling,
)
from prunus.theory.gap.network import LayerShape, random_network
from prunus.theory.gap.search import largest_gap
from reference.gap import mean_square_gap

SMALL = [100, 100, 100, 10]


@pytest.mark.parametrize(
    ("law", "method", "value"),
    [
        (uniform(math.sqrt(0.06)), "random", 20.324073),
        (uniform(math.sqrt(0.06)), "random_rescaled", 23.016870),
        (uniform(math.sqrt(0.06)), "magnitude", 2.597256),
        (normal(math.sqrt(0.02)), "random", 22.571121),
        (normal(math.sqrt(0.02)), "random_rescaled", 25.919868),
        (normal(math.sqrt(0.02)), "magnitude", 1.883864),
    ],
)
def test_product_route_reference(law, method, value):
    found = sup_bound(SMALL, 0.9, laws=law, method=method, route="product")
    assert found.value == pytest.approx(value, rel=1e-6)
    assert sum(share for _, share in found.ledger) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("phi", "law", "width", "product"),
    [
        ("relu", normal(math.sqrt(2 / 500)), 47.7347, 214.686),
        ("relu", uniform(math.sqrt(6 / 500)), 90.12, 203.206),
        ("tanh", normal(math.sqrt(1 / 500)), 11.3589, 37.9515),
        ("tanh", uniform(math.sqrt(3 / 500)), 20.636, 35.922),
    ],
)
def test_width_route_reference(phi, law, width, product):
    widths = [500] * 5 + [10]
    found = sup_bound(widths, 0.9, laws=law, activations=phi)
    assert found.value == pytest.approx(width, rel=1e-3)
    assert found.route == "width route"
    assert sum(share for _, share in found.ledger) == pytest.approx(0.05)
    other = sup_bound(widths, 0.9, laws=law, activations=phi, route="product")
    assert other.value == pytest.approx(product, rel=1e-3)


def test_mean_square_and_mean_field_reference():
    widths, he, one = [300, 300, 300, 10], normal(math.sqrt(2 / 300)), normal(math.sqrt(1 / 300))
    for method, bound, relu, tanh in [
        ("random", 0.134412301, 0.12934127, 0.09441879),
        ("random_rescaled", 0.157425562, 0.15148630, 0.11046011),
    ]:
        found = mean_square_bound(widths, 0.9, laws=he, method=method)
        assert found.value == pytest.approx(bound, rel=1e-8)
        predicted = mean_field(widths, 0.9, laws=he, method=method)
        assert predicted.value == pytest.approx(relu, rel=1e-6)
        assert predicted.status == "PRED"
        smooth = mean_field(widths, 0.9, laws=one, activations="tanh", method=method)
        assert smooth.value == pytest.approx(tanh, rel=1e-6)
    relative = mean_square_bound(widths, 0.9, laws=he, relative=True).value
    assert relative == pytest.approx(math.sqrt(1 - 0.9**3), rel=1e-12)
    assert markov_gap(mean_square_bound(widths, 0.9, laws=he), 0.05) == pytest.approx(
        0.134412301 / math.sqrt(0.05), rel=1e-8
    )


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_prediction_and_bound_meet_the_simulation(rescaled, relu):
    """100 draws at width 60: mean field within 12 %, the bound at most 12 % below sampling error.

    The simulated mean square has about 6 % standard error here. Negative control: the prediction
    for twice the pruned share is outside.
    """
    widths, densities = [60, 60, 60, 10], [0.9, 0.8, 0.9]
    scale = [math.sqrt((2 if relu else 1) / 60)] * 3
    generator = torch.Generator().manual_seed(3)
    simulated = math.sqrt(
        mean_square_gap(
            widths, densities, scale, rescaled=rescaled, relu=relu, draws=150, generator=generator
        )
    )
    method = "random_rescaled" if rescaled else "random"
    kwargs = {
        "laws": normal(scale[0]),
        "activations": "relu" if relu else "tanh",
        "method": method,
    }
    predicted = mean_field(widths, densities, **kwargs).value
    assert predicted == pytest.approx(simulated, rel=0.12)
    assert mean_square_bound(widths, densities, **kwargs).value >= 0.88 * simulated
    assert mean_square_bound(widths, densities, **kwargs).value >= predicted - 1e-12
    wrong = mean_field(widths, [0.8, 0.6, 0.8], **kwargs).value
    assert wrong != pytest.approx(simulated, rel=0.12)


def test_mean_field_keeps_its_digits_for_tiny_gaps():
    widths = [300, 300, 10]
    gaps = [mean_field(widths, 1 - q, laws=normal(0.1)).value for q in (1e-10, 1e-12, 1e-14)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=1e-3)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=1e-2)


METHODS = ["random", "random_rescaled", "magnitude"]


@pytest.mark.parametrize("method", METHODS)
def test_sup_bound_covers_drawn_networks(method):
    """40 drawn networks at δ = 0.05 against gradient ascent; 0 violations expected.

    More than 10 violations have probability below 1e-5 at the stated δ. Negative control: a
    twentieth of the bound is violated nearly always.
    """
    generator = torch.Generator().manual_seed(0)
    widths, density = [20, 20, 5], 0.8
    law = normal(math.sqrt(2 / 20))
    bound = sup_bound(widths, density, laws=law, method=method).value
    gaps = []
    for _ in range(40):
        stages = []
        for m, n in [(20, 20), (20, 5)]:
            w = law.parent * torch.randn(n, m, dtype=torch.float64, generator=generator)
            if method == "magnitude":
                k = round(n * m * (1 - density))
                cut = w.abs().flatten().sort().values[k - 1]
                v = torch.where(w.abs() <= cut, 0.0, w)
            else:
                v = w * (torch.rand(n, m, generator=generator) < density)
                v = v / (density if method == "random_rescaled" else 1)
            stages += [
                LinearPair(name="fc", weight=w, pruned_weight=v),
                Pointwise(name="relu", activation=activation("relu")),
            ]
        origin = torch.zeros(1, 20, dtype=torch.float64)
        gaps.append(largest_gap(stages[:-1], 1.0, origin, starts=4, steps=30, generator=generator))
    assert sum(g > bound for g in gaps) <= stats.binom.isf(1e-5, 40, 0.05)
    assert sum(g > 0.05 * bound for g in gaps) >= 30


def test_monotone_and_homogeneous():
    base = sup_bound([30, 30, 5], 0.9).value
    assert sup_bound([30, 30, 5], 0.8).value >= base
    assert sup_bound([30, 30, 5], 0.9, delta=0.01).value >= base
    assert sup_bound([30, 30, 5], 0.9, radius=2.0).value == pytest.approx(2 * base, rel=1e-12)
    assert sup_bound([30, 30, 5], 1.0).value == 0
    everything = sup_bound([30, 30, 5], 0.0)
    assert everything.value <= everything.trivial
    assert everything.vacuous


def test_global_scope_couples_layers():
    found = sup_bound([50, 50, 10], 0.9, method="magnitude", scope="global")
    assert found.route == "product route"
    assert len(found.ledger) == 2 * 2 + 1
    network = random_network([50, 50, 10], 0.9, method="magnitude")
    for w, v, d in product_route(network, 0.05, 1.0, scope="global").per_layer:
        assert 0 < d < w
        assert v == w + d  # V = W − D, by the triangle; within one layer contraction gives w
    assert all(v == w for w, v, _ in product_route(network, 0.05, 1.0).per_layer)
    with pytest.raises(ValueError, match="the width route needs independent layers"):
        sup_bound([50, 50, 10], 0.9, method="magnitude", scope="global", route="width")
    with pytest.raises(ValueError, match="a global threshold couples the layers"):
        mean_square_bound([50, 50, 10], 0.9, method="magnitude", scope="global")


def test_inverse_is_the_last_count_within_the_limit():
    widths, limit = [40, 30, 5], 1.0
    k = largest_pruned_count(widths, 0, limit, method="magnitude")

    def bound(count):
        density = [1 - count / 1200, 1.0]
        return sup_bound(widths, density, method="magnitude", route="product").value

    assert bound(k) <= limit < bound(k + 1)


@pytest.mark.parametrize(
    ("depth", "exponent", "width"), [(2, 0.25, 131), (3, 0.25, 268), (2, 0.5, 23), (3, 0.5, 34)]
)
def test_minimal_widths(depth, exponent, width):
    found, twice = minimal_width(depth, 0.1, exponent, method="magnitude")
    assert abs(found - width) <= 1
    assert twice < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_the_least_width_is_beyond_one_that_fails(method):
    width, _ = minimal_width(2, 1.0, 0.5, method=method)

    def bound(d):
        options = {"laws": "qk_uniform", "method": method, "route": "product"}
        return sup_bound([d, d, d], 1 - 1 / d, **options).value  # d of d² weights are pruned

    assert bound(width) <= 1 < bound(width - 1)


def test_plans_for_the_mean_square():
    sizes = (784000, 500000, 5000)
    assert water_filling(sizes, 0.99) == pytest.approx((0.99, 1, 1))
    assert water_filling(sizes, 0.5) == pytest.approx((0.5646924, 0.8854377, 1), rel=1e-6)
    assert water_filling(sizes, 0.1) == pytest.approx((0.2525381, 0.3959798, 1), rel=1e-6)
    widths = [784, 1000, 500, 10]
    for method in METHODS:
        plan = mean_square_plan(widths, 0.2, method=method)
        value = mean_square_bound(widths, plan, method=method, relative=True).value
        assert 0.19 < value <= 0.2 * (1 + 1e-6)
        kept = sum(p * n for p, n in zip(plan, (784000, 500000, 5000), strict=True))
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            one = mean_square_bound(widths, middle or 1e-9, method=method, relative=True).value
            low, high = (low, middle) if one <= 0.2 else (middle, high)
        assert kept <= high * sum(sizes) * (1 + 1e-6)


def test_convolutions_have_bounds():
    shapes = [
        LayerShape(outputs=8, inputs=1, kernel=(3, 3), grid=(9, 9), gain=0.5),
        LayerShape(outputs=10, inputs=128),
    ]
    found = sup_bound(shapes, 0.9, laws=normal(0.2))
    assert 0 < found.value < found.trivial
    assert mean_square_bound(shapes, 0.9, laws=normal(0.2)).value < found.value
    # a kernel of one tap on one pixel is a matrix
    tap = [LayerShape(outputs=20, inputs=20, kernel=(1, 1), grid=(1, 1))]
    matrix = sup_bound([20, 20], 0.9, laws=uniform(1), route="product").value
    assert sup_bound(tap, 0.9, laws=uniform(1)).value >= matrix * (1 - 1e-9)


def test_kept_energy_of_methods():
    shape = LayerShape(outputs=10, inputs=10)
    assert kept_energy(shape, normal(1), "random", 0.3) == 0.3
    assert kept_energy(shape, normal(1), "magnitude", 0.5) == pytest.approx(1 - 0.0739725894)


def test_bad_input():
    with pytest.raises(ValueError, match="`widths` must name two sides"):
        sup_bound([3], 0.5)
    with pytest.raises(ValueError, match="`densities` must have 2 entries"):
        sup_bound([3, 3, 3], [0.5])
    with pytest.raises(ValueError, match="`density` must lie"):
        sup_bound([3, 3, 3], 0.0, method="random_rescaled")
    with pytest.raises(ValueError, match="needs symmetric laws"):
        random_network([3, 3], 0.5, laws=moments_law(1, 2, symmetric=False), method="magnitude")
    with pytest.raises(ValueError, match=r"needs φ\(0\) = 0"):
        mean_square_bound([3, 3, 3], 0.5, activations="sigmoid")
    with pytest.raises(ValueError, match="Unknown law"):
        sup_bound([3, 3], 0.5, laws="he")
    with pytest.raises(ValueError, match="the width route needs activations"):
        sup_bound([3, 3, 3], 0.5, activations="gelu", route="width")
    with pytest.raises(ValueError, match="`delta` must lie"):
        sup_bound([3, 3], 0.5, delta=0.0)
    heavy = sup_bound([50, 50], 0.5, laws=moments_law(0.02, fourth=0.002), route="product")
    assert heavy.value > 0
    asymmetric = sup_bound([50, 50], 0.5, laws=moments_law(0.02, 0.3, symmetric=False))
    assert any("asymmetric" in words for words in asymmetric.assumptions)
    assert sup_bound([50, 50], 0.5, laws=truncated_normal(0.1, 0.2)).value < 10
