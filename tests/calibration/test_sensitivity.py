"""Squared gradients of the outputs, against one backward pass per sample and output."""

import pytest
import torch
from torch import nn

import prunus
from models import build
from prunus.calibration import calibrate
from prunus.calibration.signals import PROBES
from prunus.guarantee.extract import extract
from prunus.theory.gap.sensitivity import sensitivities


class Odd(nn.Module):
    """A layer called twice, activations in place, positions beside samples."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.again = nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(self.again(self.relu(self.again(x))))
        return self.last(x.mean(1))


def odd():
    torch.manual_seed(0)
    return Odd(), torch.randn(7, 3, 5)


def convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 2, groups=6),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    x = torch.randn(5, 4, 7, 7)
    model(x)
    return model, x


def one_by_one(model, x, name):
    """Σ over samples and outputs of the squared gradient, over the samples."""
    weight = model.get_submodule(name).weight
    model.eval()
    total = torch.zeros_like(weight, dtype=torch.float64)
    for sample in x:
        for output in model(sample[None]).flatten():
            total += torch.autograd.grad(output, weight, retain_graph=True)[0].double().square()
    return total.flatten(1) / len(x)


ZOO = ["mlp-relu", "cnn-relu", "mixed", "conv1d", "conv3d", "called-twice", "attention", "gated"]


@pytest.mark.parametrize("net", [*ZOO, odd, convolutions])
def test_it_is_the_mean_square_gradient_of_single_samples(net):
    model, x = build(net) if isinstance(net, str) else net()
    x = x[:3]
    found = calibrate(model, x, ("sensitivity",))
    for name, layer in found.items():
        assert layer.sensitivity.dtype == torch.float64
        expected = one_by_one(model, x, name)
        torch.testing.assert_close(layer.sensitivity, expected, rtol=1e-4, atol=1e-9)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_sums_add_and_do_not_depend_on_batches_or_on_what_else_is_collected():
    model, x = convolutions()
    whole = calibrate(model, x, ("sensitivity",))
    merged = calibrate(model, x[:2], ("sensitivity",)) + calibrate(model, x[2:], ("sensitivity",))
    labels = torch.tensor([0, 1, 2, 0, 1])
    also = calibrate(model, [(x[:3], labels[:3]), (x[3:], labels[3:])],
                     ("gram", "grad", "sensitivity"))  # fmt: skip
    plain = calibrate(model, (x, labels), ("gram", "grad"))
    for name, layer in whole.items():
        torch.testing.assert_close(merged[name].sensitivity, layer.sensitivity, rtol=1e-5, atol=0)
        torch.testing.assert_close(also[name].sensitivity, layer.sensitivity, rtol=1e-5, atol=0)
        torch.testing.assert_close(also[name].gram, plain[name].gram)
        torch.testing.assert_close(also[name].grad, plain[name].grad, rtol=1e-5, atol=1e-7)
        assert also[name].samples == plain[name].samples


def test_it_is_that_of_the_theory():
    model, x = build("mlp-relu")
    found = calibrate(model, x, ("sensitivity",))
    theory = sensitivities(extract(model, model, x).stages, x.double())
    for name, layer in found.items():
        torch.testing.assert_close(layer.sensitivity, theory[name], rtol=1e-4, atol=1e-9)


def test_many_outputs_are_probed_without_bias():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, PROBES + 6))
    x = torch.randn(40, 3)
    exact = one_by_one(wide, x, "0")
    draws = torch.stack(
        [calibrate(wide, x, ("sensitivity",), seed=s)["0"].sensitivity for s in range(30)]
    )
    assert not torch.equal(draws[0], draws[1])
    again = calibrate(wide, x, ("sensitivity",), seed=0)["0"].sensitivity
    assert torch.equal(again, draws[0])
    error = draws.std(0) / 30**0.5
    assert ((draws.mean(0) - exact).abs() < 5.5 * error).all()  # 12 t-tests, together < 1e-4


def test_padding_and_outputs_without_a_tensor():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x, attention_mask):
            return self.fc(x)

    torch.manual_seed(0)
    model, x = Masked(), torch.randn(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {"x": x, "attention_mask": mask}
    far = {"x": x + 9 * (1 - mask)[..., None], "attention_mask": mask}
    found = calibrate(model, batch, ("sensitivity",))["fc"].sensitivity
    torch.testing.assert_close(found, calibrate(model, far, ("sensitivity",))["fc"].sensitivity)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return {"y": str(self.fc(x).shape)}

    with pytest.raises(TypeError, match=r"returns dict, and no tensor or `\.logits`"):
        calibrate(Named(), torch.ones(1, 2), ("sensitivity",))


@pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")
def test_the_recipe_prunes_what_moves_the_outputs_least():
    """Half of the weights go; the gap is several times below that of magnitude pruning."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    scale = torch.logspace(0, -2, 30)
    x, fresh = torch.randn(200, 30) * scale, torch.randn(400, 30) * scale
    gaps = {}
    for recipe in ("magnitude", "magnitude-global", "gap-gradient"):
        pruned = prunus.prune(model, recipe, 0.5, data=x)
        with torch.no_grad():
            gaps[recipe] = float((model(fresh) - pruned.model(fresh)).square().sum(1).mean().sqrt())
    assert gaps["gap-gradient"] < 0.4 * min(gaps["magnitude"], gaps["magnitude-global"])
    found = pruned.certify(fresh)
    assert found.of("predicted")[0].measured == pytest.approx(gaps["gap-gradient"], rel=1e-3)
    assert gaps["gap-gradient"] <= found.of("mean_square")[0].value
