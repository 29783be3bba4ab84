"""Coverage over many settings, simulated networks, and the commands."""

import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prunus.cli.app import app
from prunus.reproduce import gap_layers
from prunus.reproduce.gap_coverage import coverage
from prunus.theory.gap.laws import normal, truncated_normal, uniform
from prunus.theory.gap.mean_square import mean_field
from prunus.theory.gap.network import random_network
from prunus.theory.gap.simulate import draw_matrix, draw_pruned, simulated_gaps, simulated_sups


@pytest.mark.slow
def test_no_setting_of_a_thousand_fails_and_controls_are_caught():
    """1000 settings × 400 draws at δ = 0.1; each alone raises a false alarm with probability 1e-3
    if its violations had probability exactly δ. The control, 0.9 × the 80 % quantile of other
    draws, is caught in at least 99 % of the settings. Median tightness per kind is printed; of
    all layer norms and of masks of given weights it is at most 5 % above 1.13 and 2.2, what an
    independent implementation of the same theorems found."""
    rows = coverage(400, seed=0, progress=False)
    for row in rows:
        print(row["kind"], row["settings"], row["worst"], f"{np.median(row['ratios']):.3f}")
        assert row["failed"] == 0
        assert row["worst"] < 0.1
    assert sum(row["settings"] for row in rows) >= 400
    assert sum(row["caught"] for row in rows) >= 0.99 * sum(row["controls"] for row in rows)
    norms = [r for row in rows if row["kind"].startswith("norm of") for r in row["ratios"]]
    masks = [r for row in rows if row["kind"].startswith("mask") for r in row["ratios"]]
    assert np.median(norms) <= 1.05 * 1.13
    assert np.median(masks) <= 1.05 * 2.2


def test_some_settings_of_the_coverage_run():
    """Every 25th setting, 100 draws; the control is caught nearly always, too."""
    rows = coverage(100, seed=1, every=25, progress=False)
    assert sum(row["settings"] for row in rows) == 40
    assert all(row["failed"] == 0 for row in rows)
    assert all(min(row["ratios"], default=1.1) > 1 for row in rows)
    assert sum(row["caught"] for row in rows) >= 0.9 * sum(row["controls"] for row in rows)


@pytest.mark.parametrize("place", range(4))
def test_layers_are_as_tight_as_known(place):
    """Walk moments over the measured quantile: at most 5 % above an independent implementation."""
    n, q = [(20, 0.1), (100, 0.01), (100, 0.1), (100, 0.5)][place]
    for row in gap_layers._layer(n, q, 400, 0):
        print(row["setting"], row["bound"], f"{row['ratio']:.3f}", row["prototype"])
        assert row["ratio"] <= 1.05 * row["prototype"]
        assert row["ratio"] > 1


@pytest.mark.parametrize("law", [uniform(2.0), normal(0.5), truncated_normal(1.0, 0.7)])
def test_drawn_matrices_have_the_law(law):
    """Variance of 40 000 draws within 5 standard errors (false alarm 6e-7 each)."""
    w = draw_matrix(law, 200, 200, generator=torch.Generator().manual_seed(0))
    fourth = float(w.square().square().mean())
    error = math.sqrt((fourth - law.variance**2) / w.numel())
    assert abs(float(w.square().mean()) - law.variance) < 5 * error
    assert float(w.abs().max()) <= law.bound


def test_simulated_networks_meet_the_prediction():
    network = random_network([50, 50, 10], 0.9, laws="he_normal", method="magnitude")
    generator = torch.Generator().manual_seed(0)
    gaps = simulated_gaps(network, 30, inputs=8, generator=generator)
    predicted = mean_field([50, 50, 10], 0.9, laws="he_normal", method="magnitude").value
    assert float(gaps.square().mean().sqrt()) == pytest.approx(predicted, rel=0.15)
    sups = simulated_sups(network, 2, steps=20, generator=generator)
    assert float(sups.min()) > float(gaps.square().mean().sqrt())
    w = torch.arange(1.0, 11.0).reshape(2, 5)
    pruned = draw_pruned(w, 0.3, "magnitude", generator=generator)
    assert pruned.flatten().tolist() == [0] * 7 + [8, 9, 10]


def test_theory_gap_commands(tmp_path):
    run = CliRunner().invoke(
        app,
        ["theory", "gap", "curve", "--values", "0.9,0.5", "--width", "20", "--draws", "4",
         "--sup-draws", "1", "--out", str(tmp_path / "curve")],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "rms predicted" in run.output
    assert (tmp_path / "curve.svg").exists()
    wide = CliRunner().invoke(
        app,
        ["theory", "gap", "curve", "--against", "width", "--values", "10,20", "--draws", "0",
         "--sup-draws", "0", "--activation", "sigmoid"],
    )  # fmt: skip
    assert wide.exit_code == 0, wide.output
    norm = CliRunner().invoke(app, ["theory", "gap", "norm", "30", "20", "--method", "magnitude"])
    assert norm.output.count("≤") == 3
    width = CliRunner().invoke(app, ["theory", "gap", "minimal-width"])
    assert "width 131" in width.output
    bad = CliRunner().invoke(app, ["theory", "gap", "curve", "--against", "deepness"])
    assert isinstance(bad.exception, ValueError)


def test_plan_and_certify_commands(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 12)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    here = f"{__name__}:tiny"
    common = ["--data", str(tmp_path / "data.npz")]
    made = CliRunner().invoke(
        app,
        ["plan", here, "--limit", "0.2", "--out", str(tmp_path / "plan.json"), *common],
    )
    assert made.exit_code == 0, made.exception
    assert "plan by predicted" in made.output
    found = CliRunner().invoke(
        app,
        ["certify", here, f"{__name__}:tinier", "--out", str(tmp_path / "c.json"), *common],
    )
    assert found.exit_code == 0, found.exception
    assert "largest gap in the ball" in found.output
    assert (tmp_path / "c.json").exists()
    missing = CliRunner().invoke(app, ["plan", here, "--limit", "0.2"])
    assert isinstance(missing.exception, ValueError)


def tiny():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def tinier():
    model = tiny()
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < 0.05] = 0
    return model
