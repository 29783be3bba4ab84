"""Sequences, concatenation, pooling by functions, dropout: extraction, soundness, refusal."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.guarantee.extract import Unsupported, extract
from prunus.guarantee.masks import masked_model
from prunus.theory.gap.convolution import conv_norm
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.stages import Branches, linear_stages, run

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


class Sequence(nn.Module):
    """Conv1d in all forms, with batch norms folded and not, and 1-d pooling."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(3, 6, 5, padding="same", bias=False)
        self.bn = nn.BatchNorm1d(6)
        self.pool = nn.MaxPool1d(3, 2)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Conv1d(6, 8, 3, stride=2, dilation=2, groups=2, padding=2)
        self.ring = nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular")
        self.mean = nn.AvgPool1d(2)
        self.all = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.pool(torch.relu(self.bn(self.first(x)))))
        x = self.mean(F.leaky_relu(self.ring(torch.tanh(self.second(x))), 0.1))
        return self.head(torch.flatten(self.all(x), 1))


class Dense(nn.Module):
    """Concatenations of three branches, the input among them, and functional pooling."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(2, 3, 3, padding=1)
        self.two = nn.Conv2d(5, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(9)
        self.three = nn.Conv2d(9, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = torch.cat([x, torch.relu(self.one(x))], dim=1)
        z = torch.cat((y, torch.sigmoid(self.two(y))), 1)
        w = F.avg_pool2d(F.max_pool2d(F.relu(self.three(self.bn(z))), 2), 2)
        return self.head(F.dropout(w, training=self.training).mean(dim=(2, 3)))


class Wide(nn.Module):
    """Three matrices side by side: the rule is exact for linear branches of equal inputs."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(5, n, bias=False) for n in (2, 3, 4))

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], dim=-1)


def made(net):
    torch.manual_seed(0)
    model = net()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.1)
    return model.eval()


def thinned(model, density):
    masks = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            w = m.weight.detach().abs()
            masks[name] = (w > w.flatten().quantile(1 - density)).float()
    return masks


SHAPES = {Sequence: (3, 20), Dense: (2, 8, 8), Wide: (5,)}


@pytest.mark.parametrize("net", list(SHAPES))
def test_extraction_and_soundness(net):
    """The stages compute the models; ascent and the data never exceed the certificate."""
    model, generator = made(net), torch.Generator().manual_seed(0)
    x = torch.randn(40, *SHAPES[net], generator=generator)
    other = masked_model(model, thinned(model, 0.8))
    found = extract(model, other, x)
    for pruned, network in ((False, model), (True, other)):
        outputs = run(found.stages, x.double(), pruned=pruned).float()
        torch.testing.assert_close(outputs, network(x), rtol=1e-4, atol=1e-5)
    certificate = prunus.certify(model, other, data=x)
    centre = x.double().mean(dim=0, keepdim=True)
    sup = largest_gap(
        found.stages, certificate.radius, centre, steps=40, starts=4, generator=generator
    )
    assert sup <= certificate.value < math.inf
    for statement in (*certificate.of("sup"), *certificate.of("mean_square")):
        assert statement.measured <= statement.value
    names = {p.name for p in linear_stages(found.stages)} - {"norm", "bn"}
    assert names == set(found.weights) == set(thinned(model, 1.0))
    assert {"sup", "mean_square", "predicted"} <= {s.kind for s in certificate.statements}


def test_concatenated_matrices_are_one_matrix():
    """The bound of the concatenation is at most √(Σ ‖D_i‖²), and at least ‖D‖ of the whole."""
    model = made(Wide)
    masks = thinned(model, 0.5)
    found = extract(model, masked_model(model, masks), torch.zeros(1, 5))
    assert all(isinstance(s, Branches) and s.axis == -1 for s in found.stages)
    value = prunus.certify(model, masks, radius=1.0, data=torch.zeros(3, 5)).value
    removed = [
        part.weight.detach().double() * (1 - masks[f"parts.{i}"]) for i, part in
        enumerate(model.parts)
    ]  # fmt: skip
    each = math.sqrt(sum(float(torch.linalg.matrix_norm(d, 2)) ** 2 for d in removed))
    whole = float(torch.linalg.matrix_norm(torch.cat(removed), 2))
    assert whole <= value <= each * (1 + 1e-4)
    assert value == pytest.approx(each, rel=1e-4)
    assert each < sum(float(torch.linalg.matrix_norm(d, 2)) for d in removed) / 1.2


def test_sequences_have_safe_norms():
    """Every Conv1d's norm bound against its matrix, built one unit sequence at a time."""
    model = made(Sequence)
    x = torch.zeros(1, 3, 20)
    stages = extract(model, model, x).stages
    sizes = {"second": 9, "ring": 5}
    for pair in linear_stages(stages):
        if pair.name in sizes:
            module, size = model.get_submodule(pair.name), sizes[pair.name]
            units = torch.eye(module.in_channels * size).reshape(-1, module.in_channels, size)
            zero = module(torch.zeros(1, module.in_channels, size))
            matrix = (module(units) - zero).flatten(1).T.detach().double()
            true = float(torch.linalg.svdvals(matrix)[0])
            bound = conv_norm(pair.weight, pair.geometry).value
            assert true * (1 - 1e-6) <= bound <= 1.3 * true


def test_what_has_no_rule_is_refused_by_name():
    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return torch.cat([self.fc(x), x])

    with pytest.raises(Unsupported, match="'cat' concatenates along the batch"):
        extract(made(Batch), made(Batch), torch.zeros(1, 4))
    dropping = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    with pytest.raises(Unsupported, match=r"'1' \(Dropout\) is in training mode"):
        extract(dropping, dropping, torch.zeros(1, 4))
    training = made(Dense)
    training.training = True  # a functional dropout reads it
    with pytest.raises(Unsupported, match="dropout"):
        extract(training, training, torch.zeros(1, 2, 8, 8))
    recurrent = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with pytest.raises(TypeError, match=r"LSTM|'1'"):
        prunus.certify(recurrent, recurrent, radius=1.0)
