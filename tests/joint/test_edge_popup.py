"""Edge-popup: counts, fixed weights, what it finds, and what it does not without the sign."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import prunus
from prunus.allocation import Global
from prunus.compensation import LeastSquares
from prunus.granularity import EdgePerRow, Node
from prunus.joint import EdgePopup, JointResult, NetworkJoint, edge_popup
from prunus.joint.norms import parts_of
from prunus.recipe import Recipe
from prunus.schedules import Iterative, Refine
from prunus.scores import Constant


def task(seed=0, samples=240):
    """Points in three classes that no line separates, and an untrained network without biases."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    y = ((x[:, 0] * x[:, 1] > 0).long() + (x[:, 2].abs() > 0.8).long()).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(6, 96, bias=False), nn.ReLU(), nn.Linear(96, 48, bias=False), nn.ReLU(),
            nn.Linear(48, 3, bias=False),
        )  # fmt: skip
    return model, x, y


def wrong(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) != y).double().mean())


def recipe(**options):
    return replace(prunus.recipes["edge-popup"], selection=EdgePopup(**options))


def quick(**options):
    return recipe(**{"epochs": 30, "batch": 40, "rate": 0.01, **options})


@pytest.mark.parametrize("density", [0.5, 0.25])
def test_an_untrained_subnetwork_does_what_random_ones_do_not(density):
    model, x, y = task()
    found = prunus.prune(model, quick(), density, data=(x, y))
    for result in found.layers.values():
        assert int(result.mask.sum()) == round(density * result.mask.numel())
        fan_in = result.mask.shape[1]
        size = math.sqrt(2 / fan_in) / math.sqrt(float(result.mask.double().mean()))
        kept = result.weight[result.mask]
        torch.testing.assert_close(kept.abs(), torch.full_like(kept, size))
        assert result.notes["steps"] == 30 * 6
    still = prunus.prune(model, quick(epochs=1, rate=1e-9), density, data=(x, y))
    assert wrong(found.model, x, y) < 0.2
    assert wrong(still.model, x, y) > 0.35  # a random mask of the same weights
    same, again, other = (
        prunus.prune(model, quick(epochs=1), density, data=(x, y), seed=seed).masks
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(again[k], mask) for k, mask in same.items())
    assert any(not torch.equal(other[k], mask) for k, mask in same.items())


def test_without_the_sign_of_a_score_nothing_is_learnt(monkeypatch):
    """The negative control: |s| ranked, and the gradient handed to s as it is."""
    model, x, y = task()
    learn = edge_popup._Searched.learn

    def unsigned(self, grad):
        learn(self, grad)
        self.scores.grad = self.used * grad

    right = wrong(prunus.prune(model, quick(), 0.5, data=(x, y)).model, x, y)
    monkeypatch.setattr(edge_popup._Searched, "learn", unsigned)
    assert wrong(prunus.prune(model, quick(), 0.5, data=(x, y)).model, x, y) > right + 0.2


def test_the_first_step_is_the_derivative_of_its_definition(monkeypatch):
    """sign(s) · W · ∂L/∂(W ∘ m), from autograd through a mask that is |s| to the derivative."""
    model, x, y = task(samples=20)
    seen = {}
    learn = edge_popup._Searched.learn

    def spy(self, grad):
        learn(self, grad)
        if self.layer.name not in seen:
            seen[self.layer.name] = (self.scores.clone(), self.scores.grad.clone())

    monkeypatch.setattr(edge_popup._Searched, "learn", spy)
    rule = recipe(weights="kept", epochs=1, batch=20, anneal=False)
    prunus.prune(model, rule, 0.5, data=(x, y))
    scores = {n: s.requires_grad_() for n, (s, _) in seen.items()}
    hidden = x
    for name, layer in model.named_children():
        if name not in scores:
            hidden = layer(hidden)
            continue
        size = scores[name].abs()
        top = size.flatten().topk(size.numel() // 2).indices
        mask = torch.zeros_like(size).flatten().index_fill(0, top, 1.0).view(size.shape)
        hidden = hidden @ (layer.weight.detach() * (mask + size - size.detach())).T
    nn.functional.cross_entropy(hidden, y).backward()
    for name, own in scores.items():
        torch.testing.assert_close(seen[name][1], own.grad)


def test_weights_that_are_kept_are_not_touched():
    model, x, y = task()
    found = prunus.prune(model, quick(weights="kept", epochs=2), 0.4, data=(x, y))
    for name, result in found.layers.items():
        own = model.get_submodule(name).weight.detach()
        assert torch.equal(result.weight, own.masked_fill(~result.mask, 0.0))
    rows = replace(quick(weights="kept", epochs=1), granularity=EdgePerRow())
    counts = prunus.prune(model, rows, 0.5, data=(x, y)).layers["2"].mask.sum(1)
    assert counts.tolist() == [48] * 48


def test_what_is_refused():
    for parts, message in [
        ({"allocation": Global()}, "searches after the counts are planned, so `allocation` must"),
        ({"granularity": Node()}, "removes edges, not nodes"),
        ({"schedule": Refine(2)}, "gives kept weights their values itself"),
        ({"schedule": Iterative(2)}, "searches all layers at once, so it is pruned in one round"),
        ({"inputs": "pruned"}, "searches all layers at once, so it is pruned in one round"),
        ({"compensation": LeastSquares()}, "finds which weights do as they are, so `compensation`"),
        (
            {"granularity": EdgePerRow(), "selection": EdgePopup(across=True)},
            "moves weights between layers, so `granularity` must be",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe(**{"score": Constant(), "selection": EdgePopup(), **parts})
    for options, message in [
        ({"weights": "gaussian"}, "Unknown weights of EdgePopup 'gaussian'"),
        ({"scale": "fan"}, "Unknown scale of EdgePopup 'fan'"),
        ({"start": "small"}, "Unknown start of EdgePopup 'small'"),
        ({"optimizer": "lion"}, "Unknown optimizer of EdgePopup 'lion'"),
        ({"decay": -1.0}, "`decay` must be a finite number >= 0"),
        ({"across": True, "start": "fan-in"}, "`across` ranks the scores of all layers together"),
        ({"epochs": 0}, "`epochs` must be a whole number >= 1"),
        ({"rate": 0.0}, "`rate` must be a finite number > 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            EdgePopup(**options)
    model, x, y = task()
    with pytest.raises(ValueError, match="needs a loss"):
        prunus.prune(model, "edge-popup", 0.5, data=x)
    with pytest.raises(ValueError, match="needs data"):
        prunus.prune(model, "edge-popup", 0.5)
    with pytest.raises(ValueError, match="searches over all layers at once, and blocks="):
        prunus.prune(model, "edge-popup", 0.5, data=(x, y), blocks="auto")
    with pytest.raises(ValueError, match="only once"):
        prunus.prune(model, "edge-popup", 0.5, data=iter([(x, y)]))
    with pytest.raises(ValueError, match="searches on the batches themselves, which a finished"):
        prunus.prune(model, "edge-popup", 0.5, data=prunus.calibrate(model, x))
    assert isinstance(EdgePopup(), NetworkJoint)
    assert prunus.recipes["edge-popup"].needs_labels
    assert "edge-popup+ls" not in prunus.recipes


def test_scores_stay_finite_in_half_precision_where_units_are_dead(monkeypatch):
    model, x, y = task()
    with torch.no_grad():
        model[0].weight[:40].zero_()  # no gradient reaches what they read and feed
    kept = []
    begin = edge_popup._Searched.__init__
    monkeypatch.setattr(
        edge_popup._Searched, "__init__", lambda own, *a: (kept.append(own), begin(own, *a))[1]
    )
    half = model.to(torch.float16)
    found = prunus.prune(half, quick(weights="kept", epochs=3), 0.5, data=(x.half(), y))
    assert all(bool(own.scores.isfinite().all()) for own in kept)
    assert all(result.weight.dtype == torch.float16 for result in found.layers.values())


@pytest.mark.parametrize("kind", ["signed", "unsigned", "normal", "uniform"])
@pytest.mark.parametrize("scale", ["density", "none", "published"])
def test_what_is_drawn_has_the_variance_of_its_scale(kind, scale):
    """Kept values: mean square 2 / fan-in, over the density (or what the option says of it)."""
    model, x, y = task()
    still = recipe(epochs=1, rate=1e-9, weights=kind, scale=scale)
    found = prunus.prune(model, still, 0.25, data=(x, y)).layers["2"]
    over = {"density": 0.25, "none": 1.0, "published": 0.75}[scale]
    kept = found.weight[found.mask].double()
    # 1152 values: a standard error of the mean square is at most 4.2 %.
    assert float(kept.square().mean()) == pytest.approx(2 / 96 / over, rel=0.15)
    if scale == "density":  # the variance of a kept row is that of a dense one, in the mean
        rows = found.weight.double().square().sum(1).mean()
        assert float(rows) == pytest.approx(2.0, rel=0.1 if kind != "normal" else 0.15)
    signs = kept.sign().mean()
    assert float(signs) == 1 if kind == "unsigned" else abs(float(signs)) < 0.15
    constant = kind in ("signed", "unsigned")
    assert (float(kept.abs().std()) < 1e-6) == constant


def test_layers_that_share_keep_the_total_and_the_plan_follows():
    model, x, y = task()
    found = prunus.prune(model, quick(across=True), 0.25, data=(x, y))
    counts = {name: int(result.mask.sum()) for name, result in found.layers.items()}
    assert sum(counts.values()) == round(0.25 * (6 * 96 + 96 * 48 + 48 * 3))
    assert found.plan.kept == counts
    assert found.cost_after.density == pytest.approx(0.25)
    assert counts != {"0": 144, "2": 1152, "4": 36}
    assert wrong(found.model, x, y) < 0.2
    for name, result in found.layers.items():  # each layer is scaled by its own density
        size = math.sqrt(2 / result.mask.shape[1] / (counts[name] / result.mask.numel()))
        kept = result.weight[result.mask]
        torch.testing.assert_close(kept.abs(), torch.full_like(kept, size))
    with pytest.raises(ValueError, match="moves weights between layers, whose macs differ"):
        prunus.prune(model, quick(across=True), prunus.Budget(macs=3000), data=(x, y))


def test_the_published_form_is_gradient_descent_with_momentum_on_scores_of_its_scale(monkeypatch):
    """Two steps by hand: v ← 0.9 v + g + decay · s, s ← s − rate · v, rates of a cosine."""
    rule = EdgePopup.published(epochs=1)
    assert (rule.rate, rule.batch, rule.decay) == (0.1, 64, 5e-4)
    assert not rule.anneal
    model, x, y = task(samples=128)
    seen = []
    learn = edge_popup._Searched.learn

    def spy(self, grad):
        learn(self, grad)
        if self.layer.name == "2":
            seen.append((self.scores.clone(), self.scores.grad.clone()))

    monkeypatch.setattr(edge_popup._Searched, "learn", spy)
    prunus.prune(model, replace(prunus.recipes["edge-popup"], selection=replace(rule, epochs=2)),
                 0.5, data=(x, y))  # fmt: skip
    assert len(seen) == 4
    first = seen[0][0]
    assert float(first.abs().max()) <= 1 / math.sqrt(96)
    assert float(first.abs().max()) > 0.95 / math.sqrt(96)
    speed, scores = torch.zeros_like(first), first
    for step in range(3):
        speed = 0.9 * speed + seen[step][1] + 5e-4 * scores
        scores = scores - 0.1 * 0.5 * (1 + math.cos(math.pi * step / 4)) * speed
        torch.testing.assert_close(seen[step + 1][0], scores)


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_on_the_digits_it_does_what_training_does(density):
    """Specification 3.4: error ≤ 6 % in two seeds, the random mask of the same plan ≥ 60 %."""
    from prunus.bench.data.sets import load_data

    data = load_data("digits")
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 300, bias=False), nn.ReLU(),
                nn.Linear(300, 100, bias=False), nn.ReLU(), nn.Linear(100, 10, bias=False),
            )  # fmt: skip
        for rule, low, high in ((recipe(epochs=20), 0, 6), (recipe(epochs=1, rate=1e-9), 60, 100)):
            found = prunus.prune(model, rule, density, data=data.batches(), seed=seed)
            assert low <= 100 * wrong(found.model, data.x_test, data.y_test) <= high


@dataclass(frozen=True)
class Own(NetworkJoint):
    """A user's search that answers what the test says."""

    answer: str = "right"

    @property
    def moves(self) -> bool:
        return self.answer.startswith("moved")

    def __call__(self, model, layers, kept, batches, **options):
        found = {}
        for name, counts in kept.items():
            mask = torch.zeros_like(layers[name].weight, dtype=torch.bool)
            change = {"0": 5, "2": -5}.get(name, 0) if self.answer.startswith("moved") else 0
            fewer = self.answer in ("fewer", "moved away") and name == "2"
            mask.view(-1)[: int(counts.sum()) + change - fewer] = True
            if self.answer == "shape":
                mask = mask.T
            weight = mask.float()
            found[name] = JointResult(mask=mask, weight=weight)
        if self.answer == "missing":
            del found["2"]
        return found


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("fewer", "kept 2303 weights of layer '2' where 2304 were asked for"),
        ("moved away", "kept 2663 weights where 2664 were asked for. Keep the total."),
        ("shape", r"mask for layer '0' must have shape \(96, 6\), got \(6, 96\)"),
        ("missing", r"must answer for the layers \['0', '2', '4'\], got \['0', '4'\]"),
    ],
)
def test_the_answer_of_an_own_search_is_held_to_the_counts(answer, message):
    model, x, _ = task()
    own = Recipe(score=Constant(), selection=Own())
    assert prunus.prune(model, own, 0.5, data=x).cost_after.density == 0.5
    plan = prunus.prune(model, replace(own, selection=Own("moved")), 0.5, data=x).plan
    assert plan.kept == {"0": 293, "2": 2299, "4": 72}
    with pytest.raises(ValueError, match=message):
        prunus.prune(model, replace(own, selection=Own(answer)), 0.5, data=x)


def with_norms(seed=0):
    """A network with batch norms whose statistics and weights are those of no data here."""
    _, x, y = task(samples=241)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(6, 96, bias=False), nn.BatchNorm1d(96), nn.ReLU(),
            nn.Linear(96, 48, bias=False), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 3),
        )  # fmt: skip
    for norm in (model[1], model[4]):
        norm.running_mean.fill_(3.0)
        norm.running_var.fill_(0.01)
        norm.weight.data.fill_(0.5)
    return model, x, y


def test_norms_take_the_statistics_of_their_batches_and_keep_those_of_the_final_masks(tmp_path):
    model, x, y = with_norms()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = prunus.prune(model, quick(epochs=12), 0.5, data=(x, y))
    live = prunus.prune(model.train(), quick(epochs=12, norms="batch"), 0.5, data=(x, y))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for place in ("1", "4"):
        own, other = live.model.get_submodule(place), kept.model.get_submodule(place)
        assert torch.equal(own.weight, before[f"{place}.weight"])
        assert own.momentum == 0.1
        assert torch.equal(other.running_mean, before[f"{place}.running_mean"])
    # 241 samples in parts of 40, of which the last one alone joins the part before.
    assert live.layers["0"].notes["steps"] == 12 * 6
    assert kept.layers["0"].notes["steps"] == 12 * 7
    # One pass with the final weights: the mean over parts is that over samples but for their sizes.
    with torch.no_grad():
        first = nn.functional.linear(x, live.model[0].weight)
    torch.testing.assert_close(live.model[1].running_mean, first.mean(0), rtol=0.05, atol=0.02)
    torch.testing.assert_close(live.model[1].running_var, first.var(0), rtol=0.1, atol=0.02)
    assert wrong(live.model.eval(), x, y) < 0.2
    assert wrong(kept.model.eval(), x, y) > wrong(live.model, x, y) + 0.1
    live.save(tmp_path / "searched")
    again = prunus.load(tmp_path / "searched", model)
    torch.testing.assert_close(again.model.eval()(x), live.model(x))


def test_training_mode_of_the_given_model_changes_nothing():
    model, x, y = with_norms()
    found = [
        prunus.prune(model.train(mode), quick(epochs=2, norms=norms), 0.5, data=(x, y))
        for norms in ("kept", "batch")
        for mode in (True, False)
    ]
    for one, other in (found[:2], found[2:]):
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name])


def test_norms_of_one_sample_are_refused():
    model, x, y = with_norms()
    for data, options, message in [
        ((x[:1], y[:1]), {}, "of which there must be 2 or more, got batches of 1"),
        ((x, y), {"batch": 1}, "of which there must be 2 or more, got batch=1"),
    ]:
        with pytest.raises(ValueError, match=message):
            prunus.prune(model, quick(norms="batch", **options), 0.5, data=data)
    with pytest.raises(ValueError, match="Unknown norms of EdgePopup 'train'"):
        EdgePopup(norms="train")


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("samples", "size"), [(65, 16), (64, 16), (66, 16), (3, 16), (5, 2)])
def test_every_sample_is_in_one_part_and_none_is_alone_beside_norms(samples, size, norms):
    parts = parts_of(samples, size, norms=norms)
    firsts, ends = zip(*parts, strict=True)
    assert (firsts[0], *ends[:-1], samples) == (*firsts, ends[-1])
    sizes = [end - first for first, end in parts]
    assert min(sizes) >= (2 if norms else 1)
    assert max(sizes) <= size + norms
    assert len(parts) == -(-samples // size) - (norms and samples % size == 1)
