"""Plans and masks not yet drawn, where the answer is exact."""

import itertools
import math

import numpy as np
import pytest
import torch

from prunus.guarantee.solve import Problem, least_error, solve
from prunus.theory.gap import (
    LinearPair,
)
from prunus.theory.gap.concentration import concentrated_norm
from prunus.theory.gap.convolution import Geometry, conv_norm
from prunus.theory.gap.given_weights import (
    drawn_conv_norm,
    drawn_mean_square,
    drawn_norm,
    drawn_sup,
)
from prunus.theory.gap.layer_norms import fixed_size_delta
from reference.stages import EXACT, scalar, tensor

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


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

    def test_masks_of_an_exact_size_share_the_risk_of_their_count(self):
        """δ · P(Bin(4, ½) = 2) = δ · 3/8, and δ · C(5, 1) 0.2 · 0.8⁴; all or nothing is certain."""
        assert fixed_size_delta(0.1, 4, 2) == pytest.approx(0.1 * 3 / 8, rel=1e-8)
        assert fixed_size_delta(0.1, 4, 2) < 0.1 * 3 / 8  # rounded to the safe side
        assert fixed_size_delta(0.2, 5, 1) == pytest.approx(0.2 * 5 * 0.2 * 0.8**4, rel=1e-8)
        assert fixed_size_delta(0.1, 7, 0) == fixed_size_delta(0.1, 7, 7) == 0.1

    def test_tails_are_their_formulas(self):
        """At δ = e^{−2} the deviation is exactly two intervals; at e^{−8}, four."""
        assert concentrated_norm(3.0, 0.5, math.exp(-2)) == pytest.approx(3.0 + 0.5 * 2, **EXACT)
        assert concentrated_norm(3.0, 0.5, math.exp(-8)) == pytest.approx(3.0 + 0.5 * 4, **EXACT)

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
