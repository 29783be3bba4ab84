"""The laws of views, over the whole table: what a matrix multiplies, and the way back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunus.calibration.view_check import check_round_trip, check_views
from prunus.views import VIEWS, known_exactly
from prunus.weights import weight_at, weights_of

IMAGE = {1: (7,), 2: (7, 6), 3: (5, 4, 3)}
EXAMPLES = {
    nn.Linear: [(nn.Linear(4, 3), (2, 5, 4)), (nn.Linear(4, 3, bias=False), (2, 4))],
    nn.MultiheadAttention: [(nn.MultiheadAttention(4, 2, batch_first=True), (2, 5, 4))],
    nn.LSTM: [(nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2), (5, 2, 4))],
    nn.GRU: [(nn.GRU(4, 3, batch_first=True), (2, 5, 4))],
    nn.RNN: [(nn.RNN(4, 3), (5, 2, 4))],
    nn.LSTMCell: [(nn.LSTMCell(4, 3), (2, 4))],
    nn.GRUCell: [(nn.GRUCell(4, 3), (2, 4))],
    nn.RNNCell: [(nn.RNNCell(4, 3), (2, 4))],
    **{
        kind: [
            (kind(4, 6, 3, stride=2, padding=1, groups=groups, bias=groups == 1), (2, 4, *size))
            for groups in (1, 2)
        ]
        for kinds in (
            (nn.Conv1d, nn.Conv2d, nn.Conv3d),
            (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        )
        for kind, size in zip(kinds, IMAGE.values(), strict=True)
    },
}


class Named(nn.Module):
    """A module with one child, called with what the child needs."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        args = (x, x, x) if isinstance(self.part, nn.MultiheadAttention) else (x,)
        return self.part(*args)


def cases():
    return [(kind, *case) for kind in VIEWS for case in EXAMPLES[kind]]


def test_every_row_of_the_table_has_an_example():
    assert set(EXAMPLES) == set(VIEWS)


@pytest.mark.parametrize(
    ("kind", "module", "shape"), cases(), ids=lambda v: getattr(v, "__name__", "")
)
def test_matrices(kind, module, shape):
    torch.manual_seed(0)
    model = Named(module).double()
    weights = weights_of(model)
    matrices = [n for n, p in model.named_parameters() if p.ndim > 1]
    assert sorted(w.path for w in weights.values()) == sorted(matrices)
    assert known_exactly(module)
    seen = {}
    hooks = [
        w.module.register_forward_pre_hook(
            lambda m, args, kwargs, w=w: seen.update({w.name: w.inputs(args, kwargs)}),
            with_kwargs=True,
        )
        for w in weights.values()
    ]
    output = model(torch.randn(shape, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    for name, weight in weights.items():
        assert weight_at(model, name).path == weight.path
        layer = weight.layer()
        own = weight.parameter.detach()
        assert torch.equal(weight.view.parameter(weight.module, layer.weight), own)
        with torch.no_grad():
            vectors = weight.view.vectors(weight.module, seen[name])
        assert vectors.shape[1:] == (layer.groups, layer.weight.shape[1])
        assert layer.bias is None or len(layer.bias) == len(layer.weight)
        if weight.source.alone:
            blocks = layer.weight.view(layer.groups, -1, layer.weight.shape[1])
            told = torch.einsum("pgi,goi->pgo", vectors, blocks)
            if layer.bias is not None:
                told = told + layer.bias.view(layer.groups, -1)
            given = weight.view.responses(weight.module, output.detach())
            torch.testing.assert_close(told, given)
        # A new matrix and bias arrive, and nothing else changes.
        before = {k: v.clone() for k, v in model.state_dict().items()}
        bias = None if layer.bias is None else layer.bias + 1
        weight.put(layer.weight * 2, bias)
        touched = {weight.path, weight.bias_path}
        torch.testing.assert_close(weight.matrix(), weight.matrix(before[weight.path]) * 2)
        assert all(
            torch.equal(v, before[k]) for k, v in model.state_dict().items() if k not in touched
        )
        model.load_state_dict(before)
        masks = {}
        weight.put_mask(masks, layer.weight > 0)
        assert masks[weight.path].shape == own.shape
        assert torch.equal(weight.mask(masks), layer.weight > 0)


@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    turned=st.booleans(),
)
def test_convolutions_of_any_geometry(kernel, stride, padding, dilation, groups, turned):
    """A subclass is held against its own output: the check finds nothing to say."""
    kind = nn.ConvTranspose1d if turned else nn.Conv1d
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if turned and 8 * stride < 2 * padding:
        return
    inherited = type("Inherited", (kind,), {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Named(inherited(4, 8, kernel, **options)).double()
        x = torch.randn(2, 4, 9, dtype=torch.float64)
    weight = weight_at(model, "part")
    check_round_trip(weight)
    check_views(model, [weight], x, torch.device("cpu"))
