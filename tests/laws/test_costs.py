"""What a pruning promises is what comes out: parameters, multiply-adds, bytes, budgets."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cut_models
import models
import prunus
from prunus import Budget, Recipe
from prunus.allocation import Global
from prunus.granularity import Node
from prunus.modes import evaluating
from prunus.weights import weight_at

EVERY = {
    **{name: models.build for name in models.ZOO if name not in ("cnn-tanh", "resnet20-conv")},
    **{name: cut_models.build for name in cut_models.NETS if not name.startswith("pools")},
    **{f"pools-{mode}-2": cut_models.build for mode in ("zeros", "circular")},
}


def build(name):
    model, x = EVERY[name](name)
    return model.double(), x


def multiplied(model, x):
    """Multiply-adds of one sample, by torch's own counter."""
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    products = counter.get_total_flops() / 2
    attention = sum(  # torch has no formula for the kernel that processors use
        2 * 2 * x.shape[1] ** 2 * m.embed_dim / 2
        for m in model.modules()
        if isinstance(m, nn.MultiheadAttention)
    )
    return round(products / len(x) + attention)


def size(folder, part):
    return next(folder.glob(f"{part}-*.safetensors")).stat().st_size


def check_nodes(pruned, x, folder):
    small = pruned.compact(x)
    cost = pruned.cost_after
    assert cost.parameters == sum(p.numel() for p in small.parameters())
    assert cost.macs == multiplied(small, x)
    pruned.save(folder, example=x)
    assert cost.bytes == size(folder, "compact")
    dense = pruned.dense
    assert pruned.cost_before.parameters == sum(p.numel() for p in dense.parameters())
    assert pruned.cost_before.macs == multiplied(dense, x)
    assert cost.model_density == cost.parameters / pruned.cost_before.parameters
    names = list(pruned.layers)
    entries = [
        sum(net.get_submodule(name).weight.numel() for name in names) for net in (small, dense)
    ]
    assert cost.density == entries[0] / entries[1]
    return small


@pytest.mark.parametrize("name", EVERY)
def test_nodes_at_a_density(name, tmp_path):
    model, x = build(name)
    pruned = prunus.prune(model, "random-node", 0.5, data=x)
    check_nodes(pruned, x, tmp_path)
    assert pruned.cost_after.density <= 0.5 or not pruned.plan.feasible
    assert pruned.plan.value == pruned.cost_after.density  # the plan has foreseen it


BUDGETED = [
    "cnn-relu",
    "mixed",
    "lstm",
    "attention",
    "gated",
    "rms-norm",
    "chunk",
    "slice",
    "padded",
]


@pytest.mark.parametrize("target", ["parameters", "macs", "bytes"])
@pytest.mark.parametrize("name", BUDGETED)
def test_nodes_within_a_budget(name, target, tmp_path):
    model, x = build(name)
    recipe = Recipe(granularity=Node(), allocation=Global())
    dense = prunus.prune(model, recipe, 1.0, data=x).cost_before
    share = {"gated": 0.9, "attention": 0.9, "lstm": 0.97}.get(name, 0.7)
    budget = int(share * getattr(dense, target))
    pruned = prunus.prune(model, recipe, Budget(**{target: budget}), data=x)
    check_nodes(pruned, x, tmp_path)
    assert pruned.plan.feasible
    assert pruned.plan.value == getattr(pruned.cost_after, target) <= budget


@pytest.mark.parametrize("recipe", ["magnitude", "wanda+ls"])
@pytest.mark.parametrize("name", ["cnn-relu", "mixed", "lstm", "attention", "gated", "tied"])
def test_edges(name, recipe, tmp_path):
    model, x = build(name)
    positions = {}
    handles = [
        module.register_forward_hook(
            lambda m, i, o, key=key: positions.__setitem__(
                key, positions.get(key, 0) + o.numel() // len(m.weight) // len(x)
            )
        )
        for key, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with evaluating(model), torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    pruned = prunus.prune(model, recipe, 0.3, data=x)
    cost = pruned.cost_after
    matrices = {key: weight_at(pruned.model, key) for key in pruned.layers}
    zeros = {key: int((weight.matrix() == 0).sum()) for key, weight in matrices.items()}
    for key, weight in matrices.items():
        if not weight.source.alone:  # attention and recurrent layers: once in every step
            positions[key] = x.shape[1]
    assert cost.parameters == sum(p.numel() for p in model.parameters()) - sum(zeros.values())
    assert cost.macs == multiplied(model, x) - sum(positions[key] * n for key, n in zeros.items())
    total = sum(weight.matrix().numel() for weight in matrices.values())
    assert cost.density == (total - sum(zeros.values())) / total
    pruned.save(tmp_path)
    assert cost.bytes == size(tmp_path, "weights")


@pytest.mark.parametrize("target", ["parameters", "macs", "bytes"])
def test_edges_within_a_budget(target, tmp_path):
    model, x = build("cnn-relu")
    dense = prunus.prune(model, "magnitude", 1.0, data=x).cost_before
    budget = int(0.6 * getattr(dense, target))
    pruned = prunus.prune(model, "magnitude-global", Budget(**{target: budget}), data=x)
    assert pruned.plan.value == getattr(pruned.cost_after, target) <= budget
    assert getattr(pruned.cost_after, target) > 0.95 * budget  # nearly all of it was spent
    pruned.save(tmp_path)
    assert pruned.cost_after.bytes == size(tmp_path, "weights")


def sparse(density):
    """A checkpoint that is sparse already."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = models.MLP((16, 32, 24, 4)), torch.randn(64, 16)
    return prunus.prune(model, "magnitude", density).model, x


@pytest.mark.parametrize(
    "recipe", ["magnitude", "wanda", "random-edge", "magnitude-row+ls", "dpp-edge", "sparsegpt"]
)
@pytest.mark.parametrize("density", [0.1, 0.2, 0.5])
def test_zeros_that_were_there_count_and_go_first(recipe, density):
    model, x = sparse(0.3)
    before = {n: p != 0 for n, p in model.named_parameters()}
    pruned = prunus.prune(model, recipe, density, data=x)
    left = sum(int((p != 0).sum()) for p in pruned.model.parameters())
    assert pruned.cost_after.parameters == left
    assert pruned.cost_before.parameters == sum(int(v.sum()) for v in before.values())
    (said,) = (note for note in pruned.notes if "were zero before" in note)
    zeros = sum(int((~before[name]).sum()) for name in pruned.masks)
    assert said.startswith(f"{zeros} weights of the pruned layers")
    filled = sum(int((pruned.model.get_parameter(n) != 0).sum()) for n in pruned.masks)
    idle = sum(int(mask.sum()) for mask in pruned.masks.values()) - filled
    asked = f"; the density asked for leaves {idle} of them unmasked" if idle else "first"
    assert said.endswith(asked)
    for name, mask in pruned.masks.items():
        was = before[name]
        assert int(mask.sum()) == sum(pruned.layers[name.removesuffix(".weight")].mask.flatten())
        if pruned.recipe.granularity.pools == "row":
            rows = zip(mask, was, strict=True)  # one pool in each row
        else:
            rows = [(mask, was)]
        for kept, filled in rows:
            assert not (kept & ~filled).any() or kept[filled].all() or not filled.any()


def test_a_budget_on_a_sparse_checkpoint():
    model, x = sparse(0.3)
    budget = 400
    pruned = prunus.prune(model, "magnitude-global", Budget(parameters=budget), data=x)
    assert pruned.plan.value == pruned.cost_after.parameters == budget
    loose = prunus.prune(model, "magnitude-global", Budget(parameters=10**6), data=x)
    assert loose.cost_after.parameters == loose.cost_before.parameters < 600


def test_a_layer_of_zeros_alone_keeps_its_scores():
    """It starts at zero, as some last layers do: random masks stay random."""
    model = models.MLP()
    nn.init.zeros_(model.layers[2].weight)
    mask = prunus.prune(model, "random-edge", 0.3).masks["layers.2.weight"]
    assert mask[:, -4:].any()  # not the lowest indices of each row
    assert not torch.equal(mask[0], mask[1])
    assert int(mask.sum()) == math.floor(0.3 * mask.numel() + 0.5)


def test_nodes_that_are_dead_already_go_first():
    model, x = models.build("mlp-relu")
    first = prunus.prune(model, "random-node", 0.5, data=x)
    again = prunus.prune(first.model, "random-node", 0.25, data=x, seed=7)
    for name, mask in again.masks.items():
        assert not (mask & ~first.masks[name]).any()
    assert again.cost_after.parameters == sum(p.numel() for p in again.compact(x).parameters())
    assert again.plan.value == again.cost_after.density
    same = prunus.prune(first.model, "random-node", 0.9, data=x, seed=7)
    assert same.cost_after.parameters == first.cost_after.parameters


def test_a_plan_without_a_class_is_priced_as_compact_leaves_it():
    model, x = models.build("mlp-relu")
    plan = prunus.Plan(kept={"layers.0": 0, "layers.2": 5})
    pruned = prunus.prune(model, "importance-node", plan, data=x)
    assert pruned.cost_after.parameters == sum(p.numel() for p in pruned.compact(x).parameters())


def test_constants_that_fold_are_counted():
    """A bias that compaction adds is a parameter of the compact network."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5, bias=False), nn.Linear(5, 2)

        def forward(self, x):
            return self.c(torch.sigmoid(self.b(torch.sigmoid(self.a(x)))))

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(8, 4, dtype=torch.float64)
    with torch.no_grad():
        model.a.weight[2] = 0
    pruned = prunus.prune(model, "importance-node", 0.9, data=x)
    small = pruned.compact(x)
    assert small.b.bias is not None
    assert pruned.cost_after.parameters == sum(p.numel() for p in small.parameters())


def test_whole_groups_are_named_though_their_layers_lost_columns():
    model, x = build("padded")
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    assert "blocks.1.conv2" in pruned.layers  # columns were cut
    why = pruned.not_pruned["blocks.1.conv2"]
    assert why.startswith("part of its channels stay: the model's code writes the number of its")
    assert "fc" not in pruned.not_pruned


def test_a_compact_network_that_cannot_be_made_does_not_cost_the_work(monkeypatch):
    from prunus.engine import settled
    from prunus.surgery import CompactionError

    def fail(*args, **options):
        raise CompactionError("The smaller network fails in layer `x`.")

    model, x = build("mlp-relu")
    expected = prunus.prune(model, "importance-node", 0.5, data=x)
    monkeypatch.setattr(settled, "compact_groups", fail)
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    assert pruned.cost_after == expected.cost_after
    assert "the costs are those of the plan" in pruned.notes[-1]
    assert "layer `x`" in pruned.notes[-1]


def test_latency_is_that_of_the_network_that_comes_out(monkeypatch):
    """Also where channels under a norm are cut: which network is timed, not how fast it is."""
    from prunus.engine import latency

    timed = []

    def clock(models, call, **options):
        timed.append(models[1])
        found = [float(sum(p.numel() for p in model.parameters())) for model in models]
        return [type("Time", (), {"median": value})() for value in found]

    monkeypatch.setattr(latency, "measure_latency", clock)
    model, x = build("layer-norm")
    recipe = Recipe(granularity=Node(inexact=True))
    pruned = prunus.prune(model, recipe, Budget(latency=0.6, example=x), data=x)
    small = pruned.compact(x)
    share = sum(p.numel() for p in small.parameters()) / pruned.cost_before.parameters
    assert pruned.plan.value == share <= 0.6
    assert small.norm.weight.shape != model.norm.weight.shape
    assert small.norm.weight.shape in {net.norm.weight.shape for net in timed}


def test_tensors_that_only_the_state_knows_are_stored_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "version"] = torch.ones(100)

    cost = prunus.prune(Net(), "magnitude", 1.0).cost_before
    assert cost.bytes > 400 + 15 * 4
    assert cost.parameters == 15


def test_scores_of_removed_heads_are_not_paid_for():
    """What attention multiplies between tokens goes with its heads, in the plan too."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 16) for _ in range(3))
            self.o = nn.Linear(16, 5)

        def forward(self, x):
            q, k, v = (
                f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            scores = (q @ k.mT / 2).softmax(-1)
            return self.o((scores @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(4, 30, 6, dtype=torch.float64)
    for share in (0.9, 0.6, 0.3):
        dense = multiplied(model, x)
        budget = Budget(macs=int(share * dense))
        pruned = prunus.prune(model, "importance-node", budget, data=x)
        assert pruned.plan.value == pruned.cost_after.macs <= budget.macs
        assert pruned.cost_after.macs == multiplied(pruned.compact(x), x)
    assert pruned.compact(x).q.out_features == 4  # one head of four


def test_halves_of_a_chunk_keep_equal_numbers():
    model, x = build("chunk")
    plan = prunus.Plan(kept={"a": 3, "u": 8})
    small = prunus.prune(model, "importance-node", plan, data=x).compact(x)
    assert small.a.out_channels == 6
    assert small.u.in_channels == small.v.in_channels == 3
