"""Transposed convolutions as matrices: every geometry against the module itself."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import prunus
from prunus.coupling import couple
from prunus.views import TransposedConvView

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize(("axes", "groups"), list(itertools.product(KINDS, (1, 2))))
def test_matrix_times_vectors_is_the_layer(axes, groups):
    view, seen = TransposedConvView(), 0
    sizes = itertools.product((1, 3) if axes == 3 else (1, 2, 4), (1, 2, 3), (0, 1, 2), (1, 2))
    for kernel, stride, padding, dilation in sizes:
        more = 1 if stride > 1 else 0
        layer = KINDS[axes](4, 6, kernel, stride, padding, more, groups, True, dilation).double()
        x = torch.randn(2, 4, *[4] * axes, dtype=torch.float64)
        if any(n <= 0 for n in _lengths(layer)):
            continue
        seen += 1
        y = layer(x)
        matrix = view.matrix(layer, layer.weight)
        assert torch.equal(view.parameter(layer, matrix), layer.weight)
        blocks = matrix.reshape(groups, 6 // groups, -1)
        found = torch.einsum("pgi,goi->pgo", view.vectors(layer, x), blocks)
        found = found + layer.bias.reshape(groups, -1)
        assert_close(found, view.responses(layer, y))
    assert seen >= 20


def _lengths(layer):
    facts = zip(layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    more = layer.output_padding[0]
    return [3 * s - 2 * p + d * (k - 1) + more + 1 for k, s, p, d in facts]


def test_edges_and_nodes_of_a_generator():
    torch.manual_seed(0)
    first, last = nn.ConvTranspose2d(8, 16, 4), nn.ConvTranspose2d(16, 3, 4, 2, 1)
    model = nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), last).eval()
    z = torch.randn(8, 8, 2, 2)
    assert prunus.prune(model, "wanda+ls", 0.5, data=z).cost_after.density == 0.5
    (group,) = couple(model, z).groups
    places = {(s.parameter, s.axis, s.role) for s in group.slots}
    assert {("0.weight", 1, "out"), ("1.weight", 0, "out"), ("3.weight", 0, "in")} <= places
    pruned = prunus.prune(model, "importance-node+ls", 0.5, data=z)
    small = pruned.compact()
    assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
    assert_close(small(z), pruned.model(z))


def test_least_squares_does_not_raise_the_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(6, 9, 3, 2, 1), nn.Tanh(), nn.Conv1d(9, 4, 2)).eval()
    x = torch.randn(40, 4, 7).repeat(1, 2, 1)[:, :6]  # correlated channels
    plain, fitted = (prunus.prune(model, name, 0.4, data=x) for name in ("wanda", "wanda+ls"))
    assert torch.equal(plain.layers["0"].mask, fitted.layers["0"].mask)
    assert fitted.layers["0"].error < 0.9 * plain.layers["0"].error


def test_groups_of_a_transposed_convolution_go_as_nodes():
    torch.manual_seed(0)
    between = nn.ConvTranspose1d(4, 4, 2, groups=2)
    model = nn.Sequential(nn.Conv1d(3, 4, 1), between, nn.Conv1d(4, 2, 1)).eval()
    x = torch.randn(2, 3, 5)
    assert couple(model, x).groups
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    small = pruned.compact(x)
    assert small[1].weight.numel() < between.weight.numel()
    assert_close(small(x), pruned.model(x))
