"""Processes that share the batches, and workers that take blocks, prune as one process does."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tests.folder.test_prune_folder import loaded
from tests.folder.test_resume import contents

from prunus.bench import make_executor
from prunus.bench.grid.executors import Ended, SerialExecutor, WorkerLost, closing
from prunus.folder import prune_folder
from prunus.folder.ranks import Ranks
from prunus.folder.workers import Workers


def rank(number, source, out, place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=number, world_size=2)
    rows = torch.randint(0, 64, (12, 20), generator=torch.Generator().manual_seed(1))
    group = dist.group.WORLD
    result = prune_folder(source, out, "sparsegpt", 0.5, data=list(rows.split(4)), group=group)
    assert result.tokens == 240
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_prune_as_one(source, ids, tmp_path):
    prune_folder(source, tmp_path / "one", "sparsegpt", 0.5, data=ids)
    args = (str(source), str(tmp_path / "two"), str(tmp_path / "place"))
    multiprocessing.spawn(rank, args, nprocs=2)
    one, two = loaded(tmp_path / "one"), loaded(tmp_path / "two")
    for name, value in one.items():
        assert torch.equal(two[name] != 0, value != 0), name
        # Sums of the same numbers in another order.
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not list(tmp_path.glob("*.part"))


def test_more_processes_than_batches_are_refused():
    alone = Ranks(None)
    alone.size = 3
    with pytest.raises(ValueError, match="3 processes need as many batches, got 2"):
        alone.share([1, 2])


@pytest.mark.parametrize("recipe", ["sparsegpt", "magnitude"])
def test_blocks_handed_out_are_the_same_bytes(source, ids, tmp_path, recipe):
    data = {} if recipe == "magnitude" else {"data": ids, "inputs": "dense"}
    one = prune_folder(source, tmp_path / "one", recipe, 0.5, **data)
    with closing(make_executor("local")) as executor:
        apart = prune_folder(source, tmp_path / "two", recipe, 0.5, executor=executor, **data)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert apart.layers == one.layers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "ray", "dask"])
def test_engines_hand_out_blocks(source, ids, tmp_path, name):
    pytest.importorskip({"local": "joblib", "ray": "ray", "dask": "distributed"}[name])
    options = {"data": ids, "inputs": "dense"}
    prune_folder(source, tmp_path / "one", "wanda+ls", 0.5, **options)
    with closing(make_executor(name, workers=2)) as executor:
        prune_folder(source, tmp_path / "two", "wanda+ls", 0.5, executor=executor, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Two(SerialExecutor):
    """Two jobs are asked for at once, so that batches are split; both run in this process."""

    slots = 2


def summed(monkeypatch, *args, **options):
    """The result of `prune_folder`, and the sums of every scope when all shares are in them."""
    scopes = []

    def kept(combine):
        def noted(self, gatherer):
            combine(self, gatherer)
            scopes.append(copy.deepcopy(gatherer.sums))

        return noted

    with monkeypatch.context() as patch:
        for kind in (Ranks, Workers):
            patch.setattr(kind, "combine", kept(kind.combine))
        return prune_folder(*args, **options), scopes


def alike(one, two, monkeypatch, source, executor, **options):
    """Batches split over workers have the sums of one process; the stream stays the same, too."""
    given = {"measure": True, **options}
    first, sums = summed(monkeypatch, source, one, "wanda", 0.5, **given)
    second, split = summed(monkeypatch, source, two, "wanda", 0.5, executor=executor, **given)
    assert contents(one) == contents(two)  # masks alone: weights that stay are copies
    assert (len(split), second.tokens) == (len(sums), first.tokens)
    for ours, theirs in zip(sums, split, strict=True):
        assert ours.keys() == theirs.keys()
        for name, own in ours.items():
            assert own.counts == theirs[name].counts
            for key, value in own.totals.items():
                scale = value.abs().max()
                assert (theirs[name].totals[key] - value).abs().max() <= 1e-12 * scale, (name, key)


def test_batches_split_over_workers_have_the_same_sums(source, ids, tmp_path, monkeypatch):
    alike(tmp_path / "one", tmp_path / "two", monkeypatch, source, Two(), data=ids)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("wanda+ls", {"aim": "dense", "exclude": "model.layers.1.*"}),
        *(
            pytest.param(recipe, options, marks=pytest.mark.slow)
            for recipe, options in (
                ("sparsegpt", {"within": "layers", "aim": "dense"}),
                ("wanda+ls", {"within": "layers"}),
                ("wanda+ls", {"memory": 345_000}),  # one input after another
                ("importance-node+ls", {"layers": "*.mlp.*"}),
            )
        ),
    ],
)
def test_split_batches_prune_alike(source, ids, tmp_path, recipe, options):
    padded = [{"input_ids": b, "attention_mask": torch.ones_like(b)} for b in ids]
    padded[1]["attention_mask"][:, :7] = 0
    given = {"data": padded, **options}
    one = prune_folder(source, tmp_path / "one", recipe, 0.5, **given)
    two = prune_folder(source, tmp_path / "two", recipe, 0.5, executor=Two(), **given)
    assert two.tokens == one.tokens
    own, split = loaded(tmp_path / "one"), loaded(tmp_path / "two")
    for name, value in own.items():
        assert torch.equal(split[name] != 0, value != 0), name
        torch.testing.assert_close(split[name], value, rtol=1e-5, atol=1e-6, msg=name)
    names = {p.name for p in (tmp_path / "two").iterdir()}
    assert names == {p.name for p in (tmp_path / "one").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "ray", "dask"])
def test_engines_split_batches(source, ids, tmp_path, monkeypatch, name):
    pytest.importorskip({"local": "joblib", "ray": "ray", "dask": "distributed"}[name])
    with closing(make_executor(name, workers=2)) as executor:
        alike(tmp_path / "one", tmp_path / "two", monkeypatch, source, executor, data=ids)


class Failing(SerialExecutor):
    """Loses a worker at the second block."""

    def as_completed(self):
        for count, ended in enumerate(super().as_completed()):
            yield Ended(ended.job, error=WorkerLost("gone")) if count == 1 else ended


def test_a_lost_worker_costs_one_block(source, ids, tmp_path):
    options = {"data": ids, "inputs": "dense"}
    with pytest.raises(RuntimeError, match=r"Block 1 was not pruned \(gone\)"):
        prune_folder(source, tmp_path / "two", "wanda", 0.5, executor=Failing(), **options)
    journal = json.loads((tmp_path / "two.part" / "progress.json").read_text())
    assert list(journal["apart"]) == ["0"]
    prune_folder(source, tmp_path / "two", "wanda", 0.5, executor=SerialExecutor(), **options)
    prune_folder(source, tmp_path / "one", "wanda", 0.5, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_lost_worker_costs_the_block_whose_batches_were_split(source, ids, tmp_path):
    class Losing(Two):
        asked = 0

        def as_completed(self):
            for ended in super().as_completed():
                Losing.asked += 1  # two of the first block are sums and stream
                yield Ended(ended.job, error=WorkerLost("gone")) if Losing.asked == 3 else ended

    options = {"data": ids, "within": "block"}
    with pytest.raises(RuntimeError, match=r"Block 1 was not pruned \(gone\)"):
        prune_folder(source, tmp_path / "two", "wanda", 0.5, executor=Losing(), **options)
    with pytest.raises(ValueError, match=r"other settings: processes \(was 2, is 1\)"):
        prune_folder(source, tmp_path / "two", "wanda", 0.5, **options)
    resumed = prune_folder(source, tmp_path / "two", "wanda", 0.5, executor=Two(), **options)
    assert resumed.resumed == 1
    prune_folder(source, tmp_path / "one", "wanda", 0.5, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_cannot_be_handed_out_is_refused(source, ids, tmp_path):
    with pytest.raises(ValueError, match="each block waits for the one before"):
        prune_folder(source, tmp_path / "x", "wanda", 0.5, data=ids, executor=SerialExecutor())
    with pytest.raises(TypeError, match=r"one of prunus.bench.make_executor's, got int"):
        prune_folder(source, tmp_path / "x", "magnitude", 0.5, executor=3)
