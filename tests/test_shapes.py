"""Runs without products: the shapes are those of the real ones, and no number is made up."""

import contextlib
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import models
from prunus.cost import count_operations
from prunus.coupling import couple
from prunus.coupling.groups import groups_of
from prunus.coupling.run import first_trace
from prunus.dispatch import tensors_in
from prunus.modes import evaluating
from prunus.shapes import PRODUCTS, by_shapes


class Beside(TorchDispatchMode):
    """Holds what a product would be taken for against the product."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            zeros = PRODUCTS[func](*args, **(kwargs or {}))
            if zeros is not None:
                self.seen += 1
                for one, other in zip(tensors_in(result), tensors_in(zeros), strict=True):
                    assert one.shape == other.shape, func
                    assert one.stride() == other.stride(), func
                    assert (one.dtype, one.device) == (other.dtype, other.device), func
        return result


@pytest.mark.parametrize("name", models.ZOO)
def test_zeros_lie_as_products_do(name):
    model, x = models.build(name)
    with evaluating(model, fused=True), torch.no_grad(), Beside() as beside:
        model(x)
    assert beside.seen


CONVOLUTIONS = [
    (kind, dict(stride=s, padding=p, dilation=d, groups=g), dtype)
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    for s, p, d, g in ((1, 0, 1, 1), (2, 1, 1, 2), (3, 2, 2, 4))
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("kind", "options", "dtype"), CONVOLUTIONS)
def test_zeros_of_convolutions(kind, options, dtype):
    layer = kind(4, 8, 3, **options).to(dtype)
    axes = layer.weight.ndim - 2
    with torch.no_grad(), Beside() as beside:
        layer(torch.randn(2, 4, *range(9, 9 + axes)).to(dtype))
        layer(torch.randn(4, *[10] * axes).to(dtype))
        if layer.transposed and options["stride"] > 1:
            least = layer(torch.randn(1, 4, *[7] * axes).to(dtype)).shape[-1]
            layer(torch.randn(1, 4, *[7] * axes).to(dtype), output_size=[least + 1] * axes)
    assert beside.seen >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zeros_of_attention(dtype):
    query, key = torch.randn(2, 3, 5, 8).to(dtype), torch.randn(2, 3, 7, 8).to(dtype)
    with Beside() as beside:
        F.scaled_dot_product_attention(query, key, key)
        F.scaled_dot_product_attention(query, query, query, is_causal=True)
        turned = torch.randn(2, 5, 3, 3, 8).to(dtype).permute(2, 0, 3, 1, 4)
        F.scaled_dot_product_attention(*turned)
    assert beside.seen == 3


class Net(nn.Module):
    """A linear layer, and code that does something with what it gives."""

    def __init__(self, code):
        super().__init__()
        self.a, self.code = nn.Linear(4, 4), code
        self.register_buffer("kept", torch.zeros(2, 4))

    def forward(self, x):
        return self.code(self, x, self.a(x))


def swallowed(y):
    try:
        return y.sum().item()
    except BaseException:
        return 0.0


def written(net, y):
    net.kept.copy_(y)
    return net.kept[0, 0].item()


def viewed(y):
    flat = torch.empty(8)
    flat.view(2, 4)[:] = y
    return flat.numpy().tolist()


ASKING = {
    "item": lambda net, x, y: y.sum().item(),
    "if": lambda net, x, y: 1 if y.sum() > 0 else 2,
    "int": lambda net, x, y: int(100 * y[0, 0]),
    "numpy": lambda net, x, y: y.detach().numpy().tolist(),
    "tolist": lambda net, x, y: y.tolist(),
    "mask": lambda net, x, y: y[y > 0].shape,
    "nonzero": lambda net, x, y: (y > 0).nonzero().shape,
    "unique": lambda net, x, y: y.round().unique().shape,
    "repeats": lambda net, x, y: x.repeat_interleave((y > 0).sum(1), dim=0).shape,
    "equal": lambda net, x, y: torch.equal(y, torch.zeros(2, 4)),
    "best": lambda net, x, y: y.argmax().item(),
    "swallowed": lambda net, x, y: swallowed(y),
    "a buffer": lambda net, x, y: written(net, y),
    "a view": lambda net, x, y: viewed(y),
    "a failure": lambda net, x, y: torch.linalg.cholesky(y.T @ y + 1e-3 * torch.eye(4)).shape,
    "sparse": lambda net, x, y: y.relu().to_sparse()._nnz(),
    "sums": lambda net, x, y: torch.stack([y, y]).mean(0).max().item(),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("grad", [False, True])
def test_code_that_asks_for_numbers_gets_them(name, grad):
    torch.manual_seed(0)
    net, x = Net(ASKING[name]), torch.randn(2, 4)

    def run():
        with torch.set_grad_enabled(grad and name not in ("a buffer", "a view")):
            return net(x)

    assert by_shapes(run) == run()


FREE = {
    "values": lambda net, x, y: F.gelu(F.layer_norm(y, (4,))).softmax(-1).shape,
    "inputs": lambda net, x, y: y.shape if (x > -100).all() else 1 / 0,
    "positions": lambda net, x, y: y[(x[:, 0] > -100)].shape,
    "sizes": lambda net, x, y: y.view(len(y), -1).split(2, dim=1)[0].shape,
    "scattered": lambda net, x, y: y.gather(1, y.argsort(1)).shape,
    "buffers": lambda net, x, y: net.kept.sum().item(),
}


@pytest.mark.parametrize("name", FREE)
def test_other_code_runs_once_and_without_its_products(name):
    net, calls = Net(FREE[name]), []

    def run():
        calls.append(net.a(torch.ones(1, 4)))
        with torch.no_grad():
            return net(torch.randn(2, 4))

    by_shapes(run)
    assert len(calls) == 1
    assert not calls[0].any()


def test_a_model_that_fails_fails_as_it_does():
    net = Net(lambda net, x, y: y.view(3, 3))
    with pytest.raises(RuntimeError, match=r"shape '\[3, 3\]' is invalid for input of size 8"):
        by_shapes(lambda: net(torch.randn(2, 4)))
    wrong = nn.Linear(5, 3)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied"):
        by_shapes(lambda: wrong(torch.randn(2, 4)))
    with pytest.raises(RuntimeError, match=r"expected input.* to have 3 channels"):
        by_shapes(lambda: nn.Conv2d(3, 4, 3)(torch.randn(2, 2, 8, 8)))


def test_what_was_on_is_off_afterwards():
    y = nn.Linear(4, 4)(torch.ones(1, 4))
    with contextlib.suppress(KeyboardInterrupt):
        by_shapes(interrupted)
    for code in (ASKING["item"], FREE["values"]):
        by_shapes(partial(Net(code), torch.randn(2, 4)))
        assert nn.Linear(4, 4)(torch.ones(1, 4)).any()
    assert y.any()


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", models.ZOO)
def test_counts_and_groups_are_those_of_real_runs(name):
    model, x = models.build(name, samples=2)

    def run():
        with torch.no_grad():
            model(x)
        return 2

    with evaluating(model):
        assert count_operations(model, run) == count_operations(model, run, outputs=False)
    real = groups_of(first_trace(model, x), list(couple(model, x).refused))
    found = couple(model, x)
    assert [(g.name, g.size, g.producers, g.consumers) for g in real.groups] == [
        (g.name, g.size, g.producers, g.consumers) for g in found.groups
    ]
    assert real.numbered == found.numbered


class Choosing(nn.Module):
    """Sends each sample through one of two experts, as a router's scores say."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(6, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(2)
        )
        with torch.no_grad():
            self.router.weight.zero_()
            self.router.weight[:, 0] = torch.tensor([1.0, -1.0])

    def forward(self, x):
        best = self.router(x).argmax(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            chosen = (best == number).nonzero().flatten()
            if len(chosen):
                out = out.index_add(0, chosen, expert(x[chosen]))
        return out


def test_experts_are_met_as_the_router_chooses():
    """Zeros in the place of the router's scores would send all samples to one expert."""
    torch.manual_seed(0)
    model, x = Choosing(), torch.tensor([[1.0] + [0.5] * 5, [-1.0] + [0.5] * 5])
    found = {producer for group in couple(model, x).groups for producer in group.producers}
    assert {"experts.0.0", "experts.1.0"} <= found
