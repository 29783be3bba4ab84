"""Which samples are read, and what two networks' outputs on them come to."""

import pytest
import torch
from torch import nn

from prunus.calibration import calibrate
from prunus.guarantee.criteria import Outputs, float_inputs, outputs_of, sampled, size_of_all, split
from prunus.guarantee.networks import RealPair

X = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
BATCHES = [X[:10], X[10:15], X[15:]]


class Line(nn.Module):
    """Outputs w x, or of one output the numbers themselves, without an axis."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return (x[:, :1] * self.weight).squeeze(1)


def test_gaps_and_changed_predictions_are_those_of_the_outputs():
    dense, pruned = Line([1.0, -1.0, 0.5]), Line([1.0, 2.0, 0.5])
    outputs = Outputs(dense, BATCHES)
    assert torch.equal(outputs.dense, dense(X).detach().double())
    assert outputs.samples == 23
    expected = (3 * X[:, 0].double()).square().mean()
    assert outputs.square(pruned) == pytest.approx(float(expected))
    assert outputs.scale**2 == pytest.approx(float(2.25 * X[:, 0].double().square().mean()))
    assert outputs.changed(pruned) == 23  # the first or second, and the second or first
    assert outputs.changed(Line([1.0, -1.0, 0.9])) == 0
    assert outputs.square(Line([1.0, float("nan"), 1.0])) == float("inf")
    with pytest.raises(ValueError, match=r"^The network's outputs on the data are NaN or infinite"):
        Outputs(Line([1.0, float("inf")]), BATCHES)


def test_one_output_is_a_column_and_predicts_no_class():
    line = Line([2.0])
    torch.testing.assert_close(outputs_of(line, X), 2 * X[:, :1].double())
    outputs = Outputs(line, BATCHES)
    assert outputs.square(Line([3.0])) == pytest.approx(float(X[:, 0].double().square().mean()))
    with pytest.raises(ValueError, match=r"^kind='changed' counts predicted classes, the network"):
        outputs.changed(line)


def test_the_first_samples_are_read_and_no_more():
    def batches():
        for batch in BATCHES:
            taken.append(len(batch))
            yield batch

    for largest in range(1, 26):
        taken = []
        for data in (BATCHES, batches()):
            assert torch.equal(torch.cat(sampled(data, largest)), X[:largest])
        assert sum(taken) - taken[-1] < largest
    with pytest.raises(ValueError, match=r"^`data` must be the inputs themselves, got a Calibrat"):
        sampled(calibrate(nn.Linear(4, 2), X), 5)


@pytest.mark.parametrize("first", [0, 1, 11, 22, 23, 40])
def test_samples_are_split_in_two(first):
    one, other = split(BATCHES, first)
    assert size_of_all(one) == min(first, 23)  # pieces of one sample, of fewer than 32
    both = torch.cat([*one, *other])
    assert torch.equal(both.sort(0).values, X.sort(0).values)
    again = split(BATCHES, first)
    assert all(torch.equal(a, b) for a, b in zip(one, again[0], strict=True))
    wide = [torch.arange(3200.0)[:, None]]
    part, rest = split(wide, 1000)
    assert 1000 - 64 < size_of_all(part) <= 1000
    assert size_of_all(rest) == 3200 - size_of_all(part)


def test_inputs_are_one_tensor_of_floats_or_none():
    assert torch.equal(float_inputs(BATCHES), X)
    assert torch.equal(float_inputs([(X, torch.arange(23))]), X)
    assert float_inputs([]) is None
    for other in ([X, X.long()], [{"a": X, "b": X}], [{"a": 3}]):
        assert float_inputs(other) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_of_a_network_in_less_precision_are_rounded_by_at_most_entry(dtype):
    """Attained just above a power of two, half way between two numbers of the type."""
    pair = RealPair(nn.Linear(1, 1), nn.Linear(1, 1).to(dtype))
    x = 1 + torch.arange(1, 4097, dtype=torch.float64)[:, None] / 4096
    apart = ((x.to(dtype).double() - x) / x).abs().max()
    assert 0.99 * pair.entry < float(apart) <= pair.entry
    assert RealPair(nn.Linear(1, 1), nn.Linear(1, 1)).entry == 0.0
    read, dense, pruned = pair(x)
    assert torch.equal(read, x.float().double())
    rounded = x.to(dtype)
    assert torch.equal(dense, pair._model(x.float()).detach().double())
    assert torch.equal(pruned, pair._pruned(rounded).detach().double())
