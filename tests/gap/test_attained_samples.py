"""Bounds at given inputs and held-out statements: attained, from definitions, at their edges."""

import math

import pytest
import scipy.stats
import torch

import prunus
from prunus.theory.gap import (
    LinearPair,
    Pointwise,
    leaky_relu,
)
from prunus.theory.gap.from_data import data_statements
from prunus.theory.gap.held_out import (
    clopper_pearson,
    empirical_bernstein,
    exceedance_everywhere,
    held_out_quantile,
    robustly_unchanged,
    sample_size_for_quantile,
)
from prunus.theory.gap.per_sample import (
    chain_gains,
    pairwise_unchanged,
    pointwise_bound,
    sample_bound,
)
from prunus.theory.gap.stages import run
from reference.stages import EXACT, POSITIVE, act, gap_at, scalar, tensor

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


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
