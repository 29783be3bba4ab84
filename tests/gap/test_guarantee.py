"""Plans and certificates of models: extraction, soundness, refusal, whole numbers."""

import itertools
import math

import pytest
import torch
from torch import nn

import prunus
from prunus.guarantee.extract import Unsupported, extract
from prunus.guarantee.masks import masked_model
from prunus.theory.gap import Branches, InSampleWarning
from prunus.theory.gap.stages import linear_stages, run

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


def mlp(seed=0, widths=(12, 30, 20, 4)):
    torch.manual_seed(seed)
    parts = []
    for m, n in itertools.pairwise(widths):
        parts += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


class Block(nn.Module):
    """A residual net with batch norms, a projection shortcut, pooling and functional calls."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.short = nn.Conv2d(4, 6, 1, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.nn.functional.gelu(self.norm(self.conv(x)) + self.short(x))
        return self.fc(self.drop(torch.flatten(self.pool(x), 1)))


def cnn():
    torch.manual_seed(0)
    model = Block()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.1)
    return model.eval()


def magnitude(model, density):
    masks = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            w = m.weight.detach().abs().flatten()
            cut = w.sort().values[int((1 - density) * len(w))]
            masks[name] = (m.weight.detach().abs() >= cut).float()
    return masks


@pytest.mark.parametrize("net", [mlp, cnn])
def test_extraction_computes_the_same_network(net):
    model = net()
    generator = torch.Generator().manual_seed(0)
    shape = (7, 12) if net is mlp else (7, 2, 9, 9)
    x = torch.randn(shape, generator=generator)
    other = masked_model(model, magnitude(model, 0.7))
    found = extract(model, other, x)
    torch.testing.assert_close(
        run(found.stages, x.double()).float(), model(x), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        run(found.stages, x.double(), pruned=True).float(), other(x), rtol=1e-4, atol=1e-5
    )
    assert set(found.weights) == {
        n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }
    if net is cnn:
        assert any(isinstance(s, Branches) for s in found.stages)
        assert {p.name for p in linear_stages(found.stages)} == {"stem", "short", "conv", "fc"}


@pytest.mark.parametrize("net", [mlp, cnn])
def test_certificate_holds_on_the_models_themselves(net):
    model = net()
    shape = (300, 12) if net is mlp else (300, 2, 9, 9)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    masks = magnitude(model, 0.9)
    found = prunus.certify(model, masks, data=x)
    other = masked_model(model, masks)
    with torch.no_grad():
        gaps = (model(x) - other(x)).norm(dim=1)
    assert float(gaps.max()) <= found.value < math.inf
    torch.testing.assert_close(torch.tensor(found.gaps), gaps, rtol=1e-3, atol=1e-4)
    assert found.of("mean_square")[0].value >= float(gaps.square().mean().sqrt()) * (1 - 1e-4)
    assert found.held_out
    assert prunus.certify(model, other, data=x).value == found.value  # two models, or masks
    assert isinstance(found, prunus.Certificate)


def test_images_are_flattened_before_the_first_matrix():
    model = nn.Sequential(nn.Flatten(), *mlp(widths=(12, 20, 4))).eval()
    masks = {f"{int(k) + 1}": v for k, v in magnitude(mlp(widths=(12, 20, 4)), 0.9).items()}
    x = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    shaped = prunus.certify(model, masks, data=x)
    plain = prunus.certify(
        mlp(widths=(12, 20, 4)), magnitude(mlp(widths=(12, 20, 4)), 0.9), data=x.flatten(1)
    )
    assert shaped.value == pytest.approx(plain.value, rel=1e-9)


def test_without_data_the_ball_is_around_zero():
    model = mlp()
    found = prunus.certify(model, magnitude(model, 0.9), radius=2.0)
    assert found.radius == 2.0
    assert [s.kind for s in found.statements] == ["sup"]
    with pytest.raises(ValueError, match="needs `data`, or the `radius`"):
        prunus.certify(model, magnitude(model, 0.9))
    with pytest.raises(ValueError, match="must start with a linear layer, not with 'stem'"):
        prunus.certify(cnn(), magnitude(cnn(), 0.9), radius=2.0)


class Normed(nn.Module):
    """A layer norm has no useful constant over a ball."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.norm(self.fc(x)))


def test_unsupported_modules_are_named():
    torch.manual_seed(0)
    model = Normed().eval()
    masks = magnitude(model, 0.9)
    with pytest.raises(TypeError, match=r"'norm' \(LayerNorm\) has no rule.*Held-out"):
        prunus.certify(model, masks, radius=1.0)
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    with pytest.warns(prunus.theory.gap.VacuousWarning):
        found = prunus.certify(model, masks, data=x)
    assert found.value == math.inf
    assert "'norm' (LayerNorm)" in found.statements[0].assumptions[0]
    assert {s.kind for s in found.held_out} >= {"quantile", "exceeds"}
    training = cnn()
    training.bn.train()
    with pytest.raises(Unsupported, match=r"'bn' .* training mode"):
        extract(training, training, torch.zeros(1, 2, 9, 9))
    with pytest.raises(ValueError, match="the two models differ at '0'"):
        prunus.certify(mlp(), nn.Sequential(nn.Flatten()), radius=1.0)
    with pytest.raises(ValueError, match="must be 0 or 1"):
        prunus.certify(mlp(), {"0": torch.full((30, 12), 0.5)}, radius=1.0)
    with pytest.raises(ValueError, match="belongs to no layer"):
        prunus.certify(mlp(), {"nine": torch.ones(3)}, radius=1.0)


def test_results_of_the_engine_and_their_data():
    model = mlp()
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    pruned = prunus.prune(model, "magnitude+ls", 0.8, data=x)
    with pytest.warns(InSampleWarning, match="Certify on fresh inputs"):
        used = pruned.certify(x)
    assert all(s.in_sample for s in used.held_out)
    assert "IN-SAMPLE" in used.summary()
    fresh = pruned.certify(torch.randn(400, 12, generator=torch.Generator().manual_seed(1)))
    assert not any(s.in_sample for s in fresh.held_out)


@pytest.mark.parametrize(
    ("kind", "limit"), [("predicted", 0.1), ("mean_square", 0.3), ("sup", 0.5), ("changed", 0.02)]
)
def test_plans_keep_their_limit_and_beat_uniform(kind, limit):
    model = mlp(1)
    samples = 3000 if kind == "changed" else 300
    x = torch.randn(samples, 12, generator=torch.Generator().manual_seed(0))
    plan = prunus.plan(model, limit, kind=kind, data=x)
    assert plan.feasible
    assert plan.value <= limit * (1 + 1e-9)
    total = sum(m.weight.numel() for m in model if isinstance(m, nn.Linear))
    assert all(isinstance(k, int) for k in plan.kept.values())
    assert plan.density == sum(plan.kept.values()) / total < 1
    pruned = prunus.prune(model, "magnitude", plan)
    assert {n: int(r.mask.sum()) for n, r in pruned.layers.items()} == plan.kept
    with pytest.warns(InSampleWarning):  # the data that made the plan
        found = prunus.certify(model, pruned, data=x)
    with torch.no_grad():
        scale = float(model(x).square().sum(dim=1).mean().sqrt())
        gap = (model(x) - pruned.model(x)).square().sum(dim=1).mean().sqrt()
    if kind == "predicted":
        assert float(gap) == pytest.approx(plan.value * scale, rel=1e-3)
    elif kind == "mean_square":
        assert float(gap) <= plan.value * scale
        assert found.of("mean_square")[0].value == pytest.approx(plan.value * scale, rel=1e-3)
    elif kind == "sup":
        assert found.value == pytest.approx(plan.value * scale, rel=1e-2)
    uniform = prunus.prune(model, "magnitude", plan.density)
    assert uniform.model is not None


def test_plans_for_random_masks_and_convolutions():
    model = mlp(2)
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    for method in ("random", "random_rescaled"):
        plan = prunus.plan(model, 0.3, method=method, data=x)
        assert 0 < plan.density < 1
        assert plan.value <= 0.3
    sup = prunus.plan(model, 5.0, kind="sup", method="random_rescaled", radius=1.0, relative=False)
    assert 0 < sup.density < 1
    images = torch.randn(60, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    plan = prunus.plan(cnn(), 0.2, data=images)
    assert 0 < plan.density < 1
    nothing = prunus.plan(model, 0.0, data=x)
    assert nothing.density == 1
    assert "nothing is pruned" in nothing.summary()


def test_plan_is_monotone_in_the_limit():
    model = mlp(3)
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    kept = [prunus.plan(model, e, data=x).density for e in (0.02, 0.1, 0.3)]
    assert kept == sorted(kept, reverse=True)


def test_bad_plans():
    model, x = mlp(), torch.randn(5, 12)
    with pytest.raises(ValueError, match="Unknown kind 'predict'"):
        prunus.plan(model, 0.1, kind="predict", data=x)
    with pytest.raises(ValueError, match="needs `data`"):
        prunus.plan(model, 0.1)
    with pytest.raises(ValueError, match="`limit` must be"):
        prunus.plan(model, -1.0, data=x)
    with pytest.raises(ValueError, match="no mean square theorem"):
        prunus.plan(model, 0.1, kind="mean_square", method="random", data=x)
