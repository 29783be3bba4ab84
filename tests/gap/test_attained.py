"""Every rule and route over a ball, where its bound is attained: a slip in either direction shows.

Random networks leave bounds slack by factors, so that unsound changes pass. Here each bound equals
the gap of one input, or lies just above it.
"""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

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
from prunus.theory.gap.norms import block_power, lanczos, spectral_norm
from prunus.theory.gap.per_sample import (
    pointwise_bound,
    sample_bound,
)
from prunus.theory.gap.stages import layer_norms, run
from reference.stages import EXACT, POSITIVE, act, gap_at, product, scalar, tensor

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")

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

    @pytest.mark.parametrize("size", [1e-200, 1e-160, 1e160, 1e200])
    @pytest.mark.parametrize("method", ["exact", "gram_power", "cheap", "lanczos", "block_power"])
    def test_norms_of_any_size_neither_vanish_nor_overflow(self, size, method):
        matrix = size * torch.diag(tensor([3.0, 2.0, 1.0]))
        start = torch.Generator().manual_seed(0)
        if method == "lanczos":  # 3 steps prove nothing at the usual δ
            matrix = size * torch.eye(200).double()
        found = spectral_norm(matrix, method=method, delta=0.5, generator=start).value / size
        true = 1.0 if method == "lanczos" else 3.0
        assert true * (1 - 1e-12) <= found <= 1.3 * true

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
