"""Threads: small systems are solved by one, and every number comes back."""

import inspect
import sys
import threading

import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

import prunus
from prunus import threads
from prunus.compensation import exact
from prunus.later import Later
from prunus.selection import dpp_sets
from prunus.threads import few, keep_pinned, pinned, single_threaded


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


class Library:
    """A BLAS library as threadpoolctl shows it."""

    def __init__(self, filepath, count):
        self.filepath, self.num_threads = filepath, count

    def set_num_threads(self, count):
        self.num_threads = count


@pytest.fixture
def loaded(monkeypatch):
    """The process's libraries: one of three threads, and what a test loads."""
    there = [Library("numpy", 3)]
    monkeypatch.setattr(threads._BLAS, "_loaded", lambda: there)
    return there


def test_a_library_that_comes_inside_a_block_keeps_to_it_and_goes_back(loaded):
    with pinned(2):
        loaded.append(Library("scipy", 4))
        keep_pinned()
        assert [library.num_threads for library in loaded] == [2, 2]
        with pinned(1):
            loaded.append(Library("another", 5))
            keep_pinned()
            assert [library.num_threads for library in loaded] == [1, 1, 1]
        assert [library.num_threads for library in loaded] == [2, 2, 2]
    assert [library.num_threads for library in loaded] == [3, 4, 5]
    keep_pinned()  # there is nothing to keep
    assert [library.num_threads for library in loaded] == [3, 4, 5]


def test_a_library_is_imported_at_its_first_use_and_keeps_to_the_block(
    loaded, tmp_path, monkeypatch
):
    (tmp_path / "brings_blas.py").write_text("def solve(): return 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    late = Later("brings_blas")
    assert not hasattr(late, "__wrapped__")
    assert "brings_blas" not in sys.modules
    with pinned(1):
        loaded.append(Library("scipy", 4))
        assert late.solve() == 7
        assert loaded[1].num_threads == 1
    assert loaded[1].num_threads == 4
    del sys.modules["brings_blas"]
    assert late.solve() == 7  # found once for all
    with pytest.raises(AttributeError, match=r"brings_blas.*nothing"):
        _ = late.nothing


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


@pytest.fixture
def seen(set_to_three, monkeypatch):
    """With how many threads linear layers have run."""
    found, real = [], torch.nn.functional.linear

    def linear(*args, **kwargs):
        found.append(torch.get_num_threads())
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    return found


@pytest.mark.parametrize(("width", "expected"), [(240, 1), (260, 3)])
def test_small_networks_take_one_thread_where_nothing_is_said(width, expected, seen):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 3)), torch.randn(20, width)
    prunus.calibrate(model, x)
    assert set(seen) == {expected}
    seen.clear()
    prunus.prune(model, "magnitude", 0.5, data=x)
    assert set(seen) == {expected}
    assert torch.get_num_threads() == 3
    seen.clear()
    prunus.prune(model, "wanda", 0.5, data=x, threads=2)
    assert set(seen) == {2}


DROP = prunus.Budget(metric="metric", drop=0.1)
CALLS = {
    "calibrate": lambda m, x, size: prunus.calibrate(m, x),
    "certify": lambda m, x, size: prunus.certify(m, m, data=x),
    "compact": lambda m, x, size: prunus.compact(model=m, example=x),
    "compare": lambda m, x, size: prunus.compare(
        m, ["magnitude"], [0.5], data=x, evaluate=size, seeds=1
    ),
    "perplexity": lambda m, x, size: prunus.perplexity(
        nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), torch.arange(9), window=3
    ),
    "plan": lambda m, x, size: prunus.plan(m, 0.1, data=x),
    "prune": lambda m, x, size: prunus.prune(m, "wanda", 0.5, data=x, evaluate=size),
    "sensitivity": lambda m, x, size: prunus.sensitivity(m, "magnitude", [0.5], evaluate=size),
}
OTHERS = {"sparsify"}  # its steps are part of the caller's own training


@pytest.mark.parametrize("name", CALLS)
def test_all_that_runs_a_small_network_takes_one_thread(name, seen):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(64, 6)
    CALLS[name](model, x, lambda m: float(m(x).detach().square().mean()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3


def test_whatever_takes_a_network_is_asked():
    takes = set()
    for name in prunus.__all__:
        what = getattr(prunus, name)
        if callable(what) and not isinstance(what, type):
            first = next(iter(inspect.signature(what).parameters))
            takes |= {name} if first == "model" else set()
    assert takes - OTHERS == set(CALLS)


@pytest.mark.parametrize(("count", "expected"), [(None, 1), (2, 2)])
def test_searches_for_a_density_evaluate_with_as_many(count, expected, seen):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(64, 6)

    def size(m):
        return float(m(x).detach().square().mean())

    prunus.prune(model, "magnitude", DROP, data=x, evaluate=size, threads=count)
    assert set(seen) == {expected}


def test_a_pinned_block_stands(three):
    assert few(nn.Linear(3, 3)) is None


def test_what_counts_as_small():
    assert few(nn.LazyLinear(3)) is None  # nobody knows yet
    assert few("no network") is None
    assert few(nn.Conv2d(1, 1, 3)) is None
    assert few(nn.Linear(255, 256)) == 1  # 65536 numbers with the bias
    assert few(nn.Linear(256, 256)) is None
