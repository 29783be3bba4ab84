"""What is sent back through a network: roots of the loss's second derivative, probes, positions."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.calibration import calibrate
from prunus.calibration.signals import PROBES, output_signals, softmax_signals
from prunus.calibration.statistics import Curvature, GateCurvature, OutputZeros
from prunus.rng import generator_for


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def outer(signals):
    """Σ s sᵀ of every sample, (samples, outputs, outputs)."""
    rows = torch.stack([s.flatten(1) for s in signals])
    return torch.einsum("kni,knj->nij", rows, rows)


def softmax_hessian(rows):
    p = rows.softmax(-1)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def test_the_signals_are_a_root_of_the_second_derivative():
    z = drawn(3, 7)
    generator = generator_for(0, "test")
    torch.testing.assert_close(outer(softmax_signals(z, z, generator)), softmax_hessian(z))
    ones = outer(output_signals(z, z, generator))
    torch.testing.assert_close(ones, torch.eye(7, dtype=torch.float64).expand(3, 7, 7))


def test_positions_have_softmaxes_of_their_own():
    """Between positions the second derivative is zero; a softmax over both would not be."""
    z = drawn(2, 3, 5)
    found = outer(softmax_signals(z, z, generator_for(0, "test")))
    expected = torch.zeros(2, 15, 15, dtype=torch.float64)
    for t in range(3):
        block = slice(5 * t, 5 * t + 5)
        expected[:, block, block] = softmax_hessian(z[:, t])
    torch.testing.assert_close(found, expected)


def test_classes_lie_where_the_labels_of_a_pair_leave_them():
    z = drawn(2, 3, 4)  # three classes at four positions, as cross_entropy takes them
    labels = torch.tensor([[0, 1, 2, -100], [2, -100, -100, 1]])
    found = outer(softmax_signals(z, (z, labels), generator_for(0, "test")))
    weight = (labels != -100).double()

    def loss(values, n):
        return nn.functional.cross_entropy(values[None], labels[n][None], reduction="sum")

    for n in range(2):
        hessian = torch.autograd.functional.hessian(lambda v, n=n: loss(v, n), z[n])
        torch.testing.assert_close(found[n], hessian.reshape(12, 12))
    assert float(weight.sum()) == 5


def test_more_outputs_than_probes_are_unbiased():
    z = drawn(1, PROBES + 6)
    generator = generator_for(0, "test")
    draws = torch.stack([outer(softmax_signals(z, z, generator)) for _ in range(300)])
    assert len(softmax_signals(z, z, generator)) == PROBES
    error = (draws.mean(0) - softmax_hessian(z)).abs()
    # 4900 entries, normal to a good approximation at 300 × 64 signs: together < 1e-4
    assert bool((error <= 6 * draws.std(0) / 300**0.5 + 1e-12).all())
    wrong = torch.diag_embed(z.softmax(-1))  # without − p pᵀ
    assert not bool(((draws.mean(0) - wrong).abs() <= 6 * draws.std(0) / 300**0.5 + 1e-12).all())


def test_squared_error_is_curved_alike_everywhere():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = drawn(6, 4)
    found = calibrate(model, x, Curvature(loss="squared-error"))
    twice = calibrate(model, x, "sensitivity")
    for name, layer in found.items():
        torch.testing.assert_close(layer.curvature, 2 * twice[name].sensitivity)

    def loss(values):
        out = torch.func.functional_call(model, {"0.weight": values}, (x,))
        return (out - 1.7).square().sum(1).mean()

    weight = model[0].weight.detach()
    exact = torch.autograd.functional.hessian(loss, weight).reshape(20, 20).diagonal()
    torch.testing.assert_close(found["0"].curvature.flatten(), exact)
    gates = calibrate(model, x, (GateCurvature(loss="squared-error"), "gate_output"))
    for values in gates.class_statistics.values():
        torch.testing.assert_close(values["gate_curvature"], 2 * values["gate_output"])
    for wrong in (Curvature, GateCurvature):
        with pytest.raises(ValueError, match=r"^Unknown loss 'mse'\. Known: cross-entropy, sq"):
            wrong(loss="mse")


def test_curvature_is_not_the_hessian_of_smooth_activations_and_fisher_is_far_below_it():
    """As the docstrings say: a negative control of the law, and the empirical Fisher's defect."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = drawn(40, 6), torch.arange(40) % 3
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()

    def loss(values):
        out = torch.func.functional_call(model, {"0.weight": values}, (x,))
        return nn.functional.cross_entropy(out, y)

    weight = model[0].weight.detach()
    exact = torch.autograd.functional.hessian(loss, weight).reshape(48, 48).diagonal()
    found = calibrate(model, (x, y), ("curvature", "fisher"))["0"]
    gap = (found.curvature.flatten() - exact).abs().max() / exact.abs().max()
    assert gap > 0.02
    assert found.fisher.sum() < 0.8 * found.curvature.sum()


def test_per_position_slopes_add_up_and_outputs_count_behind_a_relu():
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, -1.0]]))
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]]], dtype=torch.float64)
    layer = calibrate(model, x, ("slope", "output_zeros", OutputZeros()))["0"]
    assert layer.slope.tolist() == [3.0]  # three positions, each an output of its own
    assert layer.output_zeros.tolist() == [pytest.approx(2 / 3)]  # 2, −1, 0
    exact = calibrate(model, x, OutputZeros(relu=False))["0"]
    assert exact.output_zeros.tolist() == [pytest.approx(1 / 3)]


class Late(nn.Module):
    """Reads `h` in one layer, changes it in place twice, and reads it in another one.

    Autograd has kept the exponential, its own slope, when it is changed.
    """

    def __init__(self, inplace):
        super().__init__()
        self.first, self.early = nn.Linear(4, 5), nn.Linear(5, 5)
        self.late, self.last = nn.Linear(5, 5), nn.Linear(5, 3)
        self.inplace = inplace

    def forward(self, x):
        h = self.first(x)
        a = self.early(h)
        h = h.tanh_() if self.inplace else h.tanh()
        h = h.exp_() if self.inplace else h.exp()
        b = self.late(h)
        if self.inplace:
            h.add_(b).relu_()
        else:
            h = (h + b).relu()
        return self.last(torch.relu(a + h))


@pytest.mark.parametrize(
    "name",
    ["gram", "grad", "sensitivity", "fisher", "slope", "gate", "hessian_grad", "share", "flow"],
)
def test_operations_in_place_after_a_layer_has_read_its_input_change_nothing(name):
    torch.manual_seed(0)
    plain = Late(inplace=False).double().eval()
    twin = Late(inplace=True).double().eval()
    twin.load_state_dict(plain.state_dict())
    data = (drawn(9, 4), torch.arange(9) % 3)
    ours, theirs = (calibrate(model, data, name) for model in (twin, plain))
    for key, layer in theirs.items():
        if name == "gate":
            for group, values in layer.classes.items():
                torch.testing.assert_close(ours[key].classes[group][name], values[name])
        else:
            torch.testing.assert_close(ours[key].statistic(name), layer.statistic(name))


class Shifts(nn.Module):
    """Changes the tensor it is given."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.fc(x.sub_(1.0)).relu())


@pytest.mark.parametrize("name", ["gram", "hessian_grad", "sensitivity"])
def test_a_model_that_changes_its_input_leaves_the_users_data_alone(name):
    torch.manual_seed(0)
    model = Shifts().double().eval()
    x, y = drawn(9, 4), torch.arange(9) % 3
    kept = copy.deepcopy(x)
    found = calibrate(model, (x, y), name)
    assert torch.equal(x, kept)
    again = calibrate(model, (x, y), name)
    for key, layer in found.items():
        torch.testing.assert_close(again[key].statistic(name), layer.statistic(name))


def test_outputs_that_are_nan_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = drawn(5, 4)
    x[2, 1] = torch.nan
    for name in ("slope", "curvature", "gate_output"):
        with pytest.raises(ValueError, match=r"^The model's output is NaN on the data\. Check the"):
            calibrate(model, x, name)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_a_model_that_changes_its_input_is_pruned_as_its_twin(inputs):
    torch.manual_seed(0)
    model, x = Shifts().double().eval(), drawn(30, 4)
    plain = nn.Sequential(model.fc, nn.ReLU(), model.out)
    kept = x.clone()
    recipe = replace(prunus.recipes["importance-node+ls"], inputs=inputs)
    ours = prunus.prune(model, recipe, 0.6, data=x)
    theirs = prunus.prune(plain, recipe, 0.6, data=x - 1.0)
    assert torch.equal(x, kept)
    for one, other in zip(ours.layers.values(), theirs.layers.values(), strict=True):
        torch.testing.assert_close(one.weight, other.weight)
    smaller = ours.compact(x)
    torch.testing.assert_close(smaller(x.clone()), ours.model(x.clone()))
