"""Statements about single layers: true on real layers, told apart by status, refused in words."""

import warnings

import pytest
import torch
from torch import nn

import prunus
from models import build
from prunus.cli.app import main
from prunus.guarantee.relative import layer_statements
from prunus.theory.gap import Certificate, InSampleWarning, VacuousWarning
from prunus.theory.gap.shares import drawn_error


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VacuousWarning)
        warnings.simplefilter("ignore", InSampleWarning)
        yield


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)
        )


def data(count, seed, wide=12):
    return torch.randn(count, wide, generator=torch.Generator().manual_seed(seed))


def relative(model, thin, x):
    """{layer: (largest, mean) per sample} of a chain, by the definition."""
    found, h = {}, x.double()
    for (name, one), other in zip(model.named_children(), thin.children(), strict=True):
        if isinstance(one, nn.Linear):
            w, v = one.weight.detach().double(), other.weight.detach().double()
            ratio = (h @ (v - w).T).abs() / (h.abs() @ w.abs().T)
            found[name] = (ratio.amax(1), ratio.mean(1))
        h = one.double()(h).detach()
        one.float()
    return found


def by(certificate, layer, kind, status, level="L3"):
    own = [
        s
        for s in certificate.layers
        if (s.layer, s.kind, s.status, s.level) == (layer, kind, status, level)
    ]
    assert len(own) == 1
    return own[0]


@pytest.mark.parametrize("name", ["sipp", "sipp-row", "sipp-random", "magnitude", "magnitude+ls"])
def test_every_layer_is_bounded_measured_and_predicted(name):
    model, seen, fresh = net(), data(100, 1), data(400, 2)
    found = prunus.prune(model, name, 0.6, data=seen)
    certificate = found.certify(fresh, calibration=seen)
    loose = 0
    for layer in ("0", "2", "4"):
        at_seen, at_fresh = (relative(net(), found.model, x)[layer] for x in (seen, fresh))
        for place, kind in enumerate(("relative", "relative_mean")):
            known = by(certificate, layer, kind, "RIG")
            assert known.measured == pytest.approx(float(at_seen[place].max()), rel=1e-4)
            assert known.value >= known.measured
            assert known.delta == 0
            assert "calibration inputs alone" in known.assumptions[0]
            assert known.vacuous == (known.value >= known.trivial)
            loose += not known.vacuous
            predicted = by(certificate, layer, kind, "PRED")
            assert predicted.value == known.value
            assert predicted.measured == pytest.approx(float(at_fresh[place].max()), rel=1e-4)
            assert "at most 0.0099" in predicted.assumptions[0]
            held = by(certificate, layer, kind, "RIG", "held-out")
            assert held.measured <= held.value <= predicted.measured * (1 + 1e-6)
            assert held.delta == 0.05
    assert loose or name.endswith("+ls")
    drawn = [s for s in certificate.layers if s.level == "L2"]
    assert len(drawn) == (3 if name == "sipp-random" else 0)
    assert all(s.vacuous == (s.value >= 1) for s in drawn)
    assert not any(s.layer for s in (*certificate.statements, *certificate.held_out))
    text = certificate.summary()
    assert "layer by layer, |z' − z| / Σ|w||x|:" in text
    assert "no statement about the network is made of them" in " ".join(text.split())
    assert Certificate.from_json(certificate.to_json()).layers == certificate.layers


def test_a_saved_calibration_serves_and_says_what_it_did_not_measure():
    model, seen = net(), data(100, 1)
    shares = prunus.calibrate(model, seen, "share")
    found = prunus.prune(model, "sipp-row", 0.7, data=seen)
    one = found.certify(radius=1.0, calibration=shares)
    two = found.certify(radius=1.0, calibration=seen)
    for s, t in zip(one.layers, two.layers, strict=True):
        assert s.value == t.value
        assert s.measured is None
    assert by(two, "0", "relative", "RIG").measured > 0
    with pytest.raises(ValueError, match="has no statistic 'share'"):
        found.certify(radius=1.0, calibration=prunus.calibrate(model, seen))
    other = prunus.calibrate(net(1), seen, "share")
    with pytest.raises(ValueError, match="`calibration` has other weights of layer '0'"):
        found.certify(radius=1.0, calibration=other)


def test_inputs_that_made_the_pruning_prove_nothing_about_layers():
    model, seen = net(), data(100, 1)
    found = prunus.prune(model, "sipp-row", 0.7, data=seen)
    certificate = found.certify(seen, calibration=seen)
    held = [s for s in certificate.layers if s.level == "held-out"]
    assert held
    assert all(s.status == "PRED" and s.in_sample for s in held)


def test_a_moved_bias_is_in_what_is_measured_and_leaves_no_bound():
    model, seen = net(), data(100, 1)
    found = prunus.prune(model, "sipp-row", 0.7, data=seen)
    with torch.no_grad():
        found.model[0].bias += 1.0
    certificate = found.certify(data(100, 3), calibration=seen)
    first = by(certificate, "0", "relative", "RIG")
    assert first.vacuous
    assert first.reason == "a bias moved, which no share covers"
    assert first.measured > by(certificate, "2", "relative", "RIG").measured


def test_what_a_draw_keeps_with_probability_1_minus_delta():
    """25 draws, 60 calibration inputs: at each at most δ + 4 SE of them above the bound."""
    model, seen = net(), data(60, 1)
    shares = prunus.calibrate(model, seen, "share")

    def drawn_bound(found):
        made, _ = layer_statements(model, found.model, found, shares, [], 0.05, False)
        return [s.value for s in made if (s.layer, s.level) == ("2", "L2")]

    worst, bounds = [], []
    for seed in range(25):
        found = prunus.prune(model, "sipp-random", 0.85, data=shares, seed=seed)
        bounds += drawn_bound(found)
        worst.append(relative(net(), found.model, seen)["2"][0])
    assert bounds == [bounds[0]] * 25  # known before the draw
    above = torch.stack(worst) > bounds[0]
    assert float(above.double().mean(0).max()) <= 0.05 + 4 * (0.05 * 0.95 / 25) ** 0.5
    # The negative control. (Few inputs, and the union over 16 outputs, make the bound wide.)
    assert float((torch.stack(worst) > bounds[0] / 30).double().mean()) > 0.2
    found.model[2].weight.data *= 1.5  # trained since: no longer what was drawn
    assert drawn_bound(found) == []


def small_cnn():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 200, 3), nn.ReLU(), nn.Conv2d(200, 5, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(45, 3),
        )  # fmt: skip


def test_what_a_draw_of_nodes_keeps_with_probability_1_minus_delta():
    """15 draws of a convolution's inputs: at each patch at most δ + 4 SE above the bound."""
    model, seen = small_cnn(), data(20, 1, 2 * 6 * 6).view(20, 2, 6, 6)
    shares = prunus.calibrate(model, seen, "share")
    with torch.no_grad():
        h = model[:2](seen)
        whole = nn.functional.conv2d(h.abs(), model[2].weight.abs())
    worst, bounds = [], []
    for seed in range(15):
        found = prunus.prune(model, "pfp-random", 0.85, data=shares, seed=seed)
        made, _ = layer_statements(model, found.model, found, shares, [], 0.05, False)
        own = {s.layer: s for s in made if s.level == "L2"}
        assert set(own) == {"2", "5"}  # the first layer's inputs are no nodes
        # The definition, over the outputs that stay.
        new, old = found.model[2].weight.detach(), model[2].weight.detach()
        live = new.flatten(1).any(1)
        ratio = nn.functional.conv2d(h, new - old).abs() / whole
        worst.append(ratio[:, live].amax(1).flatten())
        bounds.append(own["2"].value)
        assert own["2"].ledger[0][0] == f"2: all {int(live.sum())} outputs at one fixed vector"
    ratio, limit = torch.stack(worst), torch.tensor(bounds)[:, None]
    assert float((ratio > limit).double().mean(0).max()) <= 0.05 + 4 * (0.05 * 0.95 / 15) ** 0.5
    assert float((ratio > limit / 40).double().mean()) > 0.2  # the negative control
    assert float(limit.max()) < 1
    # By hand: classes as units, their shares the sums over taps of one sign.
    share, w = shares["2"].share, shares["2"].weight.double()
    sides = [(share * (sign * w > 0)).view(5, 200, 4).sum(2).clamp(max=1) for sign in (1, -1)]
    odds = (1 / found.layers["2"].scale.double()).view(200, 4)
    assert torch.equal(odds, odds[:, :1].expand(200, 4))
    by_hand = drawn_error(
        odds[:, 0].repeat(5, 2), torch.cat(sides, 1),
        torch.cat([torch.ones(5, 200), -torch.ones(5, 200)], 1), 0.05,
    )  # fmt: skip
    assert bounds[-1] == pytest.approx(float(by_hand[live].max()), rel=1e-6)
    # Single weights as units would promise more than one draw for all taps of a channel holds.
    apart = drawn_error(odds.reshape(1, 800).repeat(5, 1), share, w, 0.05)
    assert float(apart[live].max()) < 0.9 * bounds[-1]
    found.model[2].weight.data *= 1.5  # trained since
    made, _ = layer_statements(model, found.model, found, shares, [], 0.05, False)
    assert [s.layer for s in made if s.level == "L2"] == ["5"]


@pytest.mark.parametrize("kind", ["cnn-relu", "cnn-pool"])
@pytest.mark.parametrize("name", ["sipp-row", "pfp", "pfp-random"])
def test_convolutions_and_nodes(kind, name):
    model, x = build(kind)
    found = prunus.prune(model, name, 0.7, data=x)
    certificate = found.certify(x + 0.01, calibration=x)
    assert certificate.layers
    for s in certificate.layers:
        if (s.status, s.level) == ("RIG", "L3"):
            assert s.measured <= s.value
    if name == "pfp":  # rows that went are read by nobody
        assert any(not s.vacuous for s in certificate.layers)


def test_shares_of_one_sample_sum_to_one_in_every_sum():
    """Σ_j g_ij = 1 over the weights of a sign, where any of them meets an active input."""
    model, x = net().double(), data(1, 5).double().abs()
    share = prunus.calibrate(model, x, "share")["0"].share
    weight = model[0].weight.detach()
    for sign in (weight > 0, weight < 0):
        torch.testing.assert_close((share * sign).sum(1), torch.ones(20).double())
    halves = [prunus.calibrate(model, part, "share") for part in data(40, 6).double().split(20)]
    whole = prunus.calibrate(model, data(40, 6).double(), "share")
    for name in whole:
        assert torch.equal((halves[0] + halves[1])[name].share, whole[name].share)


def test_grouped_convolutions_by_the_definition():
    """Each output against its own group's patches, by two convolutions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.Flatten(),
                              nn.Linear(6 * 25, 3)).double()  # fmt: skip
        x = torch.randn(30, 4, 5, 5, dtype=torch.float64)
    found = prunus.prune(model, "sipp-row", 0.6, data=x)
    certificate = found.certify(x, calibration=x)
    w, v = model[0].weight.detach(), found.model[0].weight.detach()
    moved = nn.functional.conv2d(x, v - w, groups=2, padding=1).abs()
    ratio = moved / nn.functional.conv2d(x.abs(), w.abs(), groups=2, padding=1)
    known = by(certificate, "0", "relative", "RIG")
    assert known.measured == pytest.approx(float(ratio.max()), rel=1e-9)
    assert by(certificate, "0", "relative", "PRED").measured == pytest.approx(known.measured)
    assert "of the 750 vectors of 30 calibration inputs alone" in known.assumptions[0]
    fresh = by(certificate, "0", "relative", "PRED").assumptions[0]
    assert fresh.endswith("over the draw of both, if all positions calibrated")
    mean = ratio.mean(1).amax()
    assert by(certificate, "0", "relative_mean", "RIG").measured == pytest.approx(float(mean))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(0, 12), "must hold at least one sample"),
        (torch.full((3, 12), float("nan")), "Layer '0' received NaN or infinite inputs"),
    ],
)
def test_bad_calibrations_cost_one_line(given, message):
    found = prunus.prune(net(), "magnitude", 0.5)
    with pytest.raises(ValueError, match=message):
        prunus.certify(net(), found.model, radius=1.0, calibration=given)


def test_one_sample_is_taken_and_said():
    model, seen = net(), data(30, 1)
    found = prunus.prune(model, "sipp-row", 0.7, data=seen)
    said = [found.certify(data(9, 2), calibration=x).summary() for x in (seen[:1], seen[:2])]
    assert ["one sample alone calibrated" in " ".join(text.split()) for text in said] == [
        True,
        False,
    ]


def test_weights_that_do_not_answer_alone_are_named():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True).eval()
    x = torch.randn(8, 5, 12, generator=torch.Generator().manual_seed(0))
    found = prunus.prune(model, "magnitude", 0.6, data=x, layers="*")
    certificate = found.certify(x + 1, calibration=x)
    assert {s.layer for s in certificate.layers} >= {"linear1", "linear2"}
    assert any("no statement by itself of self_attn" in note for note in certificate.notes)
    for s in certificate.layers:
        if (s.status, s.level) == ("RIG", "L3"):
            assert 0 < s.measured <= s.value


def test_dead_inputs_have_no_share_and_move_nothing():
    model, x = net(), data(50, 1)
    x[:, 3] = 0
    assert not prunus.calibrate(model, x, "share")["0"].share[:, 3].any()
    thin = net()
    with torch.no_grad():
        thin[0].weight[:, 3] = 0
    certificate = prunus.certify(model, thin, radius=1.0, calibration=x)
    assert by(certificate, "0", "relative", "RIG").value == 0
    dead = prunus.certify(model, thin, radius=1.0, calibration=torch.zeros(5, 12))
    assert by(dead, "0", "relative", "RIG").measured == 0


def test_one_sample_calibrates_and_says_what_that_is_worth():
    model, seen = net(), data(1, 1)
    found = prunus.prune(model, "sipp-row", 0.7, data=seen)
    certificate = found.certify(data(100, 2), calibration=seen)
    assert "at most 0.5" in by(certificate, "0", "relative", "PRED").assumptions[0]


def test_on_the_command_line(monkeypatch, capsys, tmp_path):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["prunus", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    factory = "prunus.bench.zoo:digits_mlp"
    folder = str(tmp_path / "pruned")
    code, _, err = run(
        "prune", factory, "--recipe", "sipp-row", "--density", "0.7", "--data", "digits",
        "--samples", "128", "--out", folder,
    )  # fmt: skip
    assert code == 0, err
    words = ["certify", factory, folder, "--data", "digits"]
    code, out, _ = run(*words, "--calibration", "128")
    assert code == 0
    assert "fc2    mean" in out
    code, _, err = run(*words[:3], "--radius", "1", "--calibration", "128")
    assert (code, err.count("\n")) == (2, 1)
    assert "--calibration takes training samples of --data" in err
