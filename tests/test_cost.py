"""Costs of plans against counting real, smaller networks; measured latency."""

import math

import pytest
import torch
from safetensors.torch import save
from scipy.stats import binom
from torch import nn

from models import MLP, build
from prunus.cost import anatomy, edge_cost, measure_latency, node_cost
from prunus.cost.files import TYPES, packed_entries
from prunus.cost.latency import Latency, latency_of, speedup
from prunus.coupling import couple


def counted(model, x, before=""):
    """Parameters, multiply-adds of one sample and the size of the file of all tensors.

    `before` stands before each tensor's name in the file: "dense|" where zeros may be left out.
    """
    macs = 0

    def hook(module, args, output):
        nonlocal macs
        per_output = module.weight[0].numel()
        macs += output.numel() * per_output // len(x)

    handles = [
        m.register_forward_hook(hook)
        for m in model.modules()
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    tensors = {before + k: v.clone().contiguous() for k, v in model.state_dict().items()}
    return sum(p.numel() for p in model.parameters()), macs, len(save(tensors))


def facts(cost):
    return cost.parameters, cost.macs, cost.bytes


ALL = [
    "mlp-norm", "mlp-no-bias", "cnn-relu", "cnn-pool", "mixed", "conv1d", "conv3d", "called-twice",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_dense_network(name):
    model, x = build(name)
    sizes = anatomy(model, lambda: len(model(x)))
    cost = edge_cost(sizes, {})
    assert facts(cost) == counted(model, x, "dense|")
    assert cost.model_density == 1.0
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_tensors_of_eight_bit_floats_are_counted_and_types_without_a_name_refused():
    model = nn.Linear(3, 2)
    model.register_buffer("scale", torch.tensor([0.5, 0.0, 2.0]).to(torch.float8_e4m3fn))
    assert edge_cost(anatomy(model), {}).bytes > 0
    model.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="'phase' has type complex128, which safetensors cannot"):
        edge_cost(anatomy(model), {})


@pytest.mark.parametrize(("shape", "box"), [((40, 30), (11, 30)), ((9, 50, 3), (5, 7, 2))])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_tensors_are_stored_in_the_form_that_takes_least(shape, box, kind):
    """Of all entries, of those beside zero, and of the slices with any: for every count of them."""

    def bytes_of(*parts):
        return sum(math.prod(axes) * TYPES[type_][1] for _, type_, axes in parts)

    numel = math.prod(shape)
    lines = ("lines|w", "uint8", [math.ceil(sum(shape) / 8)])
    for filled in range(math.prod(box) + 1):
        forms = [
            [("values|w", kind, [filled]), ("bits|w", "uint8", [math.ceil(numel / 8)])],
            [("block|w", kind, list(box)), lines],
        ]
        best = min(forms, key=lambda form: bytes_of(*form))
        dense = [("dense|w", kind, shape)]
        saves = bytes_of(*dense) - bytes_of(*best) > 96  # what one more line of a header takes
        assert packed_entries("w", kind, shape, filled, box) == (best if saves else dense)


def test_tied_weights_are_stored_once_and_multiplied_twice():
    model, x = build("tied")
    cost = edge_cost(anatomy(model, lambda: len(model(x))), {})
    assert facts(cost) == counted(model, x, "dense|")


def test_removed_weights():
    model, x = build("cnn-relu")
    sizes = anatomy(model, lambda: len(model(x)))
    parameters, macs, _ = counted(model, x)
    kept = {"conv1": 30, "fc1": 288}
    cost = edge_cost(sizes, kept)
    gone = {"conv1": 2 * 6 * 9 - 30, "fc1": 9 * 32 - 288}
    assert cost.parameters == parameters - sum(gone.values())
    assert cost.macs == macs - gone["conv1"] * 64  # 8 × 8 positions
    assert cost.density == (30 + 288) / (108 + 288)
    assert cost.model_density == cost.parameters / parameters
    # conv1: 30 doubles and 108 bits instead of 108 doubles; fc1 keeps all and is stored dense
    tensors = {f"dense|{k}": v.contiguous() for k, v in model.state_dict().items()}
    tensors["values|conv1.weight"] = tensors.pop("dense|conv1.weight").flatten()[:30].clone()
    tensors["bits|conv1.weight"] = torch.zeros(math.ceil(108 / 8), dtype=torch.uint8)
    assert cost.bytes == len(save(tensors))
    assert edge_cost(anatomy(model), kept).macs is None


@pytest.mark.parametrize("kept", [(16, 10), (5, 10), (16, 3), (7, 4), (1, 1)])
def test_a_smaller_mlp(kept):
    model, x = MLP(norm=True), torch.randn(4, 12)
    groups = couple(model.eval(), x).groups
    smaller = MLP((12, *kept, 5), norm=True).eval()
    counts = dict(zip((g.name for g in groups), kept, strict=True))
    cost = node_cost(anatomy(model, lambda: len(model(x))), groups, counts)
    assert facts(cost) == counted(smaller, x)
    weights = [
        sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Linear))
        for net in (smaller, model)
    ]
    assert cost.density == weights[0] / weights[1]


def test_every_group_keeps_a_class():
    model, x = MLP(), torch.randn(4, 12)
    groups, sizes = couple(model.eval(), x).groups, anatomy(model, lambda: len(model(x)))
    none, one = ({g.name: n for g in groups} for n in (0, 1))
    assert node_cost(sizes, groups, none) == node_cost(sizes, groups, one)


def test_a_smaller_cnn():
    model, x = build("cnn-relu")
    groups = couple(model, x).groups
    smaller, _ = build("cnn-relu")
    smaller.conv1, smaller.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
    smaller.conv2 = nn.Conv2d(4, 5, 3, padding=1, bias=False)
    smaller.norm2 = nn.BatchNorm2d(5)
    smaller.fc1, smaller.fc2 = nn.Linear(20, 7), nn.Linear(7, 4)
    counts = {"conv1": 4, "conv2": 5, "fc1": 7}
    assert {g.name for g in groups} == set(counts)
    cost = node_cost(anatomy(model, lambda: len(model(x))), groups, counts)
    assert facts(cost) == counted(smaller.double().eval(), x)


def test_the_interval_covers_the_median_with_its_level():
    for runs in range(15, 301):
        latency = latency_of([float(i) for i in range(runs)], 1, 1)
        assert latency.low <= latency.median <= latency.high
        # the true median lies between the order statistics low and high, counted from 0, exactly
        # if more than `low` and at most `high` of the runs fall below it
        low, high = int(latency.low), int(latency.high)
        assert binom.cdf(high, runs, 0.5) - binom.cdf(low, runs, 0.5) >= 0.95
        assert binom.cdf(high - 1, runs, 0.5) - binom.cdf(low + 1, runs, 0.5) < 0.95  # no wider


def test_measured_latency_orders_networks_and_restores_their_modes():
    fast, slow = nn.Sequential(nn.Dropout(), nn.Identity()), nn.Sequential(nn.Identity())
    slow.train()
    fast.eval()
    fast[0].train()

    def call(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        name = "slow" if len(model) == 1 else "fast"  # twins come
        calls.append(name)
        now[0] += 0.004 if name == "slow" else 0.0005

    calls, now = [], [0.0]
    first, second = measure_latency([fast, slow], call, batch=3, seconds=0.1, clock=lambda: now[0])
    assert (first.median, second.median) == pytest.approx((0.0005, 0.004))
    assert (first.batch, first.level, first.threads) == (3, 0.95, torch.get_num_threads())
    assert first.runs == second.runs == 25  # of the slower one in 0.1 s
    turns = (["fast", "slow", "slow", "fast"] * 13)[:50]
    assert calls == ["fast"] * 3 + ["slow"] * 3 + turns
    shorter, _ = measure_latency([fast, slow], call, batch=3, seconds=0.01, clock=lambda: now[0])
    longer, _ = measure_latency([fast, slow], call, batch=3, seconds=9, clock=lambda: now[0])
    assert (shorter.runs, longer.runs) == (15, 200)
    assert [m.training for m in fast.modules()] == [False, True, False]
    assert slow.training

    def fails(model):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        measure_latency([fast, slow], fails, batch=1)
    assert [m.training for m in fast.modules()] == [False, True, False]
    assert slow.training


def interval(median: float, low: float, high: float) -> Latency:
    return Latency(median=median, low=low, high=high, level=0.95, runs=15, threads=1, batch=1)


def test_a_speedup_is_the_ratio_with_the_widest_interval_that_both_allow():
    """Ends of the ratio are those of opposite ends; inside 1 there is no benefit."""
    before, after = interval(8.0, 6.0, 12.0), interval(4.0, 3.0, 5.0)
    found = speedup(before, after)
    assert (found.ratio, found.low, found.high) == pytest.approx((2.0, 6 / 5, 12 / 3))
    assert found.verdict == "faster"
    assert speedup(after, before).verdict == "slower"
    for low, high in [(3.0, 6.0), (3.0, 9.0)]:  # touching, overlapping: the medians say nothing
        found = speedup(before, interval(4.0, low, high))
        assert (found.ratio, found.verdict) == (2.0, "no benefit")


def test_one_slow_run_does_not_move_the_median():
    times = [1.0] * 8 + [2.0] * 6 + [1000.0]
    found = latency_of(times, 4, 1)
    assert (found.median, found.low, found.runs, found.batch) == (1.0, 1.0, 15, 4)
    assert found.high == 2.0
