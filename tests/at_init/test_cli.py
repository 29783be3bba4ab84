"""`prunus theory at-init` and `prunus reproduce yang2023`."""

import json
import warnings

import numpy
import pytest
import torch
from typer.testing import CliRunner

from prunus.cli.app import app, main
from prunus.cli.at_init_given import numbers, said_plainly
from prunus.report.heat_map import cells

SMALL = ["--dimension", "600", "--neurons", "10", "--samples", "24", "--classes", "3"]


def run(*arguments):
    return CliRunner().invoke(app, ["theory", "at-init", *arguments])


def test_simulate_prints_and_saves(tmp_path):
    stem = tmp_path / "accuracy"
    result = run("simulate", *SMALL, "--densities", "1,0.3", "--seeds", "5", "--out", str(stem))
    assert result.exit_code == 0, result.output
    assert "p_keep(0.01)" in result.output
    assert "mild" in result.output
    rows = json.loads((tmp_path / "accuracy-table.json").read_text())
    assert [row["density"] for row in rows] == [1.0, 0.3]
    assert rows[1]["gain"] == pytest.approx(rows[1]["accuracy"] - rows[0]["accuracy"])
    kinds = {r["kind"] for r in json.loads((tmp_path / "accuracy.json").read_text())}
    assert kinds == {"measured", "theory", "bound"}
    assert (tmp_path / "accuracy.svg").read_text().startswith("<svg")


def test_few_seeds_are_noted_in_one_line():
    result = run("simulate", *SMALL, "--densities", "0.5", "--seeds", "2")
    assert "prunus: note: 2 seeds are fewer than 5: no interval is given.\n" in result.stderr


def test_notes_come_at_once_and_once_each(capsys):
    """A disconnecting mask is said before its networks are trained, also on the command line."""
    with said_plainly():
        for text in ("cut off", "cut off", "late"):
            warnings.warn(text, RuntimeWarning, stacklevel=1)
            said = capsys.readouterr().err
            if text == "late":
                assert said == "prunus: note: late\n"
    assert not capsys.readouterr().err
    with pytest.warns(RuntimeWarning, match="as before"):  # the handler is put back
        warnings.warn("as before", RuntimeWarning, stacklevel=1)


def test_phase_predicted_and_measured(tmp_path):
    stem = str(tmp_path / "phase")
    result = run(
        *["phase", *SMALL, "--axis", "neurons", "--values", "5,20", "--densities", "0.02:1:3"],
        *["--measured", "1", "--out", stem],
    )
    assert result.exit_code == 0, result.output
    assert "predicted - measured: RMSE" in result.output
    records = json.loads((tmp_path / "phase.json").read_text())
    assert {r["panel"] for r in records if "panel" in r} == {
        "predicted (heuristic)",
        "measured, 1 seeds",
    }
    assert sum("value" in r for r in records) == 12
    for panel in ("predicted (heuristic)", "measured, 1 seeds"):
        own = [r for r in records if r.get("panel") == panel]
        for best in (r for r in own if "series" in r):
            row = {r["x"]: r["value"] for r in own if "value" in r and r["y"] == best["y"]}
            assert row[best["x"]] == max(row.values())
        assert sum("series" in r for r in own) == 2


def test_cells_meet_at_the_middle():
    found = cells("p", [1.0, 10.0, 100.0], [1.0, 2.0], [[1, 2, 3], [4, 5, 6]], x_log=True)
    assert [r["value"] for r in found] == [1, 2, 3, 4, 5, 6]
    assert found[0]["x_high"] == pytest.approx(10**0.5) == pytest.approx(found[1]["x_low"])
    assert found[0]["y_high"] == pytest.approx(1.5) == pytest.approx(found[3]["y_low"])


def test_safe_density_on_digits(tmp_path):
    pytest.importorskip("sklearn", reason="the extra `data` is not installed")
    out = tmp_path / "safe.json"
    result = run("safe-density", "--widths", "60", "--samples", "200", "--out", str(out))
    assert result.exit_code == 0, result.output
    answer = json.loads(out.read_text())
    assert 0 < answer["hard_limit"] <= answer["density"] <= 1
    assert "random masks" in result.output


def test_safe_density_of_the_users_own_model_and_data(tmp_path, monkeypatch):
    """A factory in the user's folder and arrays of theirs, as on the command line of a user."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(120, 10, generator=generator)
    x[torch.arange(120), y] += 3
    numpy.savez(tmp_path / "mine.npz", x=x.numpy(), y=y.numpy())
    (tmp_path / "at_init_user_net.py").write_text(
        "from torch import nn\n"
        "def make(features, classes, seed):\n"
        "    return nn.Sequential(nn.Linear(features, 40), nn.ReLU(), nn.Linear(40, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    data = ["--data", "mine.npz", "--samples", "0"]
    own = run("safe-density", *data, "--model", "at_init_user_net:make")
    assert own.exit_code == 0, own.output
    assert own.output == run("safe-density", *data, "--widths", "40").output


def test_numbers():
    assert numbers("x", "0.1, 1") == [0.1, 1.0]
    assert numbers("x", "0.01:1:3") == pytest.approx([0.01, 0.1, 1.0])
    with pytest.raises(ValueError, match=r"`x` must be finite numbers with commas, or LOW"):
        numbers("x", "0:1:3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--densities", "0"], "--densities must be a density (kept / total)"),
        (["simulate", "--classes", "1"], "--classes must be a whole number >= 2"),
        (["simulate", "--engine", "duel"], "Unknown engine 'duel'. Did you mean dual"),
        (["phase", "--axis", "width"], "Unknown axis 'width'"),
        (["phase", "--axis", "neurons", "--values", "1.5"], "--values must be whole numbers"),
        (["safe-density", "--samples", "-1"], "--samples must be >= 0"),
        (["phase", "--measured", "-1"], "--measured must be >= 0"),
        (["safe-density", "--samples", "5"], "--samples of 5 leave 0 of some class"),
        (["safe-density", "--model", "10.5"], "--model must be whole numbers"),
        (["sweep", "--model", "10.5"], "--model must be whole numbers"),
        (["safe-density", "--model", "no_such:net"], "--model: there is no module 'no_such'"),
        (["safe-density", "--model", "inf"], "--model must be finite numbers"),
        (["phase", "--axis", "neurons", "--values", "5,nan"], "--values must be finite numbers"),
        (["sweep", "--model", "math:hypot"], "got a float from it"),
        (["safe-density", "--model", "math:erf"], "--model erf must be a function (features,"),
        (["sweep", "--model", "math:pj"], "--model: math has no 'pj'. Did you mean pi"),
    ],
)
def test_mistakes_cost_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prunus", "theory", "at-init", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith("prunus: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_reproduction_shows_the_claims():
    """The small scale: gain beyond 5 standard errors, collapse, memorisation, bounds kept."""
    from prunus.reproduce import reproduction

    found = reproduction("yang2023")(scale="small", seed=0, data_dir=None, progress=False)
    rows = {(r["experiment"], r["quantity"], r["density"]): r for r in found.rows}
    for letter, density in (("A", 0.35), ("C", 0.18)):
        dense = rows[letter, "test accuracy", 1.0]["measured"]
        assert rows[letter, "test accuracy", density]["measured"] > dense + 0.09
        ruined = rows[letter, "test accuracy", 6e-4]
        assert ruined["measured"] < 0.4
        assert "train acc 1.000" in ruined["note"]
    proved = [r for r in found.rows if r["status"] == "proved"]
    assert all("BROKEN" not in r["note"] for r in proved)
    assert set(found.figures) == {
        "at-init-accuracy", "at-init-learning", "at-init-certificate", "at-init-phase",
        "at-init-phase-width",
    }  # fmt: skip
