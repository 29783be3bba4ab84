"""`sparsify` in plain loops: counts, zeros, what optimizers remember, checkpoints, bad input."""

import copy
import gc
import io
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import models
import prunus
from prunus.allocation import Uniform
from prunus.budget import Plan, count_of
from prunus.courses import Dynamic, GradientGrowth, Gradual, RandomGrowth, Static
from prunus.granularity import EdgePerRow
from prunus.presets import PRESETS
from prunus.recipe import Recipe
from prunus.scores import Constant
from prunus.selection import RandomK
from prunus.surgery.bits import IDLE, ROOTED

INSIDE = [name for name, preset in PRESETS.items() if preset.recipe.schedule.inside]
EDGES = [name for name in INSIDE if prunus.recipes[name].units == "edges"]
STEPS = 40
each = pytest.mark.parametrize("name", INSIDE)


def often(name, every=4):
    """The recipe with changes every few steps."""
    recipe = prunus.recipes[name]
    return replace(recipe, schedule=replace(recipe.schedule, every=every))


def setup(seed=0, norm=True, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.MLP((12, 16, 10, 5), norm=norm).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 12, generator=generator).to(dtype)
    return model, x, torch.randint(5, (64,), generator=generator)


def batch(x, y, step):
    own = torch.arange(16 * step, 16 * step + 16) % len(x)
    return x[own], y[own]


def attach(model, recipe, optimizer, density=0.2, steps=STEPS, **options):
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(5))
    x = x.to(next(model.parameters()).dtype)
    return prunus.sparsify(
        model, recipe, density, optimizer=optimizer, steps=steps, example=x, **options
    )


def broken(model, masks):
    return [n for n, p in model.named_parameters() if n in masks and p[~masks[n]].any()]


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.5),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@each
def test_zeros_stand_after_every_step(name, optimizer):
    """With clipping and accumulation over two batches, under every optimizer."""
    model, x, y = setup()
    keys, ids = list(model.state_dict()), [id(p) for p in model.parameters()]
    own = OPTIMIZERS[optimizer](model.parameters())
    sparse = attach(model, often(name), own, density=0.5 if name == "soft-filter" else 0.2)
    for step in range(STEPS):
        for half in range(2):
            F.cross_entropy(model(batch(x, y, 2 * step + half)[0]), batch(x, y, step)[1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        own.step()
        own.zero_grad()
        assert not broken(model, sparse.masks)
        assert sparse.step_count == step + 1
    pruned = sparse.finish(strict=True)
    assert not broken(model, pruned.masks)
    assert pruned.model is model
    assert (list(model.state_dict()), [id(p) for p in model.parameters()]) == (keys, ids)
    if name != "soft-filter":
        kept = sum(int(r.mask.sum()) for r in pruned.layers.values())
        assert abs(kept - count_of(0.2, 12 * 16 + 16 * 10 + 10 * 5)) <= 1  # three roundings
    assert "made inside training, in 40 steps" in pruned.notes


def test_counts_are_those_of_the_course():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = often("gradual")
    sparse, total = attach(model, recipe, own), 12 * 16 + 16 * 10 + 10 * 5
    expected, before = total, sparse.masks
    for step in range(1, STEPS + 1):
        F.cross_entropy(model(x), y).backward()
        own.step()
        if step % 4 == 0 and 4 <= step <= 28:
            expected = count_of(
                0.2 if step == 28 else recipe.schedule.density(step / STEPS, 0.2), total
            )
        now = sparse.masks
        assert sum(int(m.sum()) for m in now.values()) == expected
        assert sparse.density == expected / total
        assert not any((now[n] & ~before[n]).any() for n in now)  # nested
        before = now
    assert expected == count_of(0.2, total) == 80
    assert [n for n, p in model.named_parameters() if n in before and (p == 0).any()]


def test_gradual_keeps_the_largest_of_all_layers():
    """At its last change the masks are those of global magnitude on the weights as they are."""
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = replace(prunus.recipes["gradual"], schedule=Gradual(start=0.4, stop=0.6, every=10))
    sparse = attach(model, recipe, own, steps=20)  # one change, after step 10
    reference = copy.deepcopy(model)
    second = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(10):
        for m, o in ((model, own), (reference, second)):
            o.zero_grad()
            F.cross_entropy(m(x), y).backward()
            o.step()
    expected = prunus.prune(reference, "magnitude-global", 0.2)
    assert {n: m.tolist() for n, m in sparse.masks.items()} == {
        n: m.tolist() for n, m in expected.masks.items()
    }
    for n, p in model.named_parameters():
        assert torch.equal(p, expected.model.get_parameter(n))


def test_static_is_a_loop_with_masks_by_hand():
    """Bit for bit: gradients and weights times the mask, every step."""
    recipe = Recipe(score=Constant(), selection=RandomK(), schedule=Static())
    model, x, y = setup(norm=False)
    own = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    sparse = attach(model, recipe, own, seed=3)
    twin, _, _ = setup(norm=False)
    second = torch.optim.AdamW(twin.parameters(), lr=0.02, weight_decay=0.1)
    masks = sparse.masks
    parameters = {n: p for n, p in twin.named_parameters() if n in masks}
    for n, p in parameters.items():
        p.data.mul_(masks[n])
    for step in range(STEPS):
        for m, o in ((model, own), (twin, second)):
            o.zero_grad()
            F.cross_entropy(m(batch(x, y, step)[0]), batch(x, y, step)[1]).backward()
            if m is twin:
                for n, p in parameters.items():
                    p.grad.mul_(masks[n])
            o.step()
            if m is twin:
                for n, p in parameters.items():
                    p.data.mul_(masks[n])
        for n, p in twin.named_parameters():
            assert torch.equal(p.abs(), model.get_parameter(n).abs()), n  # −0.0 by hand
    expected = prunus.prune(setup(norm=False)[0], "random-edge", 0.2, seed=3)
    counts = {n: int(m.sum()) for n, m in expected.masks.items()}
    assert {n: int(m.sum()) for n, m in masks.items()} == counts


@pytest.mark.parametrize("granularity", [prunus.recipes["rigl"].granularity, EdgePerRow()])
def test_rigl_exchanges_by_the_definition(granularity):
    """Each change against a slow reference; new weights and their memory are 0."""
    model, x, y = setup()
    recipe = replace(often("rigl"), granularity=granularity, allocation=Uniform(), score=Constant())
    own = torch.optim.AdamW(model.parameters(), lr=0.02)
    sparse = attach(model, recipe, own, density=0.3)
    course, seen = recipe.schedule, 0
    for step in range(1, STEPS + 1):
        own.zero_grad()
        bx, by = batch(x, y, step)
        dense = copy.deepcopy(model)
        dense.zero_grad()
        F.cross_entropy(dense(bx), by).backward()
        F.cross_entropy(model(bx), by).backward()
        before = sparse.masks
        due = step % 4 == 0 and step <= 30
        for n, p in model.named_parameters():
            if n in before and due:  # dense gradients in a due step, masked ones in others
                assert torch.equal(p.grad, dense.get_parameter(n).grad)
            elif n in before:
                assert not p.grad[~before[n]].any()
        own.step()
        after = sparse.masks
        for n in before:
            if not due:
                assert torch.equal(before[n], after[n])
                continue
            p = model.get_parameter(n).detach()
            gradient = dense.get_parameter(n).grad.abs()
            rows = [slice(None)] if granularity != EdgePerRow() else range(len(p))
            for row in rows:
                old, new = before[n][row].flatten(), after[n][row].flatten()
                r = int(course.replace(step / STEPS) * int(old.sum()))
                assert int(new.sum()) == int(old.sum())
                grown = new & ~old
                seen += int(grown.sum())
                # What came in has a larger gradient than all that stayed out.
                g = gradient[row].flatten()
                if grown.any() and (~new).any():
                    assert g[grown].min() >= g[~new].max()
                assert int((old & ~new).sum()) == int(grown.sum()) <= r
                assert not p[row].flatten()[grown].any()
                for key, value in own.state[model.get_parameter(n)].items():
                    if value.shape == p.shape:
                        flat, rest = value[row].flatten(), IDLE if key in ROOTED else 0.0
                        assert not flat[grown].any()
                        assert (flat[old & ~new] == torch.tensor(rest)).all()
    assert seen > 20
    sparse.finish(strict=True)


def test_new_weights_do_not_move_the_function():
    model, x, y = setup(norm=False)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = replace(
        often("set", every=1), schedule=Dynamic(drop=0.5, every=1, grow=RandomGrowth())
    )
    sparse = attach(model, recipe, own, density=0.5, steps=100)
    F.cross_entropy(model(x), y).backward()
    before, masks = copy.deepcopy(model), sparse.masks
    with torch.no_grad():
        for n, p in before.named_parameters():
            p.sub_(0.1 * model.get_parameter(n).grad.masked_fill(~masks.get(n, p == p), 0.0))
    own.step()
    gone = {n: m & ~sparse.masks[n] for n, m in masks.items()}
    assert sum(int(m.sum()) for m in gone.values()) > 50
    prunus.surgery.masked.apply_masks(before, {n: ~m for n, m in gone.items()})
    torch.testing.assert_close(model(x), before(x))


@pytest.mark.parametrize("name", ["movement", "soft"])
def test_removed_weights_learn_on_as_under_a_parametrization(name):
    """50 steps beside a twin whose weight is w ∘ m with the straight-through gradient."""
    model, x, y = setup(norm=False, dtype=torch.float64)
    recipe = prunus.recipes["movement" if name == "movement" else "gradual-layer"]
    recipe = replace(recipe, schedule=Gradual(every=5, soft=True))
    own = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    sparse = attach(model, recipe, own, density=0.25, steps=50)
    twin, _, _ = setup(norm=False, dtype=torch.float64)
    second = torch.optim.SGD(twin.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    masks = sparse.masks
    sums = {n: torch.zeros_like(twin.get_parameter(n)) for n in masks}
    for step in range(1, 51):
        bx, by = batch(x, y, step)
        own.zero_grad()
        F.cross_entropy(model(bx), by).backward()
        own.step()
        second.zero_grad()
        masked = {n: p * masks[n] if n in masks else p for n, p in twin.named_parameters()}
        leaves = {n: p.detach().requires_grad_() for n, p in masked.items()}
        F.cross_entropy(torch.func.functional_call(twin, leaves, (bx,)), by).backward()
        for n, p in twin.named_parameters():
            p.grad = leaves[n].grad
            if n in sums:
                sums[n] -= leaves[n].grad * p.detach()
        second.step()
        if step % 5 == 0 and 5 <= step <= 35:
            density = recipe.schedule.density(step / 50, 0.25) if step < 35 else 0.25
            for n in masks:
                values = sums[n] if name == "movement" else twin.get_parameter(n).abs()
                k = count_of(density, values.numel())
                masks[n] = torch.zeros_like(values, dtype=torch.bool)
                masks[n].view(-1)[values.detach().flatten().topk(k).indices] = True
        for n, m in sparse.masks.items():
            assert torch.equal(m, masks[n]), (step, n)
            expected = twin.get_parameter(n).detach() * masks[n]
            torch.testing.assert_close(model.get_parameter(n).detach(), expected, rtol=1e-6, atol=0)
    came_back = sparse.state_dict()["shadow"]
    assert all(bool((came_back[n][~masks[n]] != 0).any()) for n in masks)


@each
def test_resuming_is_the_same_to_the_bit(name):
    """40 steps = 24 + saving, loading into new objects + 16, through a file without pickle."""
    recipe, density = often(name), 0.5 if name == "soft-filter" else 0.2

    def run(model, own, first, last):
        _, x, y = setup()
        for step in range(first, last):
            own.zero_grad()
            F.cross_entropy(model(batch(x, y, step)[0]), batch(x, y, step)[1]).backward()
            own.step()

    def new():
        model, _, _ = setup()
        own = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
        return model, own, attach(model, recipe, own, density)

    whole, own, sparse = new()
    run(whole, own, 0, STEPS)
    half, half_own, half_sparse = new()
    run(half, half_own, 0, 26)
    file = io.BytesIO()
    saved = (half.state_dict(), half_own.state_dict(), half_sparse.state_dict())
    torch.save(saved, file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    run(half, half_own, 26, 30)  # what was saved does not move on
    again, again_own, again_sparse = new()
    for target, state in zip((again, again_own, again_sparse), states, strict=True):
        target.load_state_dict(state)
    assert again_sparse.step_count == 26
    run(again, again_own, 26, STEPS)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    expected, found = sparse.finish(strict=True), again_sparse.finish(strict=True)
    assert all(torch.equal(m, found.masks[n]) for n, m in expected.masks.items())
    assert found.cost_before == expected.cost_before
    assert found.cost_after == expected.cost_after
    assert dict(found.plan.kept) == dict(expected.plan.kept)
    half_sparse.remove()


def test_a_state_of_something_else_is_refused():
    model, _, _ = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("gradual"), own)
    state = sparse.state_dict()
    for key, value in (
        ("recipe", "x"), ("density", "0.3"), ("seed", 1), ("steps", 41), ("network", "?"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^The state was made with another `{key}`"):
            sparse.load_state_dict({**state, key: value})
    with pytest.raises(ValueError, match=r"^The state is no state of a Sparsifier"):
        sparse.load_state_dict({"masks": {}})
    with pytest.raises(ValueError, match=r"^The state is no state of a Sparsifier"):
        sparse.load_state_dict(model.state_dict())
    first, *others = state["masks"]
    lacking = {name: state["masks"][name] for name in others}
    for key, value, said in (
        ("step", -1, "step.* must be a number of steps, got -1"),
        ("step", True, "step.* must be a number of steps, got True"),
        ("start", None, "start.* must be text"),
        ("plan", {}, "plan.* must be text"),
        ("masks", lacking, "masks.* must have the entries .*, has "),
        ("masks", [], "masks.* must have the entries .*, has list"),
        ("masks", {**lacking, first: 3}, f"masks.{first}.* must be a tensor of bits"),
        ("shadow", {first: torch.ones(2)}, r"shadow.* must have the entries \[\], has "),
        ("gathered", {"mine": {}}, r"gathered.* must have the entries .*, has \['mine'\]"),
    ):
        with pytest.raises(ValueError, match=said):
            sparse.load_state_dict({**state, key: value})
    sparse.load_state_dict(state)
    assert sparse.step_count == state["step"] == 0
    sparse.remove()


def test_a_copy_of_the_weights_fits_theirs_or_is_refused():
    """Weights behind a soft mask: of the right shape and type, and taken as they are."""
    model, _, _ = setup()
    sparse = attach(model, often("soft-filter"), torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
    state = sparse.state_dict()
    name, own = next(iter(state["shadow"].items()))
    for wrong in (own[:1], own.to(torch.float16), None):
        with pytest.raises(ValueError, match=f"shadow.{name}.* must be a tensor of shape"):
            sparse.load_state_dict({**state, "shadow": {**state["shadow"], name: wrong}})
    sparse.load_state_dict({**state, "shadow": {**state["shadow"], name: own + 1}})
    assert torch.equal(sparse.state_dict()["shadow"][name], own + 1)
    sparse.remove()


def test_a_step_that_a_scaler_skips_does_not_count():
    """An overflow: no hook runs, nothing moves, zeros stand."""
    for name in ("gradual", "movement"):
        model, x, y = setup()
        own = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = attach(model, often(name), own)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(STEPS):
            own.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if step % 5 == 2:
                loss = loss * float("inf")
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            scaler.scale(loss).backward()
            scaler.step(own)
            scaler.update()
            assert not broken(model, sparse.masks)
            if step % 5 == 2:
                assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        assert sparse.step_count == STEPS - STEPS // 5
        sparse.remove()


def test_an_average_of_the_weights_is_pruned_too():
    model, x, y = setup()
    own = torch.optim.AdamW(model.parameters(), lr=0.02)
    sparse = attach(model, often("gradual"), own)
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(STEPS):
        own.zero_grad()
        F.cross_entropy(model(x), y).backward()
        own.step()
        average.update_parameters(model)
        assert not broken(model, sparse.masks)
    assert broken(average.module, sparse.masks)  # it remembers what was removed
    sparse.apply_to(average.module)
    assert not broken(average.module, sparse.masks)
    with pytest.raises(ValueError, match=r"^The model lacks parameter 'layers\.0\.weight'"):
        sparse.apply_to(average)
    sparse.finish()


def test_clipping_does_not_count_removed_weights():
    model, x, y = setup(norm=False)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = Recipe(score=Constant(), selection=RandomK(), schedule=Static())
    sparse = attach(model, recipe, own, density=0.3)
    F.cross_entropy(model(x), y).backward()
    masks = sparse.masks
    kept = [p.grad[masks[n]] if n in masks else p.grad for n, p in model.named_parameters()]
    expected = torch.cat([g.flatten() for g in kept]).norm()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    torch.testing.assert_close(norm, expected)


def test_a_closure_is_refused_or_wired_by_hand():
    def run(name, closures):
        model, x, y = setup()
        own = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = attach(model, often(name), own)
        if closures:
            sparse.by_hand()
        for step in range(STEPS):

            def closure(step=step):
                own.zero_grad()
                F.cross_entropy(model(batch(x, y, step)[0]), batch(x, y, step)[1]).backward()
                if closures:
                    sparse.before_step()

            if closures:
                own.step(closure)
            else:
                closure()
                own.step()
        sparse.finish(strict=True)
        return model

    for name in ("rigl", "movement", "gradual"):
        one, other = run(name, closures=True), run(name, closures=False)
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
        )
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("rigl"), own)
    with pytest.raises(ValueError, match=r"^The optimizer was given a closure"):
        own.step(lambda: F.cross_entropy(model(x), y))
    with pytest.raises(ValueError, match=r"^The optimizer was given a closure"):
        own.step(closure=lambda: F.cross_entropy(model(x), y))
    sparse.by_hand()
    with pytest.raises(RuntimeError, match=r"^The optimizer made a step without `before_step`"):
        own.step()
    sparse.remove()


def test_a_step_that_did_not_come_is_cancelled():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("movement"), own).by_hand()
    for _ in range(8):
        own.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparse.before_step()
        own.step()
    values = [p.detach().clone() for p in model.parameters()]
    sparse.before_step()
    assert broken(model, sparse.masks)  # the dense weights, for the step
    sparse.cancel()
    assert not broken(model, sparse.masks)
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
    assert sparse.step_count == 8


def test_a_loop_without_an_optimizer_counts_its_own_steps():
    model, x, y = setup()
    recipe = often("rigl")
    sparse = attach(model, recipe, None)
    other, _, _ = setup()
    own = torch.optim.SGD(other.parameters(), lr=0.1)
    twin = attach(other, recipe, own)
    for _ in range(STEPS):
        own.zero_grad()
        F.cross_entropy(other(x), y).backward()
        own.step()
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparse.before_step()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
        sparse.step()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))
    with pytest.raises(ValueError, match=r"^Steps of the optimizer count by themselves"):
        twin.step()
    assert sparse.finish(strict=True).cost_after == twin.finish(strict=True).cost_after


def test_the_end_is_checked():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, often("gradual"), own) as sparse:
        for _ in range(10):
            F.cross_entropy(model(x), y).backward()
            own.step()
        with pytest.raises(
            ValueError, match=r"ended at step 10, before the last change .* step 28"
        ):
            sparse.finish(strict=True)
        with pytest.warns(RuntimeWarning, match=r"the density is 0\.\d+"):
            pruned = sparse.finish()
    assert 0.2 < pruned.plan.density < 1
    assert sum(r.density * r.mask.numel() for r in pruned.layers.values()) == round(
        pruned.plan.density * (12 * 16 + 16 * 10 + 10 * 5)
    )
    for again in (sparse.finish, sparse.before_step, sparse.after_step, sparse.step):
        with pytest.raises(ValueError, match=r"^(This Sparsifier is finished|Steps of the opt)"):
            again()
    F.cross_entropy(model(x), y).backward()
    own.step()  # the hooks are gone
    assert broken(model, pruned.masks)


@each
def test_what_comes_out_goes_on_like_any_pruned_network(name, tmp_path):
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often(name), own, density=0.5)
    for _ in range(STEPS):
        F.cross_entropy(model(x), y).backward()
        own.step()
    pruned = sparse.finish(strict=True)
    loaded = prunus.load(pruned.save(tmp_path / "net"), model=setup()[0])
    assert loaded.recipe == pruned.recipe
    assert all(torch.equal(m, loaded.masks[n]) for n, m in pruned.masks.items())
    assert all(
        torch.equal(v, loaded.model.state_dict()[k]) for k, v in pruned.model.state_dict().items()
    )
    small = pruned.compact(x)
    torch.testing.assert_close(small.eval()(x), model.eval()(x))
    if name == "soft-filter":
        assert sum(p.numel() for p in small.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
        assert pruned.cost_after.density <= 0.5


def test_densities_by_layer_and_plans():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = often("gradual")
    sparse = attach(model, recipe, own, density={"layers.0": 0.1, "layers.6": 0.5})
    for step in range(1, STEPS + 1):
        F.cross_entropy(model(x), y).backward()
        own.step()
        if step == 12:
            counts = [int(m.sum()) for m in sparse.masks.values()]
            at = [recipe.schedule.density(12 / STEPS, d) for d in (0.1, 0.5)]
            assert counts == [count_of(at[0], 192), 160, count_of(at[1], 50)]
    assert [int(m.sum()) for m in sparse.masks.values()] == [count_of(0.1, 192), 160, 25]
    sparse.finish(strict=True)
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = Plan(kept={"layers.0": 31, "layers.3": 40, "layers.6": 50})
    sparse = attach(model, recipe, own, density=plan)
    for step in range(1, STEPS + 1):
        F.cross_entropy(model(x), y).backward()
        own.step()
        counts = [int(m.sum()) for m in sparse.masks.values()]
        assert counts[2] == 50
        if 8 <= step < 28:
            assert 31 < counts[0] < 192
    assert counts == [31, 40, 50]
    assert dict(sparse.finish(strict=True).plan.kept) == dict(plan.kept)


def test_a_plan_that_leaves_all_layers_equally_dense_follows_the_course():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = often("gradual")
    plan = Plan(kept={"layers.0": 48, "layers.3": 40, "layers.6": 12})
    sparse = attach(model, recipe, own, density=plan)
    for step in range(1, STEPS + 1):
        F.cross_entropy(model(x), y).backward()
        own.step()
        if step in (12, 20):
            density = recipe.schedule.density(step / STEPS, 100 / 402)
            for mask, size in zip(sparse.masks.values(), (192, 160, 50), strict=True):
                assert int(mask.sum()) == pytest.approx(density * size, abs=1)
    assert [int(m.sum()) for m in sparse.masks.values()] == [48, 40, 12]


def test_models_and_optimizers_that_do_not_go_together():
    model, x, _ = setup()
    own = torch.optim.SGD(list(model.parameters())[3:], lr=0.1)
    with pytest.raises(
        ValueError, match=r"^The optimizer does not hold 'layers\.0\.weight' \(1 of 3"
    ):
        attach(model, "gradual", own, steps=1000)
    attach(model, "gradual", own, steps=1000, exclude="layers.0").remove()
    with pytest.raises(ValueError, match=r"^LBFGS evaluates the loss several times"):
        attach(model, "gradual", torch.optim.LBFGS(model.parameters()), steps=1000)
    with pytest.raises(TypeError, match=r"^`optimizer` must be a torch\.optim\.Optimizer"):
        attach(model, "gradual", "adam", steps=1000)
    with pytest.raises(TypeError, match=r"^`model` must be a torch\.nn\.Module"):
        prunus.sparsify("model", "gradual", 0.1, optimizer=None, steps=1000)
    with pytest.raises(ValueError, match=r"^Recipe 'soft-filter' removes nodes.* example="):
        prunus.sparsify(model, "soft-filter", 0.5, optimizer=None, steps=1000)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"^`steps` must be a whole number >= 1, got 0"):
        attach(model, "gradual", own, steps=0)
    with pytest.raises(ValueError, match=r"^No step from 0\.1 to 0\.7 of 10 is a multiple"):
        attach(model, "gradual", own, steps=10)
    for density in (0, 1.5, None, float("nan")):
        with pytest.raises(ValueError, match=r"^`density` "):
            attach(model, "gradual", own, density=density, steps=1000)
    with pytest.raises(ValueError, match=r"^A training follows a density, got a budget of bytes"):
        attach(model, "gradual", own, density=prunus.Budget(bytes=1000), steps=1000)
    assert [p.grad for p in model.parameters()] == [None] * 10
    first = attach(model, "gradual", own, steps=1000)
    with pytest.raises(ValueError, match=r"^Masks are held on the model already"):
        attach(model, "gradual", own, steps=1000)
    first.remove()
    pruned = prunus.prune(model, "magnitude", 0.5)
    held = pruned.hold(torch.optim.SGD(pruned.model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"^Masks are held on the model already"):
        attach(pruned.model, "gradual", own, steps=1000)
    held.remove()
    attach(pruned.model, "gradual", None, steps=1000).remove()


def test_a_parameter_that_was_replaced_is_named():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("gradual"), own)
    model.layers[3].weight = nn.Parameter(model.layers[3].weight.detach().clone())
    F.cross_entropy(model(x), y).backward()
    for _ in range(3):
        own.step()
    with pytest.raises(ValueError, match=r"^Parameter 'layers\.3\.weight' was replaced"):
        own.step()
    sparse.remove()


def test_gradients_and_weights_that_are_not_finite_are_named():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("rigl"), own)
    for step in range(4):
        F.cross_entropy(model(x), y).backward()
        if step == 3:
            model.layers[3].weight.grad[0, 0] = float("nan")
            values = [p.detach().clone() for p in model.parameters()]
            with pytest.raises(
                ValueError, match=r"^The gradient of 'layers\.3\.weight' is not fin"
            ):
                own.step()
            assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
        else:
            own.step()
    sparse.remove()
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("gradual"), own)
    F.cross_entropy(model(x), y).backward()
    model.layers[3].weight.grad[0, 0] = float("nan")
    for _ in range(7):
        own.step()
    with pytest.raises(ValueError, match=r"^`layers\.3\.weight` must be finite"):
        own.step()
    sparse.remove()


def test_infinite_gradients_of_removed_weights_do_no_harm():
    model, x, y = setup(norm=False)
    own = torch.optim.AdamW(model.parameters(), lr=0.02)
    recipe = Recipe(score=Constant(), selection=RandomK(), schedule=Static())
    sparse = attach(model, recipe, own, density=0.3)
    for _ in range(3):
        own.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for n, m in sparse.masks.items():
            model.get_parameter(n).grad[~m] = float("inf")
        own.step()
    assert not broken(model, sparse.masks)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_width_one_density_one_and_half_precision():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    for density in (1.0, 0.5, 1e-6):
        for name in EDGES:
            sparse = prunus.sparsify(model, often(name), density, optimizer=own, steps=STEPS)
            for _ in range(STEPS):
                model(torch.ones(2, 1)).square().sum().backward()
                own.step()
            assert sparse.finish(strict=True).cost_after.density >= 0.5  # the minimum of a layer
    model, x, y = setup(dtype=torch.bfloat16)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("movement"), own)
    for _ in range(STEPS):
        F.cross_entropy(model(x).float(), y).backward()
        own.step()
    assert abs(sparse.finish(strict=True).cost_after.density - 0.2) < 0.003


def test_the_same_seed_gives_the_same_training():
    def run(seed):
        model, x, y = setup()
        own = torch.optim.AdamW(model.parameters(), lr=0.02)
        sparse = attach(model, often("set"), own, seed=seed)
        torch.manual_seed(torch.seed() % 2**31)  # the global generator has no part in it
        for step in range(STEPS):
            own.zero_grad()
            F.cross_entropy(model(batch(x, y, step)[0]), batch(x, y, step)[1]).backward()
            own.step()
        return sparse.finish(strict=True).masks

    one, again, other = run(0), run(0), run(1)
    assert all(torch.equal(m, again[n]) for n, m in one.items())
    assert any(not torch.equal(m, other[n]) for n, m in one.items())


def test_copies_of_the_model_are_free():
    model, x, y = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = attach(model, often("gradual"), own)
    other = copy.deepcopy(model)
    second = torch.optim.SGD(other.parameters(), lr=0.1)
    twin = attach(other, often("gradual"), second)
    for _ in range(8):
        F.cross_entropy(other(x), y).backward()
        second.step()
    assert (sparse.step_count, twin.step_count) == (0, 8)
    sparse.remove()
    twin.remove()


def test_nothing_is_left_behind():
    model, _, _ = setup()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse = attach(model, prunus.recipes["rigl"], own, steps=1000)
        sparse.remove()
    assert not own._optimizer_step_pre_hooks
    assert not own._optimizer_step_post_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert repr(sparse).startswith("Sparsifier('rigl', step 0 of 1000, density 0.199)")
    del sparse
    gc.collect()


def test_growth_reads_the_gradients_it_declares():
    assert GradientGrowth().reads_gradient
    assert not RandomGrowth().reads_gradient
