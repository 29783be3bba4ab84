"""Statistics of several processes become those of one, and training together keeps the zeros."""

import pytest
import torch

import prunus
import reduce_worker
from forks import both
from prunus.calibration.reduce import account_of, gathered
from reduce_worker import STATISTICS, data, network


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes with 20 and 44 samples found."""
    folder = tmp_path_factory.mktemp("reduce")
    both(reduce_worker.main, folder)
    return folder, [torch.load(folder / f"said-{rank}.pt") for rank in range(2)]


def test_two_processes_hold_the_statistics_of_one(processes):
    folder, _ = processes
    first, second = (prunus.Calibration.load(folder / f"rank-{rank}") for rank in range(2))
    one, other = (prunus.calibrate(network(), part, STATISTICS) for part in data())
    together = one + other
    whole = prunus.calibrate(network(), data(), STATISTICS)
    assert first.fingerprint == second.fingerprint == together.fingerprint
    assert first.samples == 64
    assert torch.equal(first.rows.hashes, whole.rows.hashes)
    for name, layer in whole.items():
        assert first[name].samples == layer.samples
        for key, value in layer.statistics.items():
            assert torch.equal(first[name].statistics[key], second[name].statistics[key])
            assert torch.equal(first[name].statistics[key], together[name].statistics[key])
            torch.testing.assert_close(first[name].statistics[key], value, rtol=1e-12, atol=1e-14)


def test_processes_that_differ_are_refused_alike(processes):
    _, said = processes
    for key, what in (
        (
            "statistics",
            r"the same statistics can be reduced: rank 0 has {'gram': 'Gram()'}, rank 1",
        ),
        ("weights", "layers with the same weights can be reduced: rank 0 has {'3':"),
        ("layers", "layers with the same weights can be reduced: rank 0 has {'0':"),
    ):
        assert what in said[0][key]
        assert said[0][key] == said[1][key]


def test_processes_prune_alike_and_hold_their_zeros(processes):
    _, said = processes
    assert torch.equal(said[0]["mask"], said[1]["mask"])
    for entry in said:
        before, after = entry["pair"]
        assert before == after > 0
    assert torch.equal(said[0]["weight"], said[1]["weight"])
    assert not torch.equal(said[0]["weight"], prunus.prune(
        network(), "wanda", 0.3, data=data()[0]).model[3].weight)  # fmt: skip


def test_without_processes():
    found = prunus.calibrate(network(), data()[0])
    with pytest.raises(RuntimeError, match=r"there is no process group\. Call torch\.distributed"):
        found.all_reduce()
    own = account_of({}, {}, {}, {}, "", 0, None)
    with pytest.raises(RuntimeError, match="no process group"):
        gathered(own, None)
