"""Saving, loading, and what is said of a folder that is not whole."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

import models
import prunus
from prunus.cost import anatomy, file_bytes, speedup
from prunus.cost.files import packed_entries
from prunus.result.packing import packed_tensors, unpacked


def setup(name="magnitude", density=0.3, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = models.MLP((12, 16, 10, 5), **options), torch.randn(32, 12)
    return model, x, prunus.prune(model, name, density, data=x, evaluate=lambda m: {"loss": 1.0})


@pytest.mark.parametrize("name", ["magnitude", "wanda+ls", "dpp-node+ls"])
def test_save_and_load_round_trip(name, tmp_path):
    model, x, pruned = setup(name, norm=True)
    pruned.save(tmp_path / "net")
    assert {p.suffix for p in (tmp_path / "net").iterdir()} == {".json", ".safetensors"}
    for given in (model, lambda: models.MLP((12, 16, 10, 5), norm=True)):
        again = prunus.load(tmp_path / "net", given)
        for key, value in pruned.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[key])
        assert set(again.masks) == set(pruned.masks)
        assert all(torch.equal(again.masks[k], pruned.masks[k]) for k in pruned.masks)
        assert again.recipe == pruned.recipe
        assert (again.name, again.seed, again.metrics) == (name, 0, pruned.metrics)
        assert again.plan.kept == pruned.plan.kept
        assert again.cost_after == pruned.cost_after
        assert {k: r.error for k, r in again.layers.items()} == {
            k: r.error for k, r in pruned.layers.items()
        }
        for key, result in again.layers.items():
            assert torch.equal(result.mask, pruned.layers[key].mask)
        assert (again.dense is model) == isinstance(given, nn.Module)
    # A loaded network can be trained on with its zeros held.
    optim = torch.optim.SGD(again.model.parameters(), lr=0.1)
    with again.hold(optim):
        again.model(x).square().mean().backward()
        optim.step()
    assert not again.model.layers[0].weight[~again.masks["layers.0.weight"]].any()


@pytest.mark.parametrize(
    ("name", "density"), [("magnitude", 0.1), ("wanda+ls", 0.5), ("random-edge", 0.97)]
)
def test_bytes_are_what_is_written(name, density, tmp_path):
    """To the byte, header included."""
    model, x = models.MLP((30, 40, 20, 10), norm=True), torch.randn(16, 30)
    pruned = prunus.prune(model, name, density, data=x)
    pruned.save(tmp_path / "net")
    assert pruned.cost_after.bytes == size(tmp_path / "net", "weights")
    tensors = (tmp_path / "net").glob("*.safetensors")  # nothing else, whatever the data
    assert pruned.cost_after.bytes == sum(file.stat().st_size for file in tensors)
    again = prunus.load(tmp_path / "net", model)
    assert torch.equal(again.data_rows.hashes, pruned.data_rows.hashes)
    whole = prunus.prune(model, name, 1.0, data=x)
    whole.save(tmp_path / "whole")
    assert pruned.cost_before.bytes == size(tmp_path / "whole", "weights")


def size(folder, part):
    return next(folder.glob(f"{part}-*.safetensors")).stat().st_size


def test_bytes_of_a_compact_network(tmp_path):
    model, x = models.MLP((30, 40, 20, 10), norm=True), torch.randn(16, 30)
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    pruned.save(tmp_path / "net", example=x)
    assert pruned.cost_after.bytes == size(tmp_path / "net", "compact")
    # and the masked network, kept as blocks, takes little more: a bit for each row and column
    few = sum(-(-sum(p.shape) // 8) for p in model.parameters()) + 100 * len(model.state_dict())
    assert size(tmp_path / "net", "weights") < pruned.cost_after.bytes + few


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (700,), (30, 40), (9, 4, 3, 3), (0, 5), (64, 1)])
@pytest.mark.parametrize("left", ["all", "some", "rows", "none"])
def test_every_form_of_a_tensor_comes_back_and_its_size_is_known(left, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    value = (torch.randn(shape, generator=generator) * 9 + 10).to(dtype)
    if left == "some":
        value = value * (torch.rand(shape, generator=generator) < 0.2)
    elif left == "rows" and value.ndim > 0:
        value[::2] = 0
        value[..., -2:] = 0
    elif left == "none":
        value = torch.zeros_like(value)
    packed = packed_tensors("a.b", value)
    assert torch.equal(unpacked("a.b", dict(packed), tuple(shape), Path("w")), value)
    module = nn.Module()
    module.register_buffer("b", value)
    outer = nn.Module()
    outer.a = module
    sizes = anatomy(outer)
    box = sizes.boxes.get("a.b", shape)
    kind = str(dtype).removeprefix("torch.")
    entries = packed_entries("a.b", kind, shape, sizes.filled["a.b"], box)
    assert file_bytes(entries) == len(save(packed))


def test_the_size_of_a_file_counts_names_as_json_writes_them():
    named = {
        'a"b': torch.zeros(2),
        "ü\n": torch.zeros(3, 0),
        "": torch.zeros(()),
        "\u2028": torch.ones(1),
    }
    entries = [(name, "float32", tuple(t.shape)) for name, t in named.items()]
    assert file_bytes(entries) == len(save(named))
    assert file_bytes([]) == len(save({}))


def test_masks_come_back_whether_stored_or_not(tmp_path):
    """A mask is stored only where kept entries are zero; folders of format 1 store every one."""
    _, x, pruned = setup("magnitude", 0.5)
    with torch.no_grad():
        weight = pruned.model.layers[0].weight
        weight[pruned.masks["layers.0.weight"].nonzero()[0].tolist()[0]] = 0  # kept, and zero
    folder = pruned.save(tmp_path / "net")
    stored = load_file(next(folder.glob("weights-*")))
    assert [key for key in stored if key.startswith("mask|")] == ["mask|layers.0.weight"]
    again = prunus.load(folder, models.MLP((12, 16, 10, 5)))
    assert all(torch.equal(again.masks[k], pruned.masks[k]) for k in pruned.masks)


def test_compact_network_is_saved_and_loaded(tmp_path):
    model, x, pruned = setup("importance-node+ls", norm=True)
    pruned.save(tmp_path / "net", example=x)
    again = prunus.load(tmp_path / "net", models.MLP((12, 16, 10, 5), norm=True)).compact()
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), pruned.compact(x).eval()(x))
    assert sum(p.numel() for p in again.parameters()) == pruned.cost_after.parameters


@pytest.mark.parametrize("saved", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["magnitude", "importance-node"])
def test_the_saved_dtype_comes_back(saved, recipe, tmp_path):
    """Whatever the dtype of the architecture that is handed to `load`."""
    model, x = models.build("cnn-relu")
    model = model.to(saved)
    pruned = prunus.prune(model, recipe, 0.5, data=x.to(saved))
    pruned.save(tmp_path, example=x.to(saved))
    architecture = models.build("cnn-relu", seed=1)[0].float()
    loaded = prunus.load(tmp_path, architecture)
    assert {p.dtype for p in architecture.parameters()} == {torch.float32}
    for network in (loaded.model, loaded.compact()):
        kinds = {v.dtype for v in network.state_dict().values() if v.is_floating_point()}
        assert kinds == {saved}
    for key, value in pruned.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[key]), key


def test_folders_that_are_not_whole(tmp_path):
    model, x, pruned = setup()
    folder = pruned.save(tmp_path / "net")
    facts = json.loads((folder / "pruned.json").read_text())
    path = next(folder.glob("weights-*.safetensors"))
    weights = path.read_bytes()

    with pytest.raises(FileNotFoundError, match=r"No pruned\.json in .*nowhere"):
        prunus.load(tmp_path / "nowhere", model)
    with pytest.raises(ValueError, match="holds weights and masks, but no code"):
        prunus.load(folder)
    path.write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="is truncated or was changed"):
        prunus.load(folder, model)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights-.*safetensors is missing"):
        prunus.load(folder, model)
    path.write_bytes(weights)
    for change, message in [
        ({"format": 99}, "has format 99, newer than 2"),
        ({"kind": "something"}, "is no pruned that prunus saved"),
    ]:
        (folder / "pruned.json").write_text(json.dumps(facts | change))
        with pytest.raises(ValueError, match=message):
            prunus.load(folder, model)
    (folder / "pruned.json").write_text(json.dumps(facts)[:100])
    with pytest.raises(ValueError, match="is truncated or no JSON"):
        prunus.load(folder, model)
    partial = {k: v for k, v in facts.items() if k != "recipe"}
    (folder / "pruned.json").write_text(json.dumps(partial))
    with pytest.raises(ValueError, match=r"pruned\.json: `recipe` is missing"):
        prunus.load(folder, model)
    (folder / "pruned.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="The model does not fit the network saved in"):
        prunus.load(folder, models.MLP((12, 17, 10, 5)))


def test_an_interrupted_save_leaves_the_old_network(tmp_path, monkeypatch):
    model, x, pruned = setup()
    folder = pruned.save(tmp_path / "net")
    other = prunus.prune(model, "magnitude", 0.8)
    real, calls = os.replace, []

    def fail_at(n):
        def replace(*args):
            calls.append(1)
            if len(calls) == n:
                raise KeyboardInterrupt
            real(*args)

        return replace

    monkeypatch.setattr(os, "replace", fail_at(1))
    with pytest.raises(KeyboardInterrupt):
        other.save(folder)
    monkeypatch.setattr(os, "replace", real)
    assert prunus.load(folder, model).cost_after == pruned.cost_after
    calls.clear()
    monkeypatch.setattr(os, "replace", fail_at(2))  # weights are new, the account is old
    with pytest.raises(KeyboardInterrupt):
        other.save(folder)
    monkeypatch.setattr(os, "replace", real)
    assert prunus.load(folder, model).cost_after == pruned.cost_after
    other.save(folder)
    assert prunus.load(folder, model).cost_after == other.cost_after
    assert len(list(folder.iterdir())) == 2  # the old weights are gone


def test_an_unwritable_folder_says_so(tmp_path):
    model, x, pruned = setup()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        pruned.save(tmp_path / "file")


def test_summary_says_what_happened():
    model, x, pruned = setup("wanda+ls")
    text = pruned.summary()
    for word in ("layers.0", "16 × 12", "parameters", "wanda+ls", "before", "loss"):
        assert word in text
    assert "<table>" in pruned._repr_html_()
    assert "not measured" in prunus.prune(model, "magnitude", 0.5).summary()


def test_measured_latency_says_its_conditions_and_claims_nothing_unproved():
    model, x, pruned = setup("magnitude", 0.05)
    timed = pruned.measured(x, seconds=0.05)
    before, after = timed.cost_before.latency, timed.cost_after.latency
    assert before.low <= before.median <= before.high
    assert (before.batch, before.threads) == (32, torch.get_num_threads())
    assert timed.cost_after.latency_share == after.median / before.median
    assert pruned.cost_after.latency is None
    assert "batch 32" in timed.summary()
    wide, small = (speedup(before, replace(before, **change)) for change in (
        {}, dict(median=before.median / 9, low=before.low / 9, high=before.low / 8),
    ))  # fmt: skip
    assert wide.verdict == "no benefit"
    assert small.verdict == "faster"
    with pytest.raises(ValueError, match="needs an example batch"):
        prunus.prune(model, "magnitude", 0.5).measured()


def test_tied_tensors_of_a_loaded_compact_network_stay_one(tmp_path):
    model, x = models.build("tied")
    prunus.prune(model, "importance-node", 0.7, data=x).save(tmp_path, example=x)
    small = prunus.load(tmp_path, models.build("tied")[0]).compact()
    assert small.left.weight is small.right.weight
    torch.testing.assert_close(small(x), prunus.load(tmp_path, model).model(x))


def test_a_module_under_two_names_comes_back_as_one(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 12, 3)
            self.norm = nn.RMSNorm((12,))  # its epsilon is scaled once, not once per name
            self.head = nn.Conv2d(12, 4, 1)
            self.body = nn.ModuleList([self.conv, self.norm])

        def forward(self, x):
            h = self.body[1](self.body[0](x).movedim(1, -1)).movedim(-1, 1)
            return self.head(h.relu())

    torch.manual_seed(0)
    net, x = Net().eval(), 1e-2 * torch.randn(4, 3, 6, 6)
    net.norm.eps = 1e-3
    pruned = prunus.prune(net, "importance-node", 0.5, data=x)
    pruned.save(tmp_path, example=x)
    small = prunus.load(tmp_path, net).compact()
    assert small.conv is small.body[0]
    assert small.conv.out_channels == 6
    torch.testing.assert_close(small(x[:1]), pruned.model(x[:1]))
    torch.testing.assert_close(small(x), pruned.compact()(x), rtol=0, atol=0)
