"""Every rule for modules against the dense matrix of the module, over generated geometries."""

import math
import random

import pytest
import torch
from torch import nn

from prunus.guarantee import pooling as rules_of_pooling
from prunus.guarantee.rules import Unsupported, fold_batch_norm, linear_stage, module_stage
from prunus.theory.gap.convolution import conv_norm, copies
from prunus.theory.gap.stages import apply_linear, layer_norms

# All 3200 geometries take about 20 s; a default run checks every tenth.
COUNT, SLICE = 3200, 10
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

MODES = ("zeros", "circular", "reflect", "replicate")


def dense(module, channels, size):
    """The matrix of a linear module, from one image per entry; its constant is subtracted."""
    entries = channels * math.prod(size)
    units = torch.eye(entries, dtype=torch.float64).reshape(entries, channels, *size)
    zero = module(torch.zeros(1, channels, *size, dtype=torch.float64))
    return (module(units) - zero).flatten(1).T.detach()


def norm_of(matrix):
    return float(torch.linalg.svdvals(matrix)[0]) if matrix.abs().max() > 0 else 0.0


def convolution(seed):
    """A random convolution and a size that it can take; None where torch refuses it."""
    draw = random.Random(seed)
    axes = draw.choice((1, 2, 2))
    groups = draw.choice((1, 1, 2, 3))
    ins, outs = groups * draw.choice((1, 2)), groups * draw.choice((1, 2))
    size = [draw.randint(1, 7) for _ in range(axes)]
    kernel = [draw.randint(1, 4) for _ in range(axes)]
    stride = [draw.choice((1, 1, 2, 3, 4)) for _ in range(axes)]
    dilation = [draw.choice((1, 1, 2)) for _ in range(axes)]
    mode = draw.choice(MODES)
    padding = [draw.randint(0, 4) for _ in range(axes)]
    if draw.random() < 0.15 and all(s == 1 for s in stride):
        padding = draw.choice(("same", "valid"))
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    torch.manual_seed(seed)
    module = kind(
        ins, outs, kernel, stride, padding, dilation, groups, True, mode, dtype=torch.float64
    )
    try:
        with torch.no_grad():
            module(torch.zeros(1, ins, *size, dtype=torch.float64))
    except (RuntimeError, ValueError):
        return None
    return module, ins, tuple(size)


def each_output_alike(module, size):
    """Whether circular padding takes every output of its classes equally often: then exact."""
    if module.padding_mode != "circular":
        return False
    matrix = dense(module, module.in_channels, size)
    # an output of a channel is a shift of the others; count how often each distinct row occurs
    rows, counts = torch.unique(matrix.round(decimals=9), dim=0, return_counts=True)
    per_channel = math.prod(
        n // math.gcd(n, s) for n, s in zip(size, per(module.stride), strict=True)
    )
    return len(rows) == per_channel * module.out_channels and counts.unique().numel() == 1


def per(value):
    return value if isinstance(value, tuple) else (value,)


def check_convolution(seed):
    made = convolution(seed)
    if made is None:
        return None
    module, channels, size = made
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    pair = linear_stage("conv", module, module, x)
    with torch.no_grad():
        torch.testing.assert_close(apply_linear(pair, pair.weight, pair.bias, x), module(x))
        true = norm_of(dense(module, channels, size))
    bound = layer_norms(pair).dense
    assert bound >= true * (1 - 1e-12), (module, size, bound, true)
    if each_output_alike(module, size):
        assert bound == pytest.approx(true, rel=1e-9), (module, size, bound, true)
        return "exact"
    cheap = math.sqrt(math.prod(per(module.kernel_size))) * float(pair.weight.norm())
    _, factor = copies(pair.geometry, pair.weight.shape[2:])
    assert bound <= factor * cheap * (1 + 1e-12)
    return module.padding_mode


def pooling(seed):
    """A random pooling layer, and a size that it can take."""
    draw = random.Random(seed)
    axes = draw.choice((1, 2))
    size = tuple(draw.randint(1, 8) for _ in range(axes))
    kind = draw.choice(("max", "average", "average", "adaptive"))
    if kind == "adaptive":
        layer = nn.AdaptiveAvgPool1d if axes == 1 else nn.AdaptiveAvgPool2d
        wanted = tuple(draw.randint(1, n + 2) for n in size)
        if axes == 2 and draw.random() < 0.2:
            wanted = (None, wanted[1])
        return kind, layer(wanted if axes == 2 else wanted[0]), size
    kernel = tuple(draw.randint(1, n) for n in size)
    stride = tuple(draw.randint(1, 4) for _ in size)
    pad = tuple(draw.randint(0, k // 2) for k in kernel)
    ceil = draw.random() < 0.5
    if kind == "max":
        layer = nn.MaxPool1d if axes == 1 else nn.MaxPool2d
        dilation = tuple(draw.choice((1, 2)) for _ in size)
        return kind, layer(kernel, stride, pad, dilation, ceil_mode=ceil), size
    included = draw.random() < 0.5
    if axes == 1:
        return kind, nn.AvgPool1d(kernel, stride, pad, ceil, included), size
    divisor = draw.choice((None, None, 1, 3, 7))
    return kind, nn.AvgPool2d(kernel, stride, pad, ceil, included, divisor), size


def check_pooling(seed):
    kind, module, size = pooling(seed)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    try:
        expected = module(x)
    except RuntimeError:  # a window larger than the image
        return None
    stage = module_stage("pool", module, x)
    torch.testing.assert_close(stage.function(x), expected)
    if kind != "max":
        true = norm_of(dense(module, 2, size))
        assert stage.gain == pytest.approx(true, rel=1e-9), (module, size)
        return kind
    # entries that lead all their windows: moving one moves as many outputs
    entries = math.prod(size)
    units = torch.eye(entries, dtype=torch.float64).reshape(entries, 1, *size)
    moved = (module(101 * units) - module(100 * units)).flatten(1).norm(dim=1).max()
    assert stage.gain == pytest.approx(float(moved), rel=1e-12), (module, size)
    near = x + 1e-3 * torch.randn(x.shape, dtype=torch.float64)
    step = (module(near) - module(x)).norm() / (near - x).norm()
    assert float(step) <= stage.gain
    return kind


def check_norm(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels, axes = draw.randint(1, 4), draw.choice((0, 1, 2))
    size = tuple(draw.randint(1, 5) for _ in range(axes))
    kind = nn.BatchNorm2d if axes == 2 else nn.BatchNorm1d
    module = kind(channels, affine=draw.random() < 0.7, dtype=torch.float64).eval()
    module.running_mean.normal_()
    module.running_var.uniform_(0.01, 2)
    if module.affine:
        module.weight.data.normal_()
        module.bias.data.normal_()
    before, source = None, nn.Identity()
    if draw.random() < 0.7:
        if axes == 0:
            source = nn.Linear(3, channels, dtype=torch.float64)
        else:
            conv = nn.Conv1d if axes == 1 else nn.Conv2d
            source = conv(3, channels, 3, padding=1, dtype=torch.float64)
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        before = linear_stage("before", source, source, x)
    else:
        x = torch.randn(2, channels, *size, dtype=torch.float64)
    whole = nn.Sequential(source, module)
    pair = fold_batch_norm("norm", module, module, source(x), before)
    with torch.no_grad():
        torch.testing.assert_close(apply_linear(pair, pair.weight, pair.bias, x), whole(x))
        true = norm_of(dense(whole, x.shape[1], size))
    bound = layer_norms(pair).dense
    assert bound >= true * (1 - 1e-12)
    if before is None or axes == 0:
        assert bound == pytest.approx(true, rel=1e-9)
    return "norm"


CHECKS = {"convolution": check_convolution, "pooling": check_pooling, "norm": check_norm}
SHARES = {"convolution": 2200, "pooling": 800, "norm": 200}
assert sum(SHARES.values()) == COUNT


def run_all(step):
    seen = {}
    for name, count in SHARES.items():
        for seed in range(0, count, step):
            kind = CHECKS[name](seed)
            seen[kind] = seen.get(kind, 0) + 1
    return seen


def test_a_slice_of_the_geometries():
    seen = run_all(SLICE)
    assert set(seen) >= {*MODES, "exact", "max", "average", "adaptive", "norm"}
    assert seen.get(None, 0) < 120  # refused by torch itself


@pytest.mark.slow
def test_all_geometries():
    """3200 geometries in 20 s, too long for every run: torch takes more than 2000 of them."""
    seen = run_all(1)
    assert sum(count for kind, count in seen.items() if kind is not None) >= 2000
    assert min(seen[kind] for kind in (*MODES, "exact", "max", "average", "adaptive")) >= 40


def test_pooling_of_long_axes_is_bounded_without_its_matrix(monkeypatch):
    """By the largest sums of its rows and columns: never below the norm, and as stated."""
    monkeypatch.setattr(rules_of_pooling, "LARGEST", 0)
    seen = set()
    for seed in range(0, 800, 5):
        kind, module, size = pooling(seed)
        x = torch.randn(2, 1, *size, dtype=torch.float64)
        try:
            module(x)
        except RuntimeError:  # a window larger than the image
            continue
        if kind != "max":
            true, bound = norm_of(dense(module, 1, size)), module_stage("pool", module, x).gain
            assert bound >= true * (1 - 1e-12), (module, size)
            seen.add(kind)
    assert seen == {"average", "adaptive"}
    x = torch.randn(1, 1, 6, dtype=torch.float64)
    for module, gain in (
        (nn.AdaptiveAvgPool1d(6), 1.0),
        (nn.AdaptiveAvgPool1d(1), 6**-0.5),
        (nn.AdaptiveAvgPool1d(4), 2**0.5),
        (nn.AdaptiveAvgPool1d(18), 2.0),
        (nn.AvgPool1d(1, 1), 1.0),
        (nn.AvgPool1d(5, 2), 3**0.5),
    ):
        assert module_stage("pool", module, x).gain == pytest.approx(gain)
    sums = nn.AvgPool2d((2, 1), (1, 2), divisor_override=3)
    assert module_stage("pool", sums, x.reshape(1, 1, 3, 2)).gain == pytest.approx(
        (2 * 2) ** 0.5 / 3
    )


def test_what_the_audit_found():
    """Circular padding beyond "same", its strides, and divisors: each bound was below its norm."""
    wide = nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular", bias=False).double()
    wide.weight.data.zero_()
    wide.weight.data[0, 0, 1, 1] = 1
    pair = linear_stage("conv", wide, wide, torch.zeros(1, 1, 4, 4))
    assert norm_of(dense(wide, 1, (4, 4))) == pytest.approx(2)  # each pixel at most 2 · 2 times
    assert conv_norm(pair.weight, pair.geometry).value == pytest.approx(2)
    sums = nn.AvgPool2d(2, divisor_override=1)
    assert module_stage("pool", sums, torch.zeros(1, 1, 8, 8)).gain == pytest.approx(2)


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(2, return_indices=True),
        nn.Softplus(threshold=1.0),  # jumps by 0.31 at 1
        nn.Softplus(beta=2.0),
        nn.GELU(approximate="tanh"),
        nn.LeakyReLU(1.5),
        nn.LeakyReLU(-0.5),
        nn.ELU(2.0),
        nn.Hardtanh(-2, 2),
        nn.ReLU6(),
        nn.Flatten(0),
        nn.Flatten(2),
        nn.LPPool2d(2, 2),
        nn.AdaptiveMaxPool2d(1),
        nn.Softmax(dim=1),
        nn.AlphaDropout(),
        nn.PReLU(),
        nn.GLU(),
        nn.PixelShuffle(2),
    ],
    ids=repr,
)
def test_settings_and_modules_without_a_rule_are_refused(module):
    with pytest.raises(Unsupported, match=r"'m' .* has no rule"):
        module_stage("m", module.eval(), torch.zeros(1, 4, 8, 8))


def test_a_subclass_with_its_own_forward_has_no_rule():
    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.ReLU):
        pass

    patched = nn.ReLU()
    patched.forward = lambda x: 2 * torch.relu(x)
    at = torch.zeros(1, 4)
    for module in (Doubled(), patched):
        with pytest.raises(Unsupported, match="has no rule"):
            module_stage("m", module, at)
    assert module_stage("m", Renamed(), at).activation.name == "relu"


def test_a_layer_applied_to_other_axes_is_refused():
    for module, x in ((nn.Conv2d(3, 3, 1), (3, 4, 4)), (nn.Conv1d(3, 3, 1), (3, 4)),
                      (nn.Linear(4, 4), (2, 3, 4))):  # fmt: skip
        with pytest.raises(Unsupported, match=r"'m' .* is applied to values of"):
            linear_stage("m", module, module, torch.zeros(x))
