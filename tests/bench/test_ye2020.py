"""The reproduction of greedy subnetworks: its layer by hand, its search, its verdicts."""

import math

import pytest
import torch
from torch import nn

import prunus
from prunus.bench.data.models import mlp
from prunus.bench.data.sets import Dataset
from prunus.bench.grid.load import make_grid
from prunus.reproduce import save
from prunus.reproduce.ye2020 import account, grids
from prunus.reproduce.ye2020_claims import judged
from prunus.reproduce.ye2020_layer import RULES, hidden_layers, published_search, sets_of


def tiny(widths=(6, 12, 9, 4)):
    """A network that is not trained, and noise with labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, widths[0], generator=generator)
    y = torch.randint(0, widths[-1], (80,), generator=generator)
    data = Dataset(
        name="noise", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:], fingerprint="0"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp(widths), data


def test_what_is_judged_is_what_prune_leaves():
    model, data = tiny()
    first = next(hidden_layers(model, data, 60))
    x = data.x_train.double()
    model = model.double()
    for rule, k, kept, scale in sets_of(first, [3, 7], seed=torch.Generator().manual_seed(1)):
        if rule not in ("L1 norm", "refit", "forward"):
            continue
        recipe = {"L1 norm": "importance-node", "refit": "greedy-scales", "forward": "forward-node"}
        for ls in (False, True):
            name = recipe[rule] + ("+ls" if ls else "")
            pruned = prunus.prune(model, name, prunus.Plan(kept={"fc1": k}), data=x, layers="fc1")
            assert torch.equal(pruned.layers["fc2"].mask.any(0), kept)
            found = first.judged(kept, scale, ls=ls)
            with torch.no_grad():
                gap = (pruned.model(x) - model(x)).square().sum() / model(x).square().sum()
                wrong = pruned.model(data.x_test.double()).argmax(1) != data.y_test
            assert found["output error"] == pytest.approx(float(gap), rel=1e-5)
            assert found["test error"] == pytest.approx(100 * float(wrong.double().mean()))
            layer = pruned.layers["fc2"].error / first.local.constant
            assert found["layer error"] == pytest.approx(layer, rel=1e-5)


def test_the_search_takes_the_candidate_with_the_least_loss():
    model, data = tiny()
    first = next(hidden_layers(model, data, 60))
    found = published_search(first, 5, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    chosen: list[int] = []
    for n in range(1, 6):
        rows = torch.randint(60, (128,), generator=generator)
        left = [i for i in range(12) if i not in chosen]
        torch.randperm(len(left), generator=generator)  # all of them are tried
        tried = {}
        for i in left:
            factors = torch.zeros(12, dtype=torch.float64)
            factors[[*chosen, i]] = 12 / n
            hidden = torch.relu(model.fc1(data.x_train[rows].double())) * factors
            out = model.fc3(torch.relu(model.fc2(hidden)))
            tried[i] = float(nn.functional.cross_entropy(out, data.y_train[rows]).detach())
        chosen.append(min(tried, key=tried.__getitem__))
    assert found == chosen


def test_verdicts():
    assert judged({0: 1.0, 1: 1.2, 2: 1.1}, 0.0, 2.0)[0] == "holds"
    assert judged({0: 1.0, 1: 1.2, 2: 1.1}, 2.0, 3.0)[0] == "does not hold"
    assert judged({0: 1.0, 1: 1.2, 2: 1.1}, 1.1, 3.0)[0] == "not told"
    assert judged({0: -1.0}, -math.inf, 0.0) == ("not told", "-1")
    assert judged({0: 0.5, 1: 0.5}, 0.0, 1.0)[0] == "holds"


def test_the_account_and_the_grids(tmp_path):
    rows = [
        {
            "network": "digits-mlp", "seed": seed, "layer": layer, "rule": rule, "count": n,
            "measure": "D", "value": (1 + seed / 100) / n**2,
        }
        for seed in range(3)
        for layer in ("fc1", "fc2")
        for rule in ("uniform, multiset", "line")
        for n in (10, 500, 2000)
    ]  # fmt: skip
    result = account("small", rows, [])
    said = result.tables["What was said, and what was found"]
    assert [line["verdict"] for line in said] == ["holds", "holds"]
    assert said[0]["mean (95 % interval)"].startswith("-2 ")
    assert len({tuple(row) for row in result.rows}) == 1
    save(result, tmp_path)
    for scale in ("small", "full"):
        for grid in grids(scale):
            make_grid(grid)
    assert len(RULES) == 9
