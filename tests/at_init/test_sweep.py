"""The sweep on real networks: paired design, control, stacked training, and its reports."""

import json
import math

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import prunus
from prunus.bench.at_init.masks import he_mlp, hidden_widths, masks_at_init
from prunus.bench.at_init.stacked import FullBatch, stacked_fit
from prunus.bench.at_init.sweep import CONTROL, DENSE, METHODS, _problem, sweep
from prunus.bench.data.sets import Dataset
from prunus.cli.app import app


def blobs(count=160, features=12, classes=3):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    x = torch.randn(count, features, generator=generator)
    x[torch.arange(count), y] += 2.5
    half = count // 2
    return Dataset(
        name="blobs",
        x_train=x[:half],
        y_train=y[:half],
        x_test=x[half:],
        y_test=y[half:],
        fingerprint="blobs",
    )


SHORT = FullBatch(steps=25, learning_rate=2e-2)
SWEPT = ("random-init", "snip", "grasp")  # synflow goes through a hundred rounds for each mask


@pytest.fixture(scope="module")
def found():
    return sweep(
        blobs(), (16,), methods=SWEPT, densities=(0.6, 0.2), seeds=5, samples=60, input_noise=0.3,
        training=SHORT,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_those_of_the_recipe(method):
    model = he_mlp(12, [16, 8], 3, seed=1)
    data = blobs()
    batch = (data.x_train, data.y_train)
    densities = [0.3] if method == "synflow" else [0.7, 0.3]
    masks = masks_at_init(model, method, densities, batch, names=["fc1", "fc2", "fc3"], seed=6)
    for density, own in zip(densities, masks, strict=True):
        pruned = prunus.prune(model, method, density, data=batch, seed=6)
        for name, mask in own.items():
            assert torch.equal(mask, pruned.layers[name].mask), name


def test_stacked_training_is_training_one_after_another():
    model = he_mlp(12, [9], 3, seed=0)
    data = blobs()
    generator = torch.Generator().manual_seed(3)
    stack = {
        name: torch.stack([p.detach() + 0.1 * i for i in range(3)])
        for name, p in model.named_parameters()
    }
    masks = {
        name: torch.rand(value.shape, generator=generator) < 0.5
        for name, value in stack.items()
        if value.ndim == 3
    }
    trained, losses = stacked_fit(
        model, stack, masks, data.x_train, data.y_train, FullBatch(steps=20, chunk=2)
    )
    for i in range(3):
        own = he_mlp(12, [9], 3, seed=0)
        with torch.no_grad():
            for name, p in own.named_parameters():
                p.copy_(stack[name][i] * masks[name][i] if name in masks else stack[name][i])
        optimizer = torch.optim.Adam(own.parameters(), 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(own(data.x_train), data.y_train)
            torch.autograd.backward(loss)
            for name, p in own.named_parameters():
                if name in masks:
                    p.grad.mul_(masks[name][i])
            optimizer.step()
        for name, p in own.named_parameters():
            # sums in another order over 20 steps in float32
            torch.testing.assert_close(trained[name][i], p.detach(), rtol=1e-3, atol=1e-4)
            if name in masks:
                assert bool((trained[name][i][~masks[name][i]] == 0).all())
        final = nn.functional.cross_entropy(own(data.x_train), data.y_train)
        assert float(losses[i]) == pytest.approx(float(final.detach()), rel=1e-3)


def test_noisy_inputs_are_standardised_by_their_training_part():
    quiet, noisy = (_problem(blobs(), 0, 60, 50, noise) for noise in (0.0, 2.0))
    for problem in (quiet, noisy):
        torch.testing.assert_close(problem.inputs.mean(0), torch.zeros(12), rtol=0, atol=1e-6)
        assert float(problem.inputs.std()) == pytest.approx(1, abs=1e-6)
    # per unit of signal the noise is what was asked for, in the test part too
    kept = float((noisy.inputs * quiet.inputs).mean())
    for clean, rough in (
        (quiet.inputs, noisy.inputs),
        (quiet.test_inputs, noisy.test_inputs),
    ):
        ratio = float((rough - kept * clean).std()) / kept
        assert ratio == pytest.approx(2.0, rel=0.1)  # 600 draws, 3 standard errors


def test_cells_are_paired_with_the_dense_network(found):
    dense = found.accuracy[DENSE, 1.0]
    assert found.cells[0].method == DENSE
    assert len(found.cells) == 1 + 2 * (len(SWEPT) + 1)
    for cell in found.cells:
        values = found.accuracy[cell.method, cell.density]
        assert cell.accuracy == pytest.approx(float(values.mean()))
        assert cell.gain == pytest.approx(float((values - dense).mean()))
        error = float((values - dense).std()) / math.sqrt(5)
        assert cell.gain_error == pytest.approx(error)
        assert cell.gain_interval == pytest.approx(2.7764451 * error, rel=1e-6)  # t, 4 degrees
        if cell.method in SWEPT:
            control = found.accuracy[CONTROL, cell.density]
            assert cell.control_gain == pytest.approx(float((values - control).mean()))
        assert 0 < cell.alignment_start <= 1
        assert cell.train_loss < math.log(3)


def test_same_seeds_same_sweep(found):
    again = sweep(
        blobs(), (16,), methods=("snip",), densities=(0.2,), seeds=[1, 0, 2, 3, 4], samples=60,
        input_noise=0.3, training=SHORT,
    )  # fmt: skip
    whole = found.accuracy["snip", 0.2]
    # another stack of networks is summed in another order, so a test point may change sides
    torch.testing.assert_close(
        again.accuracy["snip", 0.2], whole[[1, 0, 2, 3, 4]], rtol=0, atol=0.03
    )


def test_learning_aligns_units_with_class_means(found):
    dense = found.cells[0]
    assert dense.alignment > dense.alignment_start


def test_users_own_model_and_data():
    class Narrow(nn.Module):
        def __init__(self, features, classes):
            super().__init__()
            self.inner = nn.Linear(features, 6, bias=False)
            self.outer = nn.Linear(6, classes)

        def forward(self, x):
            return self.outer(torch.tanh(self.inner(x)))

    def factory(features, classes, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Narrow(features, classes)

    found = sweep(
        blobs(), factory, methods=("random-init",), densities=(0.5,), seeds=5, samples=60,
        training=SHORT, layers="inner",
    )  # fmt: skip
    assert [c.method for c in found.cells] == [DENSE, "random-init", CONTROL]
    assert found.cells[0].accuracy > 0.6


def test_hidden_widths_of_the_users_model():
    assert hidden_widths(he_mlp(12, [16, 8], 3, seed=0)) == [16, 8]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), "'0' is a Conv2d"),
        (nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 2)]), "3 outputs and '1' after it 4 inputs"),
        (nn.Sequential(nn.Linear(4, 2)), "has 1 linear layers, so no hidden layer"),
        (nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2)), "cannot read layer '0': Embedding"),
    ],
)
def test_models_that_the_estimate_does_not_cover(model, message):
    with pytest.raises(ValueError, match=message):
        hidden_widths(model)


def test_layers_that_read_their_weight_otherwise():
    """A transposed weight, as GPT-2 has it: masks, control and alignment know its order."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    def factory(features, classes, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(conv1d(6, features), nn.ReLU(), nn.Linear(6, classes))

    found = sweep(
        blobs(), factory, methods=("snip",), densities=(0.6,), seeds=5, samples=60, training=SHORT
    )
    start = {cell.method: cell.alignment_start for cell in found.cells}
    assert start[DENSE] is not None
    assert start[CONTROL] == pytest.approx(start[DENSE])  # a factor turns no unit
    assert found.accuracy["snip", 0.6].mean() > 0.5


def test_disconnected_masks_are_said_before_training():
    with pytest.warns(RuntimeWarning) as caught:
        found = sweep(
            blobs(), (6,), methods=("random-init",), densities=(0.02,), seeds=[0], samples=60,
            training=SHORT,
        )  # fmt: skip
    assert any("masks of seed 0 disconnect the network" in str(w.message) for w in caught)
    assert any("fewer than 5" in str(w.message) for w in caught)
    cell = found.cells[1]
    assert cell.disconnected == 1
    assert cell.gain_interval is None
    assert "random-init at density 0.02, seed 0" in found.reports[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("snap",)}, "Unknown method at initialisation 'snap'. Did you mean snip"),
        ({"methods": ()}, "must each hold at least one entry"),
        ({"densities": ()}, "must each hold at least one entry"),
        ({"densities": (0.5, 0.0)}, r"`densities` must lie in \(0, 1\]"),
        ({"densities": (0.5, 1.0)}, "must be distinct and below 1"),
        ({"seeds": []}, "`seeds` must hold at least one seed"),
        ({"samples": 160}, r"`samples` must be a whole number in \[2, 159\]"),
        ({"input_noise": -1.0}, "`input_noise` must be a finite number >= 0"),
        ({"model": lambda *a: nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 3))}, "has buffers"),
        ({"model": lambda *a: nn.Sequential(nn.Dropout(), nn.Linear(12, 3))}, "has dropout"),
        ({"model": (0,)}, "`model` must be a whole number >= 1"),
    ],
)
def test_bad_arguments(change, message):
    call = {"densities": (0.5,), "seeds": 5, "samples": 60, "training": SHORT, **change}
    with pytest.raises(ValueError, match=message):
        sweep(blobs(), call.pop("model", (5,)), **call)


def test_command(tmp_path):
    pytest.importorskip("sklearn", reason="the extra `data` is not installed")
    stem = tmp_path / "sweep"
    result = CliRunner().invoke(
        app,
        [
            *["theory", "at-init", "sweep", "--model", "12", "--densities", "0.5", "--steps", "5"],
            *["--seeds", "5", "--samples", "50", "--methods", "random-init,snip"],
            *["--out", str(stem)],
        ],
    )
    assert result.exit_code == 0, result.output
    assert "over control" in result.output
    drawn = json.loads((tmp_path / "sweep-alignment.json").read_text())
    assert [(r["series"], r["density"]) for r in drawn] == [
        ("random-init", 0.5), ("snip", 0.5), (CONTROL, 0.5), (DENSE, 1.0),
    ]  # fmt: skip
    assert all(r["low"] < r["alignment"] < r["high"] for r in drawn)
    rows = json.loads((tmp_path / "sweep-table.json").read_text())
    assert [row["method"] for row in rows] == [DENSE, "random-init", "snip", CONTROL]


@pytest.mark.slow
def test_digits_show_what_the_docs_say():
    """10 seeds with input noise: SNIP loses less than random masks; the control loses nothing."""
    from prunus.bench.data.sets import load_data

    found = sweep(load_data("digits"), (100,), densities=(0.5, 0.2), seeds=10, input_noise=1.0)
    cells = {(c.method, c.density): c for c in found.cells}
    assert cells["snip", 0.2].gain > cells["random-init", 0.2].gain + 0.03
    assert cells["random-init", 0.2].gain < -0.03
    assert abs(cells[CONTROL, 0.2].gain) < 0.03
