"""No call leaves a trace: on the user's model, in the thread, in the process; nor is it misled."""

import sys
import warnings

import pytest
import torch
from torch import nn

import prunus
from prunus.ambient import quiet
from prunus.modes import evaluating, private, twin
from traces import CALLS, home, in_threads, prunes, same, state_of, surroundings


@pytest.fixture(autouse=True)
def vacuous():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", prunus.theory.gap.VacuousWarning)
        yield


@pytest.mark.parametrize("name", CALLS)
def test_the_model_never_runs_and_nothing_of_it_or_around_it_changes(name):
    model, x, y = home()
    before, around = state_of(model), surroundings()
    given = x.clone()
    CALLS[name](model, x, y)
    assert same(state_of(model), before)
    assert same(surroundings(), around)
    assert torch.equal(x, given)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.drop = nn.Dropout(0.5)
        self.home = 0

    def forward(self, input_ids):
        assert id(self) != self.home, "the user's own model ran"
        return self.head(self.drop(self.embedding(input_ids)))


def test_a_language_model_never_runs_itself():
    model = Words()
    model.home = id(model)
    before, around = state_of(model), surroundings()
    ids = torch.arange(64) % 11
    found = prunus.perplexity(model, ids, window=8)
    assert found.value == prunus.perplexity(model, ids, window=8).value  # without dropout
    assert same(state_of(model), before)
    assert same(surroundings(), around)


def test_a_private_twin_shares_numbers_and_nothing_else():
    model, x, _ = home()
    with private(model) as own, private(own) as again:
        assert again is own
        assert own is not model
        for (name, p), q in zip(model.named_parameters(), own.parameters(), strict=True):
            assert p is not q, name
            assert p.data_ptr() == q.data_ptr()
            assert p.requires_grad == q.requires_grad
            assert q.grad is None
        assert own.norm.running_mean.data_ptr() != model.norm.running_mean.data_ptr()
        with evaluating(own), torch.no_grad():
            own(x)
        assert own.calls == 1
    with private(own) as third:  # it is somebody's again
        assert third is not own


def test_tied_weights_stay_tied_in_a_twin():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    own = twin(model)
    assert own[1].weight is own[0].weight


def test_a_model_that_has_no_copy_is_refused_in_one_line():
    model = nn.Sequential(nn.Linear(3, 3))
    model.stream = (i for i in range(3))
    with pytest.raises(ValueError, match=r"^The model cannot be copied \(cannot pickle 'gener"):
        prunus.calibrate(model, torch.randn(4, 3))


class Sharded(nn.Linear):
    """Refuses copies as layers do whose parameters were sharded."""

    def __deepcopy__(self, memo):
        raise AssertionError("FSDP does not support deepcopy.")


def test_a_model_that_refuses_copies_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"\(FSDP does not support deepcopy\.\).*before param"):
        prunus.prune(nn.Sequential(Sharded(3, 3)), "magnitude", 0.5)


# -- threads ---------------------------------------------------------------------------------------


def threaded(runs, width=4):
    """Threads at calls of every kind on one model at once; the user trains beside in none of it."""
    model, x, y = home()
    names = [name for name in CALLS if name not in ("latency", "plan", "synflow")]
    names = names if runs > len(names) else ["wanda+ls", "taylor", "couple", "calibrate", "grasp"]
    alone = {name: CALLS[name](model, x, y) for name in names}
    before, around = state_of(model), surroundings()
    for first in range(0, runs, width):
        chosen = [names[(first + i) * 7 % len(names)] for i in range(width)]
        found = in_threads(lambda i, chosen=chosen: CALLS[chosen[i]](model, x, y), width)
        for name, result in zip(chosen, found, strict=True):
            assert not isinstance(result, BaseException), (name, result)
            assert same(result, alone[name]), name
    assert same(state_of(model), before)
    assert same(surroundings(), around)


def test_threads_on_one_model_give_what_each_gives_alone():
    threaded(12)


@pytest.mark.slow
def test_500_threaded_runs():
    threaded(500)


def test_threads_may_run_the_model_meanwhile():
    """The user's own thread finds its model in its own mode, and the fused kernels on."""
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    model.train()
    x = torch.randn(256, 8)
    over, bad = [], []

    def work(i):
        if i:
            for _ in range(6):
                prunus.prune(model, "wanda+ls", 0.5, data=x, blocks=None)
            over.append(i)
        while not i and len(over) < 2:
            if not all(m.training for m in model.modules()) or model[0]._forward_pre_hooks:
                bad.append("modes")
            if not torch.backends.mha.get_fastpath_enabled():
                bad.append("fast path")
        return None

    assert in_threads(work, 3) == [None] * 3
    assert bad == []


def test_modules_of_other_threads_run_while_a_graph_is_traced():
    """torch replaces `nn.Module.__call__` for the whole process meanwhile."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x, over = torch.randn(16, 8), []
    with torch.no_grad():
        expected = model(x)
    call, attribute = nn.Module.__call__, nn.Module.__getattr__

    def work(i):
        if i:
            for _ in range(8):
                prunus.certify(model, {"2": torch.ones(4, 16)}, data=x)
            over.append(i)
        while not i and len(over) < 2:
            with torch.no_grad():
                assert torch.equal(model(x), expected)
        return None

    assert in_threads(work, 3) == [None] * 3
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, attribute)


def test_silence_is_for_one_thread_and_overlapping_ones_leave_none():
    def work(i):
        if i == 0:
            for _ in range(200):
                with quiet():
                    warnings.warn("mine", UserWarning, stacklevel=2)
        return None

    before = list(warnings.filters)
    assert in_threads(work, 4) == [None] * 4
    assert warnings.filters == before
    with quiet(DeprecationWarning), pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=2)
    with quiet():
        heard = in_threads(lambda i: warnings.warn("theirs", UserWarning, stacklevel=2), 1)
    assert isinstance(heard[0], UserWarning)


# -- interrupts ------------------------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    """Ctrl-C at a place of our choosing."""


def interrupted(function, place):
    """Call `function` and raise at the entry of the `place`-th Python function; the number seen.

    That is where signals come: at the entry of functions, the ends of blocks among them.
    """
    seen = 0

    def watch(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_name in ("__del__", "remove", "_remove", "callback"):
            return  # what is raised there goes nowhere
        seen += 1
        if seen == place:
            sys.settrace(None)
            raise Stop

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        function()
    except Stop:
        pass
    finally:
        sys.settrace(before)
    return seen


def stopped_at_random(runs):
    model, x, y = home()
    names = [name for name in CALLS if name not in ("latency", "plan", "synflow")]
    names = names if runs > 100 else ["wanda+ls", "grasp", "taylor", "couple", "calibrate"]
    totals = {n: interrupted(lambda n=n: CALLS[n](model, x, y), 0) for n in names}
    before, around = state_of(model), surroundings()
    generator = torch.Generator().manual_seed(14)
    for run in range(runs):
        name = names[run % len(names)]
        place = int(torch.randint(1, totals[name], (), generator=generator))
        interrupted(lambda name=name: CALLS[name](model, x, y), place)
        now = surroundings()
        assert same(state_of(model), before), (name, place)
        assert same(now, around), (name, place, [k for k in now if not same(now[k], around[k])])


# An interrupt in a library's finaliser, or between `open` and `with`, is told of as a warning.
ANYWHERE = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


@ANYWHERE
def test_interrupts_leave_no_trace():
    stopped_at_random(16)


@ANYWHERE
@pytest.mark.slow
def test_2000_interrupts_leave_no_trace():
    stopped_at_random(2000)


# -- the caller's modes ----------------------------------------------------------------------------

MODED = ["wanda+ls", "obd", "grasp", "snip", "sparsegpt", "dpp-node+ls", "taylor", "blocks"]


def as_without(name, mode):
    model, x, y = home()
    plain = CALLS[name](model, x, y)
    with mode:
        around = surroundings()
        found = CALLS[name](model, x, y)
        assert same(surroundings(), around)
    assert same(found, plain)
    return found


@pytest.mark.parametrize("name", MODED)
def test_autocast_outside_is_off_inside(name):
    as_without(name, torch.autocast("cpu", dtype=torch.bfloat16))


@pytest.mark.parametrize("name", MODED)
def test_inference_mode_outside_is_off_inside(name):
    found = as_without(name, torch.inference_mode())
    assert not any(t.is_inference() for t in found.values())


@pytest.mark.parametrize("name", [*MODED, "calibrate", "couple"])
def test_a_default_device_outside_does_not_move_our_own_tensors(name):
    as_without(name, torch.device("meta"))


def test_a_model_made_in_inference_mode_is_pruned():
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
        x = torch.randn(16, 6)
        y = torch.randint(0, 3, (16,))
        found = prunus.prune(model, "snip", 0.8, data=[(x, y)])
    assert not any(p.is_inference() for p in found.model.parameters())


def test_the_callers_functions_run_in_the_callers_modes():
    model, x, y = home()
    seen = []

    def evaluate(network):
        seen.append((torch.is_autocast_enabled("cpu"), str(torch.get_default_device())))
        return 0.0

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        prunus.prune(model, "magnitude", 0.5, evaluate=evaluate)
    assert seen == [(True, "meta")] * 2


# -- names -----------------------------------------------------------------------------------------


class Bracketed(nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(3):
            self.add_module(f"block[{i}]", nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
        self.add_module("head[a-c]*", nn.Linear(6, 3))

    def forward(self, x):
        for module in self._modules.values():
            x = module(x)
        return x


@pytest.mark.parametrize("recipe", ["magnitude", "wanda+ls", "random-node"])
def test_exact_names_with_brackets(recipe, tmp_path):
    model, x = Bracketed(), torch.randn(32, 6)
    found = prunus.prune(model, recipe, 0.5, data=x, layers=["block[1].0"])
    assert list(found.plan.kept) == ["block[1].0"]
    found = prunus.prune(model, recipe, 0.5, data=x, exclude=["block[1].0", "head[a-c]*"])
    assert list(found.plan.kept) == ["block[0].0", "block[2].0"]
    if recipe == "magnitude":
        found = prunus.prune(model, recipe, {"head[a-c]*": 0.5}, data=x)
        assert found.plan.kept["head[a-c]*"] == 9
        assert found.plan.kept["block[0].0"] == 36
    found.save(tmp_path)
    assert prunus.load(tmp_path, model).plan.kept == found.plan.kept


def test_a_block_by_an_exact_name_with_brackets():
    model, x = Bracketed(), torch.randn(32, 6)
    found = prunus.prune(model, "wanda", 0.5, data=x, blocks="block[1]")
    whole = prunus.prune(model, "wanda", 0.5, data=x)
    assert all(torch.equal(found.masks[k], whole.masks[k]) for k in whole.masks)


def test_prunes_of_nothing_special_are_what_they_were():
    """The helper of this file itself: equal calls give equal weights."""
    model, x, y = home()
    assert same(prunes("wanda")(model, x, y), prunes("wanda")(model, x, y))
