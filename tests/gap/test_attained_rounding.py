"""Rounding terms by hand, for one stage of each kind."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import prunus
from prunus.theory.gap import (
    Branches,
    LinearPair,
    Lipschitz,
)
from prunus.theory.gap.convolution import Geometry
from prunus.theory.gap.rounding import rounding_at, rounding_error
from reference.stages import act, scalar, tensor

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


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
