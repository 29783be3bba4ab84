"""Threads: small systems are solved by one, and every number comes back."""

import threading
from typing import ClassVar

import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

import prunus
from prunus.compensation import exact
from prunus.selection import dpp_sets
from prunus.threads import few, pinned, single_threaded


def blas():
    return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}


@pytest.fixture
def three():
    """Three threads everywhere, whatever the suite is run with."""
    with pinned(3):
        yield


def numbers():
    return torch.get_num_threads(), blas()


def test_small_systems_take_one_thread_and_the_numbers_come_back(three):
    assert numbers() == (3, {3})
    assert single_threaded(numbers)() == (1, {1})
    assert numbers() == (3, {3})
    with pytest.raises(ZeroDivisionError):
        single_threaded(lambda: 1 / 0)()
    assert numbers() == (3, {3})


def test_blocks_in_blocks_and_beside_each_other(three):
    with pinned(2):
        assert numbers() == (2, {2})
        with pinned(1):
            assert numbers() == (1, {1})
        assert numbers() == (2, {2})
        with pinned(None):
            assert numbers() == (2, {2})


def test_threads_that_overlap_leave_no_limit_behind(three):
    inside, leave, told = threading.Event(), threading.Event(), []

    def other():
        with pinned(1):
            told.append(numbers())
            inside.set()
            leave.wait(10)

    beside = threading.Thread(target=other)
    beside.start()
    inside.wait(10)
    with pinned(2):
        leave.set()
        beside.join()
    assert told[0][0] == 1  # OpenBLAS takes a number from the main thread alone
    assert numbers() == (3, {3})


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_threads_is_a_whole_number(count):
    with pytest.raises(ValueError, match="threads"), pinned(count):
        pass


@pytest.mark.parametrize("recipe", ["dpp-edge", "magnitude-row+ls", "obs"])
def test_recipes_of_rows_solve_them_with_one(recipe, three, monkeypatch):
    seen = []

    def spy(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: seen.append(numbers()) or real(*a, **k))

    from prunus import elimination

    spy(elimination, "eliminate")
    spy(exact, "_cholesky_solve")
    spy(dpp_sets, "Pool")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 12)
    prunus.prune(model, recipe, 0.5, data=x)
    assert {(torch_, tuple(own)) for torch_, own in seen} == {(1, (1,))}
    assert numbers() == (3, {3})


def test_prune_takes_the_number_that_is_given():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(20, 6)
    before, seen = numbers(), []
    prunus.prune(
        model, "magnitude", 0.5, data=x, threads=2, evaluate=lambda m: seen.append(numbers()) or 0.0
    )
    assert {count for count, _ in seen} == {2}
    assert numbers() == before


@pytest.fixture
def set_to_three():
    """Three threads of torch as a user sets them; nothing is pinned."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Watched(nn.Linear):
    """A layer that notes how many threads it ran with."""

    seen: ClassVar[list[int]] = []  # of every copy

    def forward(self, x):
        self.seen.append(torch.get_num_threads())
        return super().forward(x)


@pytest.mark.parametrize(("width", "expected"), [(240, 1), (260, 3)])
def test_small_networks_take_one_thread_where_nothing_is_said(width, expected, set_to_three):
    torch.manual_seed(0)
    model, x = nn.Sequential(Watched(width, width), nn.Linear(width, 3)), torch.randn(20, width)
    seen = Watched.seen
    seen.clear()
    prunus.calibrate(model, x)
    assert set(seen) == {expected}
    seen.clear()
    prunus.prune(model, "magnitude", 0.5, data=x)
    assert set(seen) == {expected}
    assert torch.get_num_threads() == 3
    seen.clear()
    prunus.prune(model, "wanda", 0.5, data=x, threads=2)
    assert set(seen) == {2}


def test_a_pinned_block_stands(three):
    assert few(nn.Linear(3, 3)) is None


def test_what_counts_as_small():
    assert few(nn.Conv2d(1, 1, 3)) is None
    assert few(nn.Linear(255, 256)) == 1  # 65536 numbers with the bias
    assert few(nn.Linear(256, 256)) is None
