"""By hand: what pruning a folder needs, what its processes share, how many blocks it leaves."""

from dataclasses import replace

import pytest
from tests.folder.conftest import llama

from prunus.folder.checkpoint import open_checkpoint
from prunus.folder.depth import count_left
from prunus.folder.needs import Needs, needs_of, time_words
from prunus.folder.others import share_of
from prunus.folder.result import LayerAccount
from prunus.folder.skeleton import Skeleton

LAYERS = {"a": (3, 4), "b": (5, 4), "c": (2, 6)}  # a and b read the same input
SIZES = {
    "inputs": [("a", "b"), ("c",)], "block_bytes": 1000, "blocks": 7, "width": 4, "itemsize": 2,
    "tokens": 100, "batch_tokens": 10, "streams": 2, "output_bytes": 500,
}  # fmt: skip
WEIGHTS = 3 * 4 + 5 * 4 + 2 * 6
SQUARES = (8 * 4 * 4, 8 * 6 * 6)
FACTORS = 4 * (2 * 4**3 + 6**3) / 3 + (3 + 5) * 4**2 + 2 * 6**2


def needs(*, gram=True, factor=False, pairs=False, **changed):
    return needs_of(LAYERS, gram=gram, factor=factor, pairs=pairs, **SIZES | changed)


def seconds(passes, *, gram=True, factors=0.0, rates=(5e10, 6.4e9)):
    products = passes * 2 * 100 * WEIGHTS + gram * 100 * (4**2 + 6**2)
    return pytest.approx(7 * (products / rates[0] + factors / rates[1]))


def test_a_block_its_gram_matrices_and_one_factorisation():
    found = needs()
    assert found.memory == {
        "block": 2 * 1000,
        "Gram matrices": sum(SQUARES),
        "factorisation": 2 * max(SQUARES),
        "work copies": 2 * 8 * 5 * 4,  # of the layer that has most numbers
        "activations": 12 * 10 * 6 * 2,  # the widest input is wider than the stream
    }
    assert found.total == sum(found.memory.values())
    assert found.disk == 2 * 100 * 4 * 2 + 500
    assert found.seconds == seconds(2)
    assert needs(width=9).memory["activations"] == 12 * 10 * 9 * 2


def test_one_input_at_a_time_holds_the_largest_and_takes_a_pass_for_each():
    found = needs(alone=True)
    assert found.memory == needs().memory | {"Gram matrices": max(SQUARES)}
    assert found.disk == needs().disk
    assert found.seconds == seconds(2 + 2)


def test_a_dense_block_beside_has_a_third_copy_and_three_matrices_an_input():
    found = needs(pairs=True)
    assert found.memory == needs().memory | {"block": 3000, "Gram matrices": 3 * sum(SQUARES)}
    assert found.seconds == seconds(2 + 2)


def test_means_alone_hold_a_number_an_input():
    found = needs(gram=False)
    own = {"Gram matrices": 8 * (4 + 6), "factorisation": 0, "work copies": 8 * 5 * 4}
    assert found.memory == needs().memory | own
    assert found.seconds == seconds(2, gram=False)
    assert needs(gram=False, factor=True).memory["work copies"] == 2 * 8 * 5 * 4


def test_factorisations_take_their_time_at_the_rate_of_the_device():
    assert needs(factor=True).seconds == seconds(2, factors=FACTORS)
    cuda = needs(factor=True, device="cuda")
    assert cuda.seconds == seconds(2, factors=FACTORS, rates=(1e14, 1e12))
    assert needs(factor=True, device="xpu") == needs(factor=True)


def test_workers_leave_their_sums_and_the_block_on_disk():
    assert needs(workers=3).disk == needs().disk + 3 * sum(SQUARES) + 1000
    assert needs(workers=3).memory == needs().memory


def test_in_words():
    assert [time_words(s) for s in (89, 90, 5399, 5400)] == ["89 s", "1.5 min", "90 min", "1.5 h"]
    found = Needs(memory={"block": 999, "nothing": 0, "rest": 1}, disk=2_500_000, seconds=1)
    assert found.short() == "about 1 kB, 1 s"
    said = "needs about 1 kB of memory (block 999 B, rest 1 B), 2.5 MB of disk and 1 s"
    assert found.summary() == said
    assert replace(found, disk=3 * 10**12).summary().endswith("3 TB of disk and 1 s")


def test_layers_that_read_one_tensor_share_its_matrix(tmp_path):
    found = Skeleton(open_checkpoint(llama(tmp_path / "net"))).shared_inputs(1)
    parts = [[name.rpartition(".")[2] for name in group] for group in found]
    assert parts == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"],
                     ["down_proj"]]  # fmt: skip
    assert all(name.startswith("model.layers.1.") for group in found for name in group)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_take_batches_in_turn(size):
    shares = [share_of(["a", "b", "c"], rank, size) for rank in range(size)]
    assert [share[0] for share in shares] == ["a", "b", "c"][:size]
    assert sorted(batch for share in shares for batch in share) == ["a", "b", "c"]
    assert share_of([], 0, size) == []
    with pytest.raises(ValueError, match="4 processes need as many batches, got 3"):
        share_of(["a", "b", "c"], 0, 4)


def test_a_block_stays_and_a_block_goes():
    assert [count_left(density, 4) for density in (0.01, 0.25, 0.5, 0.75)] == [1, 1, 2, 3]
    with pytest.raises(ValueError, match=r"leaves all 4 blocks. One less is 0\.75"):
        count_left(1.0, 4)


def test_errors_are_shares_of_a_power_that_is_there():
    one = LayerAccount(kept=1, total=2, error=3.0, power=4.0)
    assert one.relative_error == 0.75
    assert replace(one, error=0.0).relative_error == 0
    missing = [{"error": None}, {"power": None}, {"power": 0.0}]
    assert all(replace(one, **part).relative_error is None for part in missing)
