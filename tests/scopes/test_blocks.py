"""Blocks as scopes: found, named, equal to the definition, and of bounded memory."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.allocation import Global
from prunus.calibration.select import prunable
from prunus.compensation import LeastSquares, NoCompensation
from prunus.granularity import Edge, EdgePerRow
from prunus.recipe import Recipe
from prunus.scores import RemovalError
from reference import sequential as reference
from scope_nets import (
    Ahead,
    Aliased,
    Block,
    Branches,
    Chain,
    Elsewhere,
    Handed,
    InPlace,
    Laid,
    Remembering,
    Skips,
    Transformer,
)  # fmt: skip


def made(build, shape: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, list[torch.Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().double().eval()
        return model, list(torch.randn(24, *shape, dtype=torch.float64).split(9))


def recipe(inputs: str = "pruned", **parts) -> Recipe:
    parts = {"granularity": EdgePerRow(), "compensation": LeastSquares(), **parts}
    return Recipe(score=RemovalError(), inputs=inputs, **parts)


INNER = ("query", "key", "value", "out", "up", "gate", "down")


def close(one: nn.Module, two: nn.Module) -> None:
    for key, value in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("build", [Transformer, Skips])
@pytest.mark.parametrize("blocks", ["auto", "blocks.*"])
def test_blocks_equal_the_definition(build, blocks):
    model, batches = made(build, (3, 5))
    pruned = prunus.prune(model, recipe(), 0.5, data=batches, blocks=blocks)
    scopes = [
        ("embed",),
        *(tuple(f"blocks.{i}.{name}" for name in INNER) for i in range(3)),
        ("hidden", "head"),
    ]
    kept = {name: torch.tensor(counts) for name, counts in pruned.plan.kept.items()}
    work, results = reference.prune_edges(model, recipe(), kept, scopes, batches)
    assert {n for scope in scopes for n in scope} == set(pruned.layers)
    for name, result in results.items():
        assert torch.equal(pruned.layers[name].mask, result.mask), name
        assert pruned.layers[name].error == pytest.approx(result.error, rel=1e-6, abs=1e-12)
    close(pruned.model, work)
    assert not any("from its start" in note for note in pruned.notes)


@pytest.mark.parametrize("parts", [{}, {"granularity": Edge(), "allocation": Global()}])
def test_blocks_of_dense_inputs_give_what_the_whole_model_gives(parts):
    model, batches = made(Transformer, (3, 5))
    method = recipe("dense", **parts)
    whole = prunus.prune(model, method, 0.4, data=batches)
    blocks = prunus.prune(model, method, 0.4, data=batches, blocks="auto")
    for key, mask in whole.masks.items():
        assert torch.equal(mask, blocks.masks[key])
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(blocks.model.state_dict()[key], value, rtol=1e-9, atol=1e-12)
    assert whole.data_fingerprint == blocks.data_fingerprint


HARD = [InPlace, Handed, Elsewhere, Ahead, Aliased, Branches, Transformer, Skips]


@pytest.mark.parametrize("build", HARD)
def test_networks_that_are_hard_to_keep_equal_the_definition(build):
    model, batches = made(build, (3, 5) if issubclass(build, Transformer) else (5,))
    # Weights that are read elsewhere too are not refitted.
    loose = build in (Elsewhere, Ahead)
    method = recipe(compensation=NoCompensation()) if loose else recipe()
    pruned = prunus.prune(model, method, 0.5, data=[b.clone() for b in batches])
    assert len(pruned.layers) == len(prunable(model)[0])
    kept = {name: torch.tensor(counts) for name, counts in pruned.plan.kept.items()}
    scopes = [(name,) for name in pruned.layers]
    work, results = reference.prune_edges(model, method, kept, scopes, batches)
    for name, result in results.items():
        assert torch.equal(pruned.layers[name].mask, result.mask), name
        assert pruned.layers[name].error == pytest.approx(result.error, rel=1e-6, abs=1e-12)
    close(pruned.model, work)
    said = [note for note in pruned.notes if "from its start" in note]
    assert bool(said) == (build is Handed)
    assert not any(key in vars(m) for m in model.modules() for key in ("_call_impl", "forward"))
    assert not any(
        key in vars(m) for m in pruned.model.modules() for key in ("_call_impl", "forward")
    )


@pytest.mark.parametrize("layers", [4, 16])
def test_each_layer_runs_a_fixed_number_of_times_whatever_the_depth(layers):
    counts: Counter[str] = Counter()
    model, batches = made(lambda: Chain(layers), (12,))
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, a, o, name=name: counts.update([name]))
    prunus.prune(model, recipe("dense"), 0.5, data=batches)
    dense = max(counts.values())
    counts.clear()
    prunus.prune(model, recipe(), 0.5, data=batches)
    # an example for sizes, who runs, the dense pass, the pruned one; a rehearsal on two samples
    assert max(counts.values()) <= dense + 2 * len(batches) + 8
    counts.clear()
    blocks, data = made(lambda: Transformer(layers), (3, 5))
    for name, module in blocks.named_modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda m, a, o, name=name: counts.update([name]))
    prunus.prune(blocks, recipe(), 0.5, data=data, blocks="auto")
    assert max(counts.values()) <= 3 * len(data) + 10


def test_a_cache_that_blocks_fill_is_left_out():
    model, batches = made(Remembering, (3, 5))
    plain, _ = made(Transformer, (3, 5))
    counts: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda m, a, o, name=name: counts.update([name]))
    one, two = (prunus.prune(m, recipe(), 0.5, data=batches, blocks="auto") for m in (model, plain))
    assert max(counts.values()) <= 3 * len(batches) + 10
    assert model.config.use_cache
    assert one.model.config.use_cache
    assert all(torch.equal(one.masks[k], two.masks[k]) for k in two.masks)
    assert not any("from its start" in note for note in one.notes)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_recipes_that_read_weights_alone_and_scripted_modules_go_by_scopes_too():
    model, batches = made(Transformer, (3, 5))
    whole = prunus.prune(model, "magnitude-global", 0.4, data=batches)
    blocks = prunus.prune(
        model, replace(whole.recipe, inputs="pruned"), 0.4, data=batches, blocks="auto"
    )
    assert all(torch.equal(whole.masks[k], blocks.masks[k]) for k in whole.masks)
    net = nn.Sequential(
        nn.Linear(5, 6), torch.jit.script(nn.Sequential(nn.ReLU(), nn.Tanh())), nn.Linear(6, 4)
    )
    plain = nn.Sequential(net[0], nn.Sequential(nn.ReLU(), nn.Tanh()), net[2])
    one, two = (
        prunus.prune(m, recipe(), 0.5, data=[torch.ones(3, 5), torch.eye(5)]) for m in (net, plain)
    )
    for name in one.layers:
        torch.testing.assert_close(one.layers[name].weight, two.layers[name].weight)


def test_files_keep_how_tensors_lie(tmp_path):
    model, batches = made(Laid, (3, 5))
    memory = prunus.prune(model, recipe(), 0.5, data=batches, blocks="first")
    files = prunus.prune(model, recipe(), 0.5, data=batches, blocks="first", keep=tmp_path)
    assert all(torch.equal(memory.masks[k], files.masks[k]) for k in memory.masks)


def test_inputs_are_kept_in_files_that_go(tmp_path):
    model, batches = made(Transformer, (3, 5))
    memory = prunus.prune(model, recipe(), 0.5, data=batches, blocks="auto")
    files = prunus.prune(model, recipe(), 0.5, data=batches, blocks="auto", keep=tmp_path)
    assert all(torch.equal(memory.masks[k], files.masks[k]) for k in memory.masks)
    assert not list(tmp_path.iterdir())
    seen = []

    def score(layer):
        seen.append(len(list(tmp_path.rglob("*.safetensors"))))
        if layer.name == "blocks.1.out":
            raise RuntimeError("stop")
        return layer.weight.abs()

    with pytest.raises(RuntimeError, match="stop"):
        prunus.prune(model, Recipe(score=score, inputs="pruned"), 0.5, data=batches, keep=tmp_path)
    assert max(seen) > 0
    assert not list(tmp_path.iterdir())
    assert not any(m._forward_pre_hooks or "_call_impl" in vars(m) for m in model.modules())


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ("nothing.*", ValueError, r"^Unknown module or glob of `blocks` 'nothing\.\*'"),
        ("norm", ValueError, r"^`blocks` 'norm' matches norm, none of which holds a layer"),
        (3, TypeError, r"^`blocks` must be None, 'auto' or a glob of module names, got int"),
    ],
)
def test_bad_blocks_are_named(blocks, error, message):
    model, batches = made(Transformer, (3, 5))
    with pytest.raises(error, match=message):
        prunus.prune(model, recipe(), 0.5, data=batches, blocks=blocks)


def test_blocks_need_data_and_a_network_that_has_some():
    model, batches = made(Branches, (5,))
    with pytest.raises(ValueError, match=r"^blocks='auto' found no nn\.ModuleList"):
        prunus.prune(model, recipe(), 0.5, data=batches, blocks="auto")
    chain = torch.nn.Sequential(*(torch.nn.Linear(n, n + 1).double() for n in (5, 6, 7)))
    with pytest.raises(ValueError, match=r"map a stream to itself"):  # none of its members does
        prunus.prune(chain, recipe(), 0.5, data=batches, blocks="auto")
    with pytest.raises(ValueError, match=r"^`blocks` says in which order data are read"):
        prunus.prune(model, "magnitude", 0.5, blocks="auto")
    with pytest.raises(ValueError, match=r"^`blocks` collects statistics of one block at a time"):
        prunus.prune(model, "magnitude", 0.5, data=prunus.calibrate(model, batches), blocks="auto")
