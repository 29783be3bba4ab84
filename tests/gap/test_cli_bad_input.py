"""`prunus plan`, `certify`, `prune --budget gap=…`: bad input costs one line and code 2."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from prunus.cli.app import main
from prunus.theory.gap import Certificate

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


def net(*, inputs=12, outputs=3, norm=False, bad=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(inputs, 8), nn.LayerNorm(8) if norm else nn.ReLU(), nn.Linear(8, outputs)
    )
    if bad:
        model[0].weight.data[0, 1] = float("nan")
    return model.eval()


def normed():
    return net(norm=True)


def nan():
    return net(bad=True)


def narrow():
    return net(inputs=11)


def single():
    return net(outputs=1)


def table():
    return nn.Embedding(12, 3)


def thinned():
    model = net()
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < 0.05] = 0
    return model


HERE = __name__


@pytest.fixture
def data(tmp_path):
    x = np.random.default_rng(0).normal(size=(900, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    return str(tmp_path / "data.npz")


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["prunus", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


BAD = [
    (("plan", "nan", "--limit", 0.1), "`0.weight` must be finite, got nan at index [0, 1]"),
    (("plan", "narrow", "--limit", 0.1), "The model could not run on the data: mat1 and mat2"),
    (
        ("plan", "table", "--limit", 0.1),
        "The model has no layer to prune (the model itself: Embedding has",
    ),
    (
        ("plan", "normed", "--limit", 0.1, "--kind", "sup"),
        "'1' (LayerNorm) has no rule for a bound",
    ),
    (("plan", "single", "--limit", 0.1, "--kind", "changed"), "the network has one output"),
    (("plan", "net", "--limit", 0.1, "--delta", 0), "--delta must lie in (0, 1), got 0.0."),
    (("plan", "net", "--limit", 0.1, "--delta", 1.0), "--delta must lie in (0, 1), got 1.0."),
    (("plan", "net", "--limit", 0.1, "--density", 0), "--density must lie in (0, 1], got 0.0."),
    (("plan", "net", "--limit", -1), "--limit must be a finite number >= 0, got -1.0."),
    (("plan", "net", "--limit", "inf"), "--limit must be a finite number >= 0, got inf."),
    (("plan", "net", "--limit", 2, "--kind", "changed"), "is a share of predictions <= 1, got 2."),
    (("plan", "net", "--limit", 0.1, "--kind", "worst"), "Unknown kind 'worst'. Known: changed,"),
    (("plan", "net", "--limit", 0.1, "--method", "wanda"), "Unknown method 'wanda'."),
    (("plan", "net", "--limit", 0.1, "--part", "val"), "Unknown part of the data 'val'."),
    (("plan", "net", "--limit", 0.1, "--samples", 0), "--samples must be a whole number >= 1"),
    (("plan", "net", "--limit", 0.1, "--kind", "sup", "--radius", 0), "--radius must be a finite"),
    (("certify", "nan", "nan"), "`0.weight` must be finite, got nan at index [0, 1]"),
    (("certify", "narrow", "narrow"), "The model could not run on the data: mat1 and mat2"),
    (("certify", "net", "thinned", "--delta", 1), "--delta must lie in (0, 1), got 1.0."),
    (("certify", "net", "thinned", "--radius", -1), "--radius must be a finite number > 0"),
    (("certify", "net", "normed"), "the two models differ at '1': ReLU before, LayerNorm after"),
    (("certify", "net", "single"), "shape (3, 8) before and (1, 8) after pruning"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(map(str, a)) for a, _ in BAD])
def test_bad_input_costs_one_line(monkeypatch, capsys, data, arguments, message):
    command, *rest = arguments
    names = [f"{HERE}:{r}" if str(r) in globals() else r for r in rest]
    code, out, err = run(monkeypatch, capsys, command, *names, "--data", data)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("prunus: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", f"{HERE}:net", "--limit", 0.1), "a plan of kind 'predicted' needs --data"),
        (("certify", f"{HERE}:net", f"{HERE}:thinned"), "`certify` needs --data, or the --radius"),
        (("certify", f"{HERE}:net", "nowhere"), "PRUNED: nowhere is no folder that `prunus prune`"),
        (("certify", f"{HERE}:normed", f"{HERE}:normed", "--radius", 1), "(LayerNorm) has no rule"),
        (
            ("prune", f"{HERE}:net", "--recipe", "magnitude", "--budget", "gap=0.1"),
            "A gap budget needs the inputs",
        ),
        (("prune", f"{HERE}:net", "--density", 0.5, "--certify"), "--certify needs --data"),
        (("prune", f"{HERE}:net", "--budget", "gap=-1"), "`gap` must be a finite number > 0"),
        (
            ("prune", f"{HERE}:net", "--budget", "gaps=1"),
            "Unknown budget 'gaps'. Did you mean gap",
        ),
    ],
)
def test_missing_data_and_budgets(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_plan_prune_and_certify_from_the_shell(monkeypatch, capsys, tmp_path, data):
    monkeypatch.chdir(tmp_path)
    model = f"{HERE}:net"
    code, out, _ = run(monkeypatch, capsys, "plan", model, "--limit", 0.05, "--kind", "changed",
                       "--data", data)  # fmt: skip
    assert code == 0
    assert "samples that did not plan" in out
    code, out, _ = run(monkeypatch, capsys, "plan", model, "--limit", 0.05, "--density", 0.1,
                       "--data", data, "--out", "plan.json")  # fmt: skip
    assert code == 0
    assert "NOT FEASIBLE" in out
    assert json.loads((tmp_path / "plan.json").read_text())["feasible"] is False
    code, out, _ = run(monkeypatch, capsys, "prune", model, "--recipe", "gap-gradient",
                       "--budget", "gap=0.2", "--data", data, "--out", "pruned",
                       "--certify")  # fmt: skip
    assert code == 0
    assert "share of changed predictions" in out
    assert "What is guaranteed" in (tmp_path / "pruned" / "report.html").read_text()
    assert "planned for the masks of gap-gradient" in out
    code, out, _ = run(monkeypatch, capsys, "certify", model, "pruned", "--data", data,
                       "--out", "c.json", "--report", "c.html")  # fmt: skip
    assert code == 0
    assert "largest gap in the ball" in out
    stored = Certificate.from_json((tmp_path / "c.json").read_text())
    assert stored.summary() in out
    assert "What is guaranteed" in (tmp_path / "c.html").read_text()
