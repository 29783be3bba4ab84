"""Two processes that share the batches prune as one does."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tests.folder.test_prune_folder import loaded

from prunus.folder import prune_folder


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
    from prunus.folder.ranks import Ranks

    alone = Ranks(None)
    alone.size = 3
    with pytest.raises(ValueError, match="3 processes need as many batches, got 2"):
        alone.share([1, 2])
