"""Every rule and route on inputs where its bound is attained: a slip in either direction shows.

Random networks leave bounds slack by factors, so that unsound changes pass. Here each bound equals
the gap of one input (or lies just above it), and each decision is tried on both sides of its edge.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import prunus
from prunus.guarantee.solve import Problem, least_error, solve
from prunus.theory.gap import (
    Branches,
    LinearPair,
    Lipschitz,
    Pointwise,
    activation,
    certify,
    leaky_relu,
    local_bound,
)
from prunus.theory.gap.chain import chain_bound, chain_lipschitz, chain_norm
from prunus.theory.gap.convolution import Geometry, conv_norm
from prunus.theory.gap.from_data import data_statements
from prunus.theory.gap.given_weights import (
    drawn_conv_norm,
    drawn_mean_square,
    drawn_norm,
    drawn_sup,
)
from prunus.theory.gap.held_out import (
    clopper_pearson,
    empirical_bernstein,
    exceedance_everywhere,
    held_out_quantile,
    robustly_unchanged,
    sample_size_for_quantile,
)
from prunus.theory.gap.norms import block_power, lanczos, spectral_norm
from prunus.theory.gap.per_sample import (
    chain_gains,
    pairwise_unchanged,
    pointwise_bound,
    sample_bound,
)
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.rounding import rounding_at, rounding_error
from prunus.theory.gap.stages import layer_norms, run

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")

EXACT = {"rel": 1e-9}
POSITIVE = ["identity", "relu", "leaky_relu"]  # of slope 1 where all values are positive


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(name, w, v, b=None, c=None):
    """A layer of width 1."""

    def bias(value):
        return None if value is None else tensor([value])

    return LinearPair(name=name, weight=tensor([[w]]), pruned_weight=tensor([[v]]),
                      bias=bias(b), pruned_bias=bias(c))  # fmt: skip


def act(name):
    return Pointwise(name="act", activation=leaky_relu(0.3) if name == "leaky_relu" else
                     activation(name))  # fmt: skip


def product(stages, radius, centre):
    start = Reach(dense=radius, pruned=radius, gap=0.0, centre=centre, pruned_centre=centre)
    return product_bound(stages, start)


def gap_at(stages, x):
    return float((run(stages, x) - run(stages, x, pruned=True)).norm())


WEIGHTS = [(2.0, 1.5), (0.5, 0.4), (3.0, 2.0), (1.25, 1.0)]


class TestBall:
    """The sup bound: its routes and every kind of stage."""

    @pytest.mark.parametrize("depth", [1, 2, 3, 4])
    @pytest.mark.parametrize("phi", POSITIVE)
    @pytest.mark.parametrize("swapped", [False, True])
    def test_positive_scalar_chains_attain_both_routes(self, depth, phi, swapped):
        """F − f = (Π w − Π v) B at x = B; V larger than W takes the other side of the minimum."""
        stages = []
        for i, (w, v) in enumerate(WEIGHTS[:depth]):
            stages += [scalar(f"fc{i}", *((v, w) if swapped else (w, v))), act(phi)]
        stages = stages[:-1]
        centre = torch.zeros(1, 1, dtype=torch.float64)
        true = gap_at(stages, tensor([[1.3]]))
        whole, thin = (math.prod(pair[i] for pair in WEIGHTS[:depth]) for i in (0, 1))
        assert true == pytest.approx(1.3 * (whole - thin))
        assert product(stages, 1.3, centre).gap == pytest.approx(true, **EXACT)
        assert chain_bound(stages, 1.3, centre) == pytest.approx(true, **EXACT)
        found = certify(stages, radius=1.3, dtype=torch.float64)
        assert found.value == pytest.approx(true, **EXACT)
        assert found.statements[0].measured == pytest.approx(true, **EXACT)

    @pytest.mark.parametrize("phi", POSITIVE)
    def test_centres_and_biases_that_add_up(self, phi):
        """Around c = 2 with radius 1 and other biases all terms have one sign at x = 3."""
        stages = [scalar("one", 2.0, 1.5, 0.5, 0.25), act(phi), scalar("two", 3.0, 2.0, 1.0, 0.5)]
        centre = tensor([[2.0]])
        true = gap_at(stages, tensor([[3.0]]))
        assert true == pytest.approx((3 * (2 * 3 + 0.5) + 1) - (2 * (1.5 * 3 + 0.25) + 0.5))
        assert product(stages, 1.0, centre).gap == pytest.approx(true, **EXACT)
        assert chain_bound(stages, 1.0, centre) == pytest.approx(true, **EXACT)

    def test_a_missing_bias_counts_as_zero(self):
        stages = [scalar("one", 1.0, 1.0, 0.75, None)]
        assert product(stages, 1.0, tensor([[0.0]])).gap == pytest.approx(0.75, **EXACT)
        assert chain_bound(stages, 1.0, tensor([[0.0]])) == pytest.approx(0.75, **EXACT)
        stages = [scalar("one", 1.0, 1.0, None, 0.75)]
        assert product(stages, 1.0, tensor([[0.0]])).gap == pytest.approx(0.75, **EXACT)

    @pytest.mark.parametrize("size", [(3, 3), (5, 3), (3, 5)])
    def test_matrices_whose_top_directions_meet(self, size):
        """W_2, D_1 of one common top direction: ‖V_2‖ ‖D_1‖ B; the other way ‖D_2‖ ‖W_1‖ B."""
        torch.manual_seed(0)
        n, m = size
        left, right = (torch.linalg.qr(torch.randn(k, k).double())[0] for k in (n, m))
        middle = torch.zeros(n, m, dtype=torch.float64)
        middle[range(min(n, m)), range(min(n, m))] = tensor([3.0, 1.0, 0.5])[: min(n, m)]
        first = left @ middle @ right.T
        top = 3.0 * torch.outer(left[:, 0], right[:, 0])
        second = first.T
        one = [
            LinearPair(name="a", weight=first, pruned_weight=first - 0.5 * top),
            LinearPair(name="b", weight=second, pruned_weight=second),
        ]
        two = [
            LinearPair(name="a", weight=first, pruned_weight=first),
            LinearPair(name="b", weight=second, pruned_weight=second - 0.5 * top.T),
        ]
        for stages in (one, two):
            true = gap_at(stages, right[:, :1].T)
            assert true == pytest.approx(4.5)
            centre = torch.zeros(1, m, dtype=torch.float64)
            assert product(stages, 1.0, centre).gap == pytest.approx(true, **EXACT)
        for norm in layer_norms(one[0]).dense, spectral_norm(first, method="exact").value:
            assert norm == pytest.approx(3.0, **EXACT)
        assert spectral_norm(first, method="gram_power").value == pytest.approx(3.0, rel=4e-3)
        assert spectral_norm(first, method="gram_power").value >= 3.0
        assert spectral_norm(first, method="cheap").value >= 3.0

    def test_random_starts_pay_for_what_they_may_miss(self):
        """On the identity every start finds the norm: what is left is the price of δ, exactly."""
        size, steps, delta = 50, 40, 0.1
        start = torch.Generator().manual_seed(0)
        found = lanczos(lambda x: x, size, steps=steps, delta=delta, generator=start).value
        root = math.log(1.648 * math.sqrt(size) / delta) / (2 * steps - 1)
        assert found == pytest.approx(1 / math.sqrt(1 - root**2), **EXACT)
        found = block_power(
            lambda x: x, size, steps=5, starts=3, delta=delta, generator=start
        ).value
        small = delta ** (1 / 3) / (math.sqrt(2 / math.pi) * math.sqrt(size))
        assert found == pytest.approx(small ** (-1 / 10), **EXACT)

    def test_the_trivial_bound_is_attained_by_the_negative_network(self):
        stages = [scalar("one", 2.0, 2.0), act("relu"), scalar("two", 1.0, -3.0)]
        found = certify(stages, radius=1.0, dtype=torch.float64)
        assert found.statements[0].trivial == pytest.approx(8.0, **EXACT)
        assert found.value == pytest.approx(8.0, **EXACT)
        assert found.statements[0].vacuous
        assert gap_at(stages, tensor([[1.0]])) == pytest.approx(8.0)
        for radius in (0.5, 2.0):
            wider = certify(stages, radius=radius, dtype=torch.float64)
            assert wider.value == pytest.approx(8.0 * radius, **EXACT)
            assert wider.statements[0].trivial == pytest.approx(8.0 * radius, **EXACT)
            assert local_bound(stages, [0.0], radius) == pytest.approx(8.0 * radius, **EXACT)
        reach = product(stages, 1.0, torch.zeros(1, 1).double())
        assert (reach.dense, reach.pruned) == pytest.approx((2.0, 6.0), **EXACT)
        shifted = [scalar("one", 2.0, -2.0, 1.0, -1.0)]
        assert product(shifted, 1.0, torch.zeros(1, 1).double()).trivial == pytest.approx(6.0)
        assert gap_at(shifted, tensor([[1.0]])) == pytest.approx(6.0)

    @pytest.mark.parametrize(("phi", "width"), [("tanh", 2), ("hardtanh", 2), ("sigmoid", 1)])
    def test_bounded_activations_cap_at_their_width(self, phi, width):
        """Opposite large weights drive every unit from one end of its range to the other."""
        weight = 1e3 * torch.ones(4, 1, dtype=torch.float64)
        stages = [LinearPair(name="one", weight=weight, pruned_weight=-weight), act(phi)]
        bound = product(stages, 1.0, torch.zeros(1, 1).double())
        true = gap_at(stages, tensor([[1.0]]))
        assert true == pytest.approx(width * 2.0)  # √4 units
        assert bound.gap == pytest.approx(true)
        # the distance from the value at the centre is at most the width as well
        assert bound.dense == pytest.approx(width * 2.0)
        more = [*stages, scalar("two", 1.0, 1.0)]
        more[-1] = LinearPair(name="two", weight=torch.ones(1, 4).double(),
                              pruned_weight=torch.ones(1, 4).double())  # fmt: skip
        assert product(more, 1.0, torch.zeros(1, 1).double()).gap == pytest.approx(width * 4.0)

    @pytest.mark.parametrize("phi", ["gelu", "silu", "elu", "softplus", "sigmoid", "tanh"])
    def test_slopes_of_the_table_are_reached(self, phi):
        """Between two near points the steepest slope is the table's constant to 10⁻⁵."""
        row = activation(phi)
        x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64)
        slopes = row.function(x).diff() / x.diff()
        assert row.low <= float(slopes.min()) + 1e-9
        assert row.high >= float(slopes.max()) - 1e-9
        assert float(slopes.max()) == pytest.approx(row.high, abs=1e-5)
        assert float(slopes.min()) == pytest.approx(row.low, abs=1e-5)
        assert float(row.function(tensor([0.0]))[0]) == pytest.approx(row.at_zero, abs=1e-9)
        squares = (slopes.square() + slopes.flip(0).square()) / 2
        assert row.kappa >= float(squares.max()) - 1e-9
        assert float(squares.max()) == pytest.approx(row.kappa, abs=1e-5)

    def test_branches_add_and_concatenations_meet_at_right_angles(self):
        for axis, expected in ((None, 0.5 + 0.75), (1, math.hypot(0.5, 0.75))):
            stages = [Branches(name="join", axis=axis, shortcut=(scalar("a", 2.0, 1.5),),
                               branch=(scalar("b", 1.0, 0.25), act("relu")))]  # fmt: skip
            bound = product(stages, 1.0, torch.zeros(1, 1).double())
            assert gap_at(stages, tensor([[1.0]])) == pytest.approx(expected)
            assert bound.gap == pytest.approx(expected, **EXACT)
            size = 3.0 if axis is None else math.hypot(2.0, 1.0)
            assert bound.dense == pytest.approx(size, **EXACT)
            assert sample_bound(stages, tensor([[1.0]]))[0] == pytest.approx(expected, **EXACT)
            assert float(pointwise_bound(stages, tensor([[1.0]]))) == pytest.approx(
                expected, **EXACT
            )

    def test_a_residual_sum_after_a_pruned_layer(self):
        """e passes the empty branch whole: (1 + v) e + Δ h."""
        stages = [scalar("a", 2.0, 1.0), Branches(name="sum", branch=(scalar("b", 3.0, 2.0),)),
                  scalar("c", 1.0, 1.0)]  # fmt: skip
        true = gap_at(stages, tensor([[1.0]]))
        assert true == pytest.approx(2 + 6 - 1 - 2)
        assert product(stages, 1.0, torch.zeros(1, 1).double()).gap == pytest.approx(true, **EXACT)

    def test_pooling_of_one_leading_entry(self):
        pool = nn.MaxPool2d(3, 1)
        gain = math.sqrt(9)
        kernel = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        stages = [
            LinearPair(name="conv", weight=2 * kernel, pruned_weight=1.5 * kernel,
                       geometry=Geometry(size=(5, 5))),
            Lipschitz(name="pool", gain=gain, function=pool, terms=0),
        ]  # fmt: skip
        x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
        bound = product(stages, 1.0, x).gap
        x[0, 0, 2, 2] = 1
        assert gap_at(stages, x) == pytest.approx(bound, **EXACT) == pytest.approx(1.5)

    @pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
    def test_one_pixel_that_padding_repeats(self, mode):
        """Kernels of one tap show each pixel as often as the padded image holds it."""
        kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
        kernel[0, 0, 1, 1] = 1
        shape = Geometry(size=(4, 4), padding=((2, 2), (2, 2)), mode=mode)
        pair = LinearPair(name="conv", weight=kernel, pruned_weight=0.5 * kernel, geometry=shape)
        pixels = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
        reached = (run([pair], pixels) - run([pair], pixels, pruned=True)).flatten(1).norm(dim=1)
        bound = product([pair], 1.0, pixels[:1] * 0).gap
        most = {"zeros": 1, "circular": 2, "reflect": 2, "replicate": 2}[mode]
        assert float(reached.max()) == pytest.approx(0.5 * most)
        assert bound >= float(reached.max()) * (1 - 1e-12)
        loose = {"reflect": 3 / 2, "replicate": 3 / 2}.get(mode, 1)  # a border no tap reads counts
        assert bound == pytest.approx(loose * float(reached.max()), **EXACT)

    def test_a_strided_circular_convolution_attains_its_aliased_norm(self):
        torch.manual_seed(0)
        kernel = torch.randn(2, 3, 3, 3, dtype=torch.float64)
        shape = Geometry(size=(6, 6), stride=(2, 2), padding=((1, 1), (1, 1)), mode="circular")
        pair = LinearPair(name="c", weight=kernel, pruned_weight=0 * kernel, geometry=shape)
        units = torch.eye(108, dtype=torch.float64).reshape(108, 3, 6, 6)
        true = float(torch.linalg.svdvals(run([pair], units).flatten(1))[0])
        assert conv_norm(kernel, shape).value == pytest.approx(true, **EXACT)
        # a stride of 4 around a period of 6 takes the pixels of one class mod 2, each once
        shape = Geometry(size=(6, 6), stride=(4, 4), padding=((1, 5), (1, 5)), mode="circular")
        pair = dataclasses.replace(pair, geometry=shape)
        true = float(torch.linalg.svdvals(run([pair], units).flatten(1))[0])
        assert conv_norm(kernel, shape).value == pytest.approx(true, **EXACT)

    def test_local_bounds_hold_around_a_point_and_are_attained(self):
        stages = [scalar("a", 2.0, 1.5), act("relu"), scalar("b", 3.0, 2.0)]
        true = gap_at(stages, tensor([[1.5]]))
        assert local_bound(stages, [1.0], 0.5) == pytest.approx(true, **EXACT)


class TestAveragedActivations:
    """The chain route where its combination of norms is exact."""

    def test_two_layers_meet_halfway(self):
        """½ (‖M₂M₁‖ + ‖M₂‖‖M₁‖) for slopes in [0, 1]; with [s, 1] the weights are (1 ± s)/2."""
        first, second = tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([[1.0, -1.0]])
        for slope, row in ((0.0, activation("relu")), (0.3, leaky_relu(0.3))):
            middle, half = (1 + slope) / 2, (1 - slope) / 2
            root = math.sqrt(2)
            expected = middle * root + half * root
            assert chain_norm([first, second], [row]) == pytest.approx(expected, **EXACT)
        # orthogonal factors: the product route costs twice what averaging does
        first, second = tensor([[1.0], [0.0]]), tensor([[0.0, 1.0]])
        assert chain_norm([first, second], [activation("relu")]) == pytest.approx(0.5, **EXACT)
        third = chain_norm([tensor([[1.0]])] * 3, [activation("relu")] * 2)
        assert third == pytest.approx(1.0, **EXACT)

    @pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
    def test_no_pattern_of_slopes_exceeds_it(self, signs):
        """Σ over the extreme slopes of two hidden layers, the norm of the product each time."""
        torch.manual_seed(sum(3**i * (s + 1) for i, s in enumerate(signs)))
        m = [torch.randn(3, 2).double(), torch.randn(3, 3).double(), torch.randn(2, 3).double()]
        row = leaky_relu(0.2)
        bound = chain_norm(m, [row, row])
        worst = 0.0
        for slopes in itertools.product([0.2, 1.0], repeat=6):
            a, b = torch.diag(tensor(slopes[:3])), torch.diag(tensor(slopes[3:]))
            worst = max(worst, float(torch.linalg.svdvals(m[2] @ b @ m[1] @ a @ m[0])[0]))
        assert worst <= bound <= 2 * worst

    def test_an_activation_at_the_end_and_a_reshaping_count(self):
        flat = Lipschitz(name="identity", gain=1.0, function=lambda x: x.flatten(1), terms=0)
        steep = Pointwise(name="act", activation=activation("gelu"))
        stages = [flat, scalar("a", 2.0, 1.0), steep]
        centre = torch.zeros(1, 1, 1, dtype=torch.float64)
        assert chain_bound(stages, 1.0, centre) == pytest.approx(1.128905, rel=1e-6)
        assert chain_lipschitz(stages, centre, pruned=False) == pytest.approx(2 * 1.128905)
        assert chain_lipschitz(stages, centre, pruned=True) == pytest.approx(1.128905)


class TestSamples:
    """Bounds at given inputs, and decisions at both sides of their edge."""

    @pytest.mark.parametrize("phi", POSITIVE)
    def test_mean_square_and_pointwise_are_attained(self, phi):
        stages = [scalar("a", 2.0, 1.5, 0.5, 0.25), act(phi), scalar("b", 3.0, 2.0)]
        x = tensor([[1.0], [2.0], [5.0]])
        gaps = (run(stages, x) - run(stages, x, pruned=True)).abs()[:, 0]
        rms = float(gaps.square().mean().sqrt())
        torch.testing.assert_close(pointwise_bound(stages, x), gaps)
        # Minkowski: the layers' errors v₂ (Δ₁x + δb) and Δ₂h are not parallel over the samples
        one = 2.0 * math.sqrt(float((0.5 * x + 0.25).square().mean()))
        two = math.sqrt(float((2 * x + 0.5).square().mean()))
        value, _ = sample_bound(stages, x)
        assert value == pytest.approx(one + two, **EXACT)
        assert rms <= value <= 1.01 * rms
        assert chain_gains(tuple(stages)) == pytest.approx([2.0, 1.0], **EXACT)
        # the other route alone
        assert sample_bound(stages, x, gains_of=lambda s: None) == (
            pytest.approx(one + two, **EXACT), "layer errors, product",
        )  # fmt: skip
        same = x[:1].expand(3, 1)
        assert sample_bound(stages, same)[0] == pytest.approx(float(gaps[0]), **EXACT)

    def test_the_chain_route_knows_the_product_of_what_follows(self):
        """Linear: gain ‖V₃ V₂‖ exactly, where the product of norms has ‖V₃‖ ‖V₂‖."""

        def alike(name, weight):
            return LinearPair(name=name, weight=tensor(weight), pruned_weight=tensor(weight))

        x = tensor([[1.0]])
        for row, gain in (([[0.6, 0.8]], 0.6), ([[0.0, 1.0]], 0.0)):
            stages = [scalar("a", 2.0, 0.5), act("identity"), alike("b", [[1.0], [0.0]]),
                      act("identity"), alike("c", row)]  # fmt: skip
            value, route = sample_bound(stages, x)
            assert route == "layer errors, chain"
            assert value == pytest.approx(1.5 * gain, abs=1e-12) == gap_at(stages, x)
            assert float(pointwise_bound(stages, x)) == pytest.approx(1.5 * gain, abs=1e-12)
            product_route, _ = sample_bound(stages, x, gains_of=lambda s: None)
            assert product_route == pytest.approx(1.5, **EXACT)

    def test_relu_neurons_count_what_they_can_reach(self):
        """z < 0: a neuron reaches z + β at most, which the pruned network does."""
        weight, pruned = tensor([[-1.0], [-2.0]]), tensor([[0.5], [-0.5]])
        stages = [LinearPair(name="a", weight=weight, pruned_weight=pruned), act("relu")]
        x = tensor([[1.0]])
        assert gap_at(stages, x) == pytest.approx(0.5)
        assert float(pointwise_bound(stages, x)) == pytest.approx(0.5, **EXACT)
        # without the refinement it would be ‖(1.5, 1.5)‖; a leaky ReLU does not have it
        leaky = [stages[0], Pointwise(name="act", activation=leaky_relu(1.0))]
        assert float(pointwise_bound(leaky, x)) == pytest.approx(math.hypot(1.5, 1.5), **EXACT)

    def test_relu_neurons_count_the_error_that_comes_in(self):
        first = scalar("a", 2.0, 1.0)
        second = LinearPair(name="b", weight=tensor([[-1.0]]), pruned_weight=tensor([[3.0]]))
        stages = [first, act("identity"), second, act("relu")]
        x = tensor([[1.0]])
        # z = −2, β = |−4 · 2| + 3 · 1: reaches 9 at most; the pruned network gives 3
        assert float(pointwise_bound(stages, x)) == pytest.approx(9.0, **EXACT)
        assert gap_at(stages, x) == pytest.approx(3.0)

    @pytest.mark.parametrize(("lead", "certain"), [(1.001, True), (0.999, False)])
    def test_pairwise_predictions_turn_exactly_at_their_reach(self, lead, certain):
        """The pruned network moves both outputs against each other as far as its rows allow."""
        first = scalar("a", 2.0, 1.0)
        rows = tensor([[1.0], [-1.0]])
        # outputs: 2 + b and −2; the pruned network's hidden value is 1, not 2: both move by 1
        for sign in (1.0, -1.0):
            bias = tensor([lead * 2.0 - 4.0, 0.0] if sign > 0 else [0.0, lead * 2.0 + 4.0])
            last = LinearPair(
                name="b", weight=rows, pruned_weight=rows, bias=bias, pruned_bias=bias
            )
            stages = [first, last]
            found = pairwise_unchanged(stages, tensor([[1.0]]))
            assert bool(found[0]) is certain
            outputs, thin = run(stages, tensor([[1.0]])), run(stages, tensor([[1.0]]), pruned=True)
            if not certain and sign > 0:
                assert int(outputs.argmax()) != int(thin.argmax())

    def test_pairwise_predictions_count_the_last_layers_own_change_and_rounding(self):
        rows = tensor([[1.0], [0.0]])
        last = LinearPair(name="b", weight=rows, pruned_weight=tensor([[0.5], [0.0]]))
        x = tensor([[1.0]])
        assert not bool(pairwise_unchanged([last], 0.0 * x)[0])  # a tie
        assert bool(pairwise_unchanged([last], x)[0])  # leads by 1, loses ½
        other = LinearPair(name="b", weight=rows, pruned_weight=tensor([[-0.001], [0.0]]))
        assert not bool(pairwise_unchanged([other], x)[0])
        for rounding, certain in ((0.3, True), (0.36, False)):  # √2 ρ against a lead of ½
            assert bool(pairwise_unchanged([last], x, rounding=rounding)[0]) is certain

    def test_margins_turn_at_root_two_times_the_gap(self):
        outputs = tensor([[1.0, 0.0, -5.0]])
        gap = 1 / math.sqrt(2)
        assert not bool(robustly_unchanged(outputs, tensor([gap * 1.0001]))[0])
        assert bool(robustly_unchanged(outputs, tensor([gap * 0.9999]))[0])
        # the direction (1, −1)/√2 of that length makes a tie: not one prediction but two
        moved = outputs + gap * tensor([[-1.0, 1.0, 0.0]]) / math.sqrt(2)
        assert float(moved[0, 0]) == pytest.approx(float(moved[0, 1]))


class TestHeldOut:
    """Statements from outputs, from their definitions."""

    @pytest.mark.parametrize(("n", "level", "delta"), [
        (60, 0.9, 0.05), (59, 0.95, 0.05), (500, 0.95, 0.01), (29, 0.9, 0.05), (100, 0.5, 0.3),
    ])  # fmt: skip
    def test_the_order_statistic_is_the_least_that_suffices(self, n, level, delta):
        gaps = torch.arange(1, n + 1, dtype=torch.float64)
        j = int(held_out_quantile(gaps.flip(0), level, delta))
        # P(g_(j) < quantile) = P(Bin(n, level) >= j) must be <= δ, and not for j − 1
        assert scipy.stats.binom.sf(j - 1, n, level) <= delta + 1e-12
        assert j == 1 or scipy.stats.binom.sf(j - 2, n, level) > delta - 1e-12

    def test_fewest_samples(self):
        for level, delta in ((0.9, 0.05), (0.95, 0.05), (0.99, 0.01)):
            n = sample_size_for_quantile(level, delta)
            assert level**n <= delta < level ** (n - 1)
            held_out_quantile(torch.ones(n), level, delta)
            with pytest.raises(ValueError, match=f"at least {n}"):
                held_out_quantile(torch.ones(n - 1), level, delta)

    @pytest.mark.parametrize(("k", "n", "delta"), [(0, 10, 0.05), (3, 20, 0.05), (19, 20, 0.1)])
    def test_clopper_pearson_solves_its_equation(self, k, n, delta):
        """At the limit p exactly δ of samples have as few events."""
        p = clopper_pearson(k, n, delta)
        assert scipy.stats.binom.cdf(k, n, p) == pytest.approx(delta, rel=1e-6)
        assert clopper_pearson(n, n, delta) == 1.0

    def test_massart_and_bernstein_are_their_formulas(self):
        gaps = tensor([0.0, 1.0, 2.0, 5.0])
        assert exceedance_everywhere(gaps, 0.1) == pytest.approx(math.sqrt(math.log(10) / 8))
        log, n = math.log(2 / 0.1), 4
        variance = float(gaps.var())
        expected = 2.0 + math.sqrt(2 * variance * log / n) + 7 * 6.0 * log / (3 * (n - 1))
        assert empirical_bernstein(gaps, 6.0, 0.1) == pytest.approx(expected)

    def test_statements_carry_the_quantities_of_their_words(self):
        torch.manual_seed(0)
        dense = torch.randn(300, 3, dtype=torch.float64)
        pruned = dense + 0.4 * torch.randn(300, 3, dtype=torch.float64)
        delta, candidates = 0.1, 4
        changed, held = data_statements(
            dense, pruned, delta=delta, largest=50.0, candidates=candidates,
            certain=torch.arange(300) < 120,
        )  # fmt: skip
        share = delta / candidates
        gaps = (dense - pruned).norm(dim=1)
        flips = int((dense.argmax(1) != pruned.argmax(1)).sum())
        top = dense.topk(2, dim=1).values
        loose = int(((top[:, 0] - top[:, 1]) <= math.sqrt(2) * gaps).sum())
        want = [clopper_pearson(k, 300, share) for k in (flips, 180, loose)]
        assert [s.value for s in changed] == pytest.approx(want)
        assert {s.measured for s in changed} == {flips / 300}
        assert flips <= loose
        by_kind = {}
        for statement in held:
            by_kind.setdefault(statement.kind, []).append(statement)
        for statement in by_kind["quantile"]:
            assert statement.value == held_out_quantile(gaps, statement.argument, share)
        (over,) = by_kind["exceeds"]
        rms = float(dense.square().sum(1).mean().sqrt())
        assert over.argument == pytest.approx(0.1 * rms)
        above = float((gaps > 0.1 * rms).double().mean())
        assert over.measured == pytest.approx(above)
        assert over.value == pytest.approx(min(1.0, above + exceedance_everywhere(gaps, share)))
        (mean,) = by_kind["mean"]
        assert mean.value == pytest.approx(empirical_bernstein(gaps, 50.0, share))
        assert all(s.delta == delta for s in (*changed, *held))

    def test_in_sample_statements_guarantee_nothing(self):
        dense = torch.randn(300, 3, dtype=torch.float64)
        with pytest.warns(prunus.theory.gap.InSampleWarning):
            changed, held = data_statements(dense, dense + 0.1, in_sample=True)
        assert {s.status for s in (*changed, *held)} == {"PRED"}
        assert {s.delta for s in (*changed, *held)} == {0.0}


class TestRounding:
    """The rounding terms, by hand for one stage of each kind; u is large so that slips show."""

    U = 2.0**-12

    def gamma(self, n):
        return n * self.U / (1 - n * self.U)

    def of(self, stages, x=1.0, radius=0.0, width=1):
        centre = torch.full((1, width), x, dtype=torch.float64)
        return rounding_error(stages, radius, centre, self.U)

    def test_a_matrix_with_a_bias(self):
        stages = [scalar("a", 2.0, 3.0, 0.5, 0.25)]
        expected = self.gamma(3) * ((2 * 1.5 + 0.5) + (3 * 1.5 + 0.25))
        assert self.of(stages, x=1.0, radius=0.5) == pytest.approx(expected, rel=1e-6)
        dense, pruned = (rounding_at(stages, tensor([[1.0], [-4.0]]), self.U, pruned=p)
                         for p in (False, True))  # fmt: skip
        assert dense.tolist() == pytest.approx([self.gamma(3) * (2 * s + 0.5) for s in (1, 4)])
        assert pruned.tolist() == pytest.approx([self.gamma(3) * (3 * s + 0.25) for s in (1, 4)])

    def test_errors_pass_on_and_new_ones_are_added(self):
        stages = [scalar("a", 2.0, 0.0), scalar("b", 5.0, 0.0)]
        first = self.gamma(3) * 2
        expected = 5 * first + self.gamma(3) * 5 * (2 + first)
        assert self.of(stages) == pytest.approx(expected, rel=1e-6)

    def test_activations_pooling_and_sums(self):
        u = self.U
        relu = [scalar("a", 2.0, 0.0), act("relu")]
        assert self.of(relu) == pytest.approx(self.gamma(3) * 2, rel=1e-6)
        tanh = [act("tanh"), scalar("a", 1.0, 1.0)]
        inner = 8 * u * 0.5  # of a value of at most 0.5
        each = inner + self.gamma(3) * (math.tanh(0.5) + inner)
        assert self.of(tanh, x=0.5) == pytest.approx(2 * each, rel=1e-6)
        assert self.of([act("tanh")], x=100.0) == pytest.approx(2 * 8 * u)  # |tanh| <= 1
        assert self.of([act("sigmoid")], x=0.0) == pytest.approx(2 * 8 * u * 0.5)
        mean = [Lipschitz(name="mean", gain=0.5, function=lambda x: x / 2, terms=30)]
        assert self.of(mean, x=3.0) == pytest.approx(2 * self.gamma(32) * 0.5 * 3)
        moved = [Lipschitz(name="identity", gain=1.0, function=lambda x: x, terms=0)]
        assert self.of(moved, x=3.0) == 0.0
        doubled = [Branches(name="sum", branch=())]
        assert self.of(doubled, x=3.0) == pytest.approx(2 * u * 6)
        stacked = [Branches(name="cat", branch=(), axis=1)]
        assert self.of(stacked, x=3.0) == 0.0
        late = [scalar("a", 1.0, 1.0), Branches(name="sum", branch=())]
        one = self.gamma(3)
        assert self.of(late) == pytest.approx(2 * ((1 + u) * 2 * one + u * 2), rel=1e-6)

    def test_softplus_is_not_quite_what_networks_compute(self):
        stages = [act("softplus")]
        tiny = rounding_error(stages, 0.0, torch.zeros(1, 4).double(), 2.0**-53)
        assert tiny == pytest.approx(2 * 2.1e-9 * 2, rel=1e-3)
        jump = torch.nn.functional.softplus(tensor([20.0, 20.0 + 1e-12]))
        assert abs(float(jump[1] - jump[0]) - 1e-12) < 2.1e-9

    def test_convolutions_count_padding_that_repeats(self):
        kernel = torch.ones(1, 1, 1, 3, dtype=torch.float64)
        shapes = {mode: Geometry(size=(1, 4), padding=((0, 0), (4, 4)), mode=mode)
                  for mode in ("zeros", "circular")}  # fmt: skip
        x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
        found = {
            mode: rounding_error([LinearPair(name="c", weight=kernel, pruned_weight=kernel,
                                             geometry=shape)], 0.0, x, self.U)
            for mode, shape in shapes.items()
        }  # fmt: skip
        assert found["zeros"] == pytest.approx(2 * self.gamma(5) * 3 * 2, rel=1e-6)
        assert found["circular"] == pytest.approx(math.sqrt(3) * found["zeros"], rel=1e-6)

    def test_a_bias_of_a_convolution_rounds_at_every_position(self):
        kernel = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        pair = LinearPair(name="c", weight=kernel, pruned_weight=kernel, bias=tensor([3.0]),
                          pruned_bias=tensor([3.0]), geometry=Geometry(size=(2, 2)))  # fmt: skip
        found = rounding_error([pair], 0.0, torch.zeros(1, 1, 2, 2).double(), self.U)
        assert found == pytest.approx(2 * self.gamma(3) * 3 * math.sqrt(4), rel=1e-6)

    def test_folded_norms_count_what_cancels(self):
        plain = LinearPair(name="a", weight=tensor([[1.0]]), pruned_weight=tensor([[1.0]]),
                           bias=tensor([0.0]), pruned_bias=tensor([0.0]))  # fmt: skip
        folded = dataclasses.replace(plain, offsets=tensor([7.0]))
        assert self.of([plain]) == pytest.approx(2 * self.gamma(3), rel=1e-6)
        assert self.of([folded]) == pytest.approx(2 * self.gamma(11) * (1 + 7), rel=1e-6)

    def test_inputs_that_the_pruned_network_rounds(self):
        stages = [scalar("a", 2.0, 3.0)]
        entry = 2.0**-6
        without = rounding_at(stages, tensor([[4.0]]), self.U, pruned=True)
        with_entry = rounding_at(stages, tensor([[4.0]]), self.U, pruned=True, entry=entry)
        added = 3 * 4 * entry * (1 + self.gamma(3))
        assert float(with_entry - without) == pytest.approx(added, rel=1e-6)
        total = rounding_error(stages, 1.0, tensor([[4.0]]), self.U, entry=entry)
        plain = rounding_error(stages, 1.0, tensor([[4.0]]), self.U)
        assert total - plain == pytest.approx(added * 5 / 4, rel=1e-6)

    def test_too_coarse_arithmetic_proves_nothing(self):
        ones = torch.ones(1, 2046, dtype=torch.float64)
        wide = LinearPair(name="a", weight=ones, pruned_weight=ones)
        assert math.isinf(self.of([wide], width=2046))
        assert math.isfinite(rounding_error([wide], 0.0, ones, 2.0**-13))

    def test_products_that_underflow_err_by_steps(self):
        """1e-4 · 1e-4 is 0 in float16: an error of the whole value, which no γ explains."""
        tiny = 2.0**-24
        stages = [scalar("a", 0.0, 0.0)]
        assert rounding_error(stages, 0.0, tensor([[0.0]]), 2.0**-11) == pytest.approx(6 * tiny)
        tanh = rounding_error([act("tanh")], 0.0, torch.zeros(1, 4).double(), 2.0**-11)
        assert tanh == pytest.approx(2 * 2 * tiny)
        mean = Lipschitz(name="mean", gain=0.5, function=lambda x: x[:, :1], terms=4)
        found = rounding_error([mean], 0.0, torch.zeros(1, 4).double(), 2.0**-11)
        assert found == pytest.approx(2 * 4 * tiny)
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).half()
        model[0].weight.data.fill_(1e-4)
        model[1].weight.data.fill_(1.0)
        thin = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).half()
        thin[0].weight.data.fill_(2e-4)
        thin[1].weight.data.fill_(1.0)
        x = torch.full((8, 1), 1e-4).half()
        with torch.no_grad():
            assert float(model.eval()(x).abs().max()) == 0
        certificate = prunus.certify(model, thin.eval(), data=x)
        assert math.isfinite(certificate.value)


class TestPlans:
    """The solver, where its separable errors mislead it, and where they do not."""

    def problem(self, exact, errors):
        kept = {name: np.array([10, 5, 1]) for name in ("a", "b")}
        return Problem(kept=kept, errors=[np.array(e) for e in errors], exact=exact,
                       cost=lambda counts: float(sum(counts.values())), squared=False)  # fmt: skip

    def test_one_share_for_all_wins_where_errors_mislead(self):
        def exact(counts):
            return 1.0 if counts["a"] == counts["b"] == 5 else 9.0

        problem = self.problem(exact, [[0.0, 0.1, 0.2], [0.0, 50.0, 60.0]])
        assert solve(problem, 1.0) == (1, 1)
        assert solve(problem, 0.5) == (0, 0)
        assert solve(problem, 0.0) == (0, 0)

    def test_the_cheapest_plan_within_the_limit_is_found(self):
        errors = [[0.0, 0.1, 0.4], [0.0, 2.0, 8.0]]

        def exact(counts):
            place = {10: 0, 5: 1, 1: 2}
            return errors[0][place[counts["a"]]] + errors[1][place[counts["b"]]]

        problem = self.problem(exact, errors)
        for target in (0.05, 0.1, 0.4, 2.1, 2.4, 8.4):
            best = min(
                (problem.total(c) for c in itertools.product(range(3), repeat=2)
                 if exact(problem.counts(c)) <= target),
            )  # fmt: skip
            choice = solve(problem, target)
            assert problem.value(choice) <= target
            assert problem.total(choice) == best
        assert least_error(problem, 11.0) == (2, 0)
        assert least_error(problem, 6.0) == (2, 1)


class TestDrawn:
    """Masks not yet drawn, where the expectation or the norm is exact."""

    def test_the_mean_square_of_one_layer_is_exact(self):
        """E ‖(W − V) x‖² = Σ W² (1 − p)/p x², over all masks with their probabilities."""
        weight, x, p = tensor([[1.0, -2.0], [0.5, 3.0]]), tensor([[1.0, 2.0], [-1.0, 0.5]]), 0.4
        expected = 0.0
        for bits in itertools.product([0.0, 1.0], repeat=4):
            mask = tensor(bits).reshape(2, 2)
            odds = math.prod(p if b else 1 - p for b in bits)
            gap = x @ (weight - weight * mask / p).T
            expected += odds * float(gap.square().sum(1).mean())
        stages = [LinearPair(name="a", weight=weight, pruned_weight=weight)]
        found = drawn_mean_square(stages, {"a": p}, x).value
        assert found == pytest.approx(math.sqrt(expected), **EXACT)

    def test_masks_of_an_exact_size_vary_more(self):
        """Weights that cancel: E gap² is N/(N − 1) times that of independent masks, exactly."""
        weight, x = tensor([[1.0, -1.0, 1.0, -1.0]]), torch.ones(1, 4, dtype=torch.float64)
        kept, total, expected = 2, 4, 0.0
        masks = list(itertools.combinations(range(total), kept))
        for chosen in masks:
            mask = torch.zeros(1, 4, dtype=torch.float64)
            mask[0, list(chosen)] = total / kept
            expected += float((x @ (weight - weight * mask).T).square().sum()) / len(masks)
        stages = [LinearPair(name="a", weight=weight, pruned_weight=weight)]
        p = {"a": kept / total}
        independent = drawn_mean_square(stages, p, x).value
        assert independent**2 * 4 / 3 == pytest.approx(expected)
        found = drawn_mean_square(stages, p, x, fixed_size=True).value
        assert found == pytest.approx(math.sqrt(expected), **EXACT)

    @pytest.mark.parametrize("layers", [2, 3])
    def test_errors_below_pass_the_next_draw(self, layers):
        """Scalars: E(F − f)² by all masks lies between the recursion's exact part and its value."""
        w, p = [2.0, -1.5, 0.5][:layers], [0.5, 0.8, 0.25][:layers]
        expected = 0.0
        for bits in itertools.product([0, 1], repeat=layers):
            odds = math.prod(q if b else 1 - q for b, q in zip(bits, p, strict=True))
            expected += odds * (math.prod(w) - math.prod(
                b * a / q for a, b, q in zip(w, bits, p, strict=True))) ** 2  # fmt: skip
        stages = [scalar(f"fc{i}", a, a) for i, a in enumerate(w)]
        densities = {f"fc{i}": q for i, q in enumerate(p)}
        found = drawn_mean_square(stages, densities, tensor([[1.0]])).value
        error, size = 0.0, 1.0
        for a, q in zip(w, p, strict=True):
            noise = abs(a) * math.sqrt((1 - q) / q)
            error = math.sqrt((a * error) ** 2 + (noise * size + noise * error) ** 2)
            size *= abs(a)
        assert found == pytest.approx(error, **EXACT)
        assert expected <= found**2 <= 4 * expected

    def test_padding_that_repeats_costs_its_copies_before_the_mask_is_drawn(self):
        kernel = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()

        def drawn(padding, rescaled, mode="circular"):
            pads = ((padding, padding), (padding, padding))
            shape = Geometry(size=(4, 4), padding=pads, mode=mode)
            return drawn_conv_norm(kernel, 0.5, 0.1, shape, rescaled=rescaled).value

        for rescaled in (True, False):  # 6 outputs of a period of 4: each axis shows some twice
            assert drawn(2, rescaled) == pytest.approx(2 * drawn(1, rescaled), **EXACT)
        masks = torch.Generator().manual_seed(1)
        shape = Geometry(size=(4, 4), padding=((3, 3), (3, 3)), mode="circular")
        bound = drawn_conv_norm(kernel, 0.5, 0.1, shape).value
        above = 0
        for _ in range(60):
            mask = torch.bernoulli(torch.full(kernel.shape, 0.5), generator=masks).double()
            above += conv_norm(kernel - 2 * kernel * mask, shape).value > bound
        assert above <= 13  # P(Bin(60, 0.1) > 13) < 0.004, and a bound this loose gives 0

    def test_nothing_drawn_and_everything_removed_are_exact(self):
        weight = tensor([[3.0, 0.0], [0.0, 1.0]])
        assert drawn_norm(weight, 1.0, 0.05).value == 0
        assert drawn_norm(weight, 0.0, 0.05, rescaled=False).value == pytest.approx(3.0, **EXACT)
        stages = [LinearPair(name="a", weight=weight, pruned_weight=weight), scalar("b", 1.0, 1.0)]
        stages[1] = LinearPair(name="b", weight=weight, pruned_weight=weight)
        found = drawn_sup(stages, {"a": 0.0}, radius=2.0, rescaled=False, delta=0.05)
        # V = 0: ‖V₂‖ ‖D₁‖ B, with ‖V₂‖ = ‖W₂‖ = 3 as layer b is whole
        assert found.value == pytest.approx(3 * 3 * 2.0, **EXACT)
        shifted = drawn_sup(stages, {"a": 0.0}, radius=2.0, centre=[1.0, 0.0], rescaled=False,
                            delta=0.05)  # fmt: skip
        assert shifted.value == pytest.approx(3 * 3 * 3.0, **EXACT)
