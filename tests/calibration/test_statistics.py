"""The statistics of every kind of layer against their definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import build
from prunus.calibration import calibrate
from prunus.calibration.statistics.cross import Cross
from prunus.calibration.statistics.protocol import Pair, Vectors
from prunus.calibration.vectors import vectors_of
from prunus.layer import Layer, view_of
from prunus.weights import weight_at
from reference import moments as slow

PLAIN = ("gram", "mean", "max", "zeros")
# an even kernel with padding="same" costs torch a copy, of which it warns
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def drawn(*shape, seed=0):
    """Inputs of which some are exactly zero, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).clamp(min=-0.4) + 0.4


def expect(layer, vectors, names=PLAIN):
    for name, value in slow.moments(vectors).items():
        if name not in names:
            continue
        wanted = torch.tensor(value if layer.groups > 1 else value[0])
        torch.testing.assert_close(getattr(layer, name), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5), (5,)])
def test_linear(shape):
    model, x = nn.Linear(5, 3).double(), drawn(*shape)
    vectors = x.reshape(-1, 1, 5).numpy()
    layer = calibrate(nn.Sequential(model), x, PLAIN)["0"]
    expect(layer, vectors)
    assert layer.samples == len(vectors)
    diag = calibrate(nn.Sequential(model), x, ("diag",))["0"]
    expect(diag, vectors, ("diag",))
    assert diag.gram is None
    torch.testing.assert_close(diag.power(), layer.power(), rtol=1e-12, atol=0)


CONVS = {
    "1d": (nn.Conv1d, {"kernel_size": 3}, (4, 9)),
    "1d-same-even": (nn.Conv1d, {"kernel_size": 4, "padding": "same", "dilation": 2}, (4, 9)),
    "2d": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (4, 5, 6)),
    "2d-uneven": (
        nn.Conv2d,
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        (4, 6, 7),
    ),
    "2d-same": (nn.Conv2d, {"kernel_size": (2, 3), "padding": "same"}, (4, 5, 6)),
    "2d-valid": (nn.Conv2d, {"kernel_size": 2, "padding": "valid"}, (4, 5, 6)),
    "2d-groups": (nn.Conv2d, {"kernel_size": 3, "groups": 2, "padding": 1}, (4, 5, 5)),
    "2d-depthwise": (nn.Conv2d, {"kernel_size": 3, "groups": 4, "stride": 2}, (4, 7, 7)),
    "2d-reflect": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        (4, 5, 6),
    ),
    "2d-circular": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
        (4, 5, 6),
    ),
    "2d-replicate": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
        (4, 5, 6),
    ),
    "3d": (nn.Conv3d, {"kernel_size": (2, 1, 3), "padding": (1, 0, 1), "groups": 2}, (4, 3, 4, 3)),
}


def conv_of(name):
    kind, options, shape = CONVS[name]
    torch.manual_seed(0)
    return kind(4, 8, **options).double(), drawn(3, *shape)


@pytest.mark.parametrize("name", CONVS)
def test_convolution(name):
    module, x = conv_of(name)
    vectors = slow.patches(
        x.numpy(),
        module.kernel_size,
        module.stride,
        (0,) * (x.ndim - 2) if module.padding == "valid" else module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
    )
    layer = calibrate(nn.Sequential(module), x, PLAIN)["0"]
    expect(layer, vectors)
    assert layer.samples == len(vectors)
    assert layer.taps == math.prod(module.kernel_size)
    expect(calibrate(nn.Sequential(module), x, ("diag",))["0"], vectors, ("diag",))


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_is_its_matrix_times_its_patches(name):
    module, x = conv_of(name)
    layer = calibrate(nn.Sequential(module), x)["0"]
    outputs = module(x).detach().movedim(1, -1).reshape(-1, 8)
    vectors = view_of(module).vectors(module, x)
    blocks = zip(layer.blocks(), vectors.unbind(1), strict=True)
    ours = torch.cat([v @ b.weight.T + b.bias for b, v in blocks], dim=1)
    torch.testing.assert_close(ours, outputs)


@pytest.mark.parametrize("name", ["1d", "2d", "3d"])
def test_one_sample_without_a_batch_axis(name, monkeypatch):
    module, x = conv_of(name)
    monkeypatch.setattr("prunus.calibration.vectors.BLOCK_BYTES", 8)  # a sample at a time
    one, view = x[0], view_of(module)
    blocks = list(vectors_of(weight_at(module, ""), one))
    torch.testing.assert_close(torch.cat(blocks), view.vectors(module, x[:1]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["2d-groups", "2d-depthwise", "1d"])
def test_blocks_of_bounded_size_change_nothing(name, monkeypatch):
    module, x = conv_of(name)
    whole = calibrate(nn.Sequential(module), x, PLAIN)["0"]
    monkeypatch.setattr("prunus.calibration.vectors.BLOCK_BYTES", 4096)
    monkeypatch.setattr("prunus.calibration.batches.ROWS", 2)
    split = calibrate(nn.Sequential(module), x, PLAIN)["0"]
    for key in PLAIN:
        torch.testing.assert_close(getattr(split, key), getattr(whole, key), rtol=1e-12, atol=1e-13)


def same(a, b, rtol=1e-12):
    assert list(a) == list(b)
    for name in a:
        assert a[name].samples == b[name].samples
        for key in ("gram", "mean", "diag", "max", "zeros", "grad"):
            ours, theirs = getattr(a[name], key), getattr(b[name], key)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-14)


@given(cut=st.integers(1, 22), seed=st.integers(0, 99))
@settings(max_examples=5)
def test_merging_two_calibrations_equals_one_pass(cut, seed):
    model, x = build("cnn-relu", samples=23, seed=seed)
    y = torch.arange(23) % 4
    names = (*PLAIN, "grad")
    whole = calibrate(model, (x, y), names)
    merged = calibrate(model, (x[:cut], y[:cut]), names)
    merged = merged + calibrate(model, [(x[cut:], y[cut:])], names)
    assert merged.samples == whole.samples == 23
    same(merged, whole)


def test_how_the_data_are_batched_or_repeated_changes_nothing():
    model, x = build("cnn-relu", samples=12)
    y = torch.arange(12) % 4
    names = (*PLAIN, "grad")
    once = calibrate(model, (x, y), names)
    same(calibrate(model, [(x[i : i + 5], y[i : i + 5]) for i in (0, 5, 10)], names), once)
    twice = calibrate(model, [(x, y), (x, y)], names)
    assert twice["fc1"].samples == 2 * once["fc1"].samples
    for name in once:
        for key in (*PLAIN, "grad"):
            torch.testing.assert_close(
                getattr(twice[name], key), getattr(once[name], key), rtol=1e-12, atol=1e-14
            )


def test_other_layers_leave_a_layers_drawn_positions_alone():
    model, x = build("cnn-relu")
    alone = calibrate(model, x, max_positions=5, seed=3)
    again = calibrate(model, x, max_positions=5, seed=3, layers="conv2")
    torch.testing.assert_close(again["conv2"].gram, alone["conv2"].gram, rtol=0, atol=0)


def test_drawn_positions():
    model, x = build("cnn-relu", samples=6)
    few = calibrate(model, x, max_positions=5, seed=1)
    assert few["conv1"].samples == 6 * 5
    assert few["fc1"].samples == 6  # a linear layer keeps all
    batched = calibrate(model, list(x.split(2)), max_positions=5, seed=1)
    same(few, batched)
    other = calibrate(model, x, max_positions=5, seed=2)
    assert not torch.equal(few["conv1"].gram, other["conv1"].gram)
    everything = calibrate(model, x, max_positions=64, seed=1)
    same(everything, calibrate(model, x))
    # the mean over many seeds is the mean over all positions
    grams = [
        calibrate(model, x, max_positions=5, seed=s, layers="conv1")["conv1"].gram
        for s in range(30)
    ]
    full = everything["conv1"].gram
    assert (torch.stack(grams).mean(0) - full).norm() < 0.2 * full.norm()


def test_gradient_is_that_of_autograd_and_keeps_its_sign():
    model, x = build("mlp-tanh", samples=8)
    y = torch.arange(8) % 5
    found = calibrate(model, [(x[:3], y[:3]), (x[3:], y[3:])], ("grad",))
    loss = nn.functional.cross_entropy(model(x), y)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    wanted = torch.autograd.grad(loss, [model.get_submodule(n).weight for n in names])
    for name, grad in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name].grad, grad, rtol=1e-10, atol=1e-14)
        assert found[name].samples == 8

    # batches of opposite gradients cancel: absolute values are never summed
    def signed(output, batch):
        return batch[1].double().mean() * output.sum() / len(output)

    signs = torch.tensor([1, 1, 1, 1])
    both = calibrate(model, [(x[:4], signs), (x[:4], -signs)], ("grad",), loss=signed)
    one = calibrate(model, (x[:4], signs), ("grad",), loss=signed)
    for name in names:
        assert one[name].grad.abs().max() > 1e-3
        assert both[name].grad.abs().max() < 1e-12


def test_gradient_of_a_frozen_model_with_a_loss_of_its_own():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            class Output:
                loss = self.fc(x).square().mean()

            return Output()

    model = WithLoss().double().requires_grad_(False)
    x = drawn(4, 3)
    found = calibrate(model, {"x": x}, ("grad",))
    model.requires_grad_(True)
    wanted = torch.autograd.grad(model(x).loss, model.fc.weight)[0]
    torch.testing.assert_close(found["fc"].grad, wanted)
    with pytest.raises(ValueError, match=r"This recipe needs a loss, and the output has none and "):
        calibrate(nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3), ("grad",))


def test_attention_mask_takes_padding_out():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.fc, self.flat, self.pool = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask):
            x = self.fc(self.embed(input_ids))
            x = self.flat(x.flatten(0, 1)).view(x.shape)
            return self.pool(x[:, 0])

    torch.manual_seed(0)
    model = Tokens().double()
    ids = torch.arange(12).view(3, 4) % 11
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    found = calibrate(model, {"input_ids": ids, "attention_mask": mask}, PLAIN)
    embedded = model.embed(ids).detach()
    expect(found["fc"], embedded[mask.bool()][:, None].numpy())
    expect(found["flat"], model.fc(embedded).detach()[mask.bool()][:, None].numpy())
    assert found["pool"].samples == 3  # one vector per sequence
    other = ids.clone()
    other[mask == 0] = 7  # what stands on padding does not matter
    again = calibrate(model, {"input_ids": other, "attention_mask": mask}, PLAIN)
    for name in ("fc", "flat"):
        torch.testing.assert_close(again[name].gram, found[name].gram, rtol=0, atol=0)

    class Odd(Tokens):
        def forward(self, input_ids, attention_mask):
            return self.fc(self.embed(input_ids)[:, :3])

    with pytest.raises(
        ValueError,
        match=r"Layer 'fc' sees inputs of shape \(3, 3, 4\), in which an `attention_mask` of shape "
        r"\(3, 4\) does not say what is padding\. Exclude the layer, or leave the mask out of the "
        r"batch\.",
    ):
        calibrate(Odd().double(), {"input_ids": ids, "attention_mask": mask}, layers="fc")


def test_float32_data_are_summed_in_float64():
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.rand(20_000, 3) + 100.0
    gram = calibrate(model, x)["0"].gram
    exact = x.double().T @ x.double() / 20_000
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, exact, rtol=1e-13, atol=0)
    assert not np.allclose((x.T @ x / 20_000).double(), exact, rtol=1e-9)  # float32 would not do


def test_the_cross_moment_has_the_dense_inputs_first():
    """E[x_dense xᵀ] from its definition, which its transpose is not."""
    torch.manual_seed(0)
    dense, pruned = torch.randn(2, 40, 3, 5, dtype=torch.float64)
    pair = Pair(Vectors(dense, dense.sum(0)), Vectors(pruned, pruned.sum(0)))
    layer = Layer(name="fc", weight=torch.zeros(6, 5), groups=3)
    total = Cross().add(Cross().add(None, pair, layer), pair, layer)
    expected = torch.stack(
        [sum(torch.outer(dense[n, g], pruned[n, g]) for n in range(40)) / 40 for g in range(3)]
    )
    torch.testing.assert_close(Cross().finish(total, 80), expected)
    assert not torch.allclose(expected, expected.transpose(1, 2))
