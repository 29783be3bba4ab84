"""Recipes as values: their readable form, their digest, and what they refuse."""

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prunus
from models import build
from prunus.allocation import ERK, LAMP, Global, Uniform
from prunus.compensation import LeastSquares
from prunus.granularity import NM, Edge, EdgePerRow, Node
from prunus.joint import OBC, OBS, SparseGPT
from prunus.parts import NODES
from prunus.presets import ADVICE, PRESETS, recipes, resolve
from prunus.recipe import Recipe, parse
from prunus.schedules import SCHEDULES, AtInit, Iterative
from prunus.scores import SNIP, Constant, Magnitude, RemovalError
from prunus.selection import KDPP, RandomK, TopK

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HAND_MADE = [
    Recipe(granularity=NM(2, 4), score=RemovalError(), compensation=LeastSquares(ridge=1e-3)),
    Recipe(granularity=Node(multiple_of=8), score=Magnitude(side="both", reduction="l2")),
    Recipe(granularity=EdgePerRow(), selection=KDPP(shape="linear", bandwidth=0.25, jitter=1e-6)),
    Recipe(allocation=Global(minimum=0), schedule=AtInit(rounds=5), inputs="pruned"),
    Recipe(allocation=ERK(), schedule=Iterative(rounds=2), selection=RandomK(rescaled=True)),
    Recipe(allocation=LAMP(power=1.0), compensation=LeastSquares(solver="pinv", intercept=True)),
]
EVERY = {**recipes, **{f"hand-made {i}": r for i, r in enumerate(HAND_MADE)}}


@pytest.mark.parametrize("name", EVERY)
def test_the_repr_evaluates_back(name):
    recipe = EVERY[name]
    assert parse(repr(recipe)) == recipe
    assert parse(f"\n {recipe!r} ") == recipe
    assert hash(parse(repr(recipe))) == hash(recipe)
    assert parse(repr(recipe)).digest == recipe.digest
    assert re.fullmatch(r"[0-9a-f]{16}", recipe.digest)


def test_digests_differ_and_stay():
    assert len({r.digest for r in EVERY.values()}) == len(set(map(repr, EVERY.values())))
    assert len(set(map(repr, EVERY.values()))) == len(EVERY)
    # written down: a run of an earlier version is found again
    assert Recipe().digest == "7f6ffe022f47667f"


KEPT = json.loads((Path(__file__).parent / "reference" / "recipe_digests.json").read_text())


@pytest.mark.parametrize("name", KEPT)
def test_recipes_are_written_and_found_again_as_ever(name):
    """Saved folders and kept records hold these texts and digests."""
    was = KEPT[name]["repr"]
    now = was.replace("solver='cholesky'", "solver='auto'")  # which takes it at the sizes of then
    assert repr(EVERY[name]) == now
    assert EVERY[name].digest == KEPT[name]["digest"]
    for text in (was, now):
        assert parse(text).digest == EVERY[name].digest
        assert resolve(parse(text))[0] == resolve(EVERY[name])[0]
    assert parse(now) == EVERY[name]


def test_every_preset_also_with_least_squares():
    # the weights are found, rewound or trained, and not fitted
    alone = {"edge-popup", "lottery", *(n for n, p in PRESETS.items() if p.recipe.schedule.inside)}
    alone |= {
        n for n, p in PRESETS.items() if p.recipe.units in ("blocks", "experts")
    }  # nothing of them stays
    assert {"gradual", "gradual-layer", "set", "rigl", "movement", "soft-filter"} < alone
    assert len(recipes) == len(list(recipes)) == 2 * len(PRESETS) - len(alone)
    wanted = {
        "random-edge", "random-node", "magnitude", "magnitude-row", "magnitude-global", "wanda",
        "importance-node", "l1-filter", "dpp-edge", "dpp-node", "magnitude-erk", "magnitude-lamp",
    }  # fmt: skip
    assert wanted <= set(recipes)
    for name in PRESETS:
        base = recipes[name]
        assert PRESETS[name].paper
        assert PRESETS[name].says
        assert resolve(base) == (name, base)
        if name in alone:
            assert f"{name}+ls" not in recipes
            continue
        fitted = recipes[f"{name}+ls"]
        assert fitted == replace(base, compensation=LeastSquares())
        assert resolve(f"{name}+ls") == (f"{name}+ls", fitted)


LABELS = {  # what the recorded measurement calls a recipe
    "random-edge": "random", "magnitude-row": "magnitude", "wanda": "Wanda", "obs": "OBS",
    "dpp-edge": "k-DPP, β median", "sparsegpt": "SparseGPT", "random-node": "random-node",
    **{
        name: name
        for name in (
            "dpp-node", "importance-node", "obs-node", "greedy-forward", "greedy-imitation",
            "greedy-scales", "greedy-global", "forward-node",
        )
    },
}  # fmt: skip


def recorded(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_what_presets_say_was_measured_is_what_was_recorded():
    rows = recorded("which_selector")

    def mean(label: str, count: int, key: str) -> float:
        return statistics.mean(r[key] for r in rows if (r["method"], r["count"]) == (label, count))

    measured = {name: p.measured for name, p in PRESETS.items() if p.measured is not None}
    assert set(measured) == set(LABELS)
    for name, m in measured.items():
        label, count = LABELS[name], 255 if recipes[name].units == NODES else 157
        assert f"{mean(label, count, 'test_error'):.2f}" == f"{m.error:.2f}"
        assert f"{mean(f'{label}+ls', count, 'test_error'):.2f}" == f"{m.error_ls:.2f}"
        if m.layer_ls is None:
            assert recipes[name].units == NODES
        else:
            assert f"{mean(f'{label}+ls', count, 'layer_error'):.1e}" == f"{m.layer_ls:.1e}"
    said = " ".join(ADVICE)
    for label, count in (("OBS", 79), ("k-DPP, β median+ls", 79), ("magnitude+ls", 79)):
        assert f"{mean(label, count, 'test_error'):.2f}" in said
    for label in ("OBS", "magnitude+ls", "k-DPP, β median+ls", "SparseGPT+ls"):
        assert f"{mean(label, 157, 'layer_error'):.1e}".replace("e-0", "e-") in said


def test_what_the_advice_says_of_the_digits_cnn_is_what_was_recorded():
    said = " ".join(ADVICE)

    def mean(folder: str, recipe: str, budget: str) -> str:
        lines = (RESULTS / folder / "records.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        own = [
            100 * r["after"]["test_error"]
            for r in rows
            if (r["recipe"], r["budget"]) == (recipe, f"Budget(density={budget})")
        ]
        assert len(own) == 5
        return f"{statistics.mean(own):.2f}"

    for recipe in ("obs-global", "magnitude-global+ls", "obd+ls"):
        three = [mean("digits_cnn_edges", recipe, d) for d in ("0.2", "0.1", "0.05")]
        assert f"{three[0]}, {three[1]} and {three[2]} %" in said
    nodes = "digits_cnn_nodes"
    assert f"{mean(nodes, 'taylor-2017+ls', '0.25')} against " in said
    assert f"against {mean(nodes, 'random-node+ls', '0.25')} %" in said
    assert f"between {mean(nodes, 'mean-activation+ls', '0.5')} and 1.42 %" in said
    assert mean(nodes, "random-node+ls", "0.5") == "1.42"
    assert f"({mean(nodes, 'thinet', '0.5')} and {mean(nodes, 'thinet', '0.25')} %)" in said
    least = [mean(nodes, "greedy-global", d) for d in ("0.5", "0.25")]
    assert f"greedy-global leaves least ({least[0]} and {least[1]} %)" in said
    assert (
        f"forward-node+ls has the lowest mean ({mean(nodes, 'forward-node+ls', '0.25')} %)" in said
    )
    rows = [json.loads(x) for x in (RESULTS / nodes / "records.jsonl").read_text().splitlines()]
    names = {r["recipe"] for r in rows if "random in" not in r["recipe"]}
    for budget in ("0.5", "0.25"):
        bare = {n: float(mean(nodes, n, budget)) for n in names if "+ls" not in n}
        assert min(bare, key=bare.__getitem__) == "greedy-global"
    fitted = {n: float(mean(nodes, n, "0.25")) for n in names if "+ls" in n}
    assert min(fitted, key=fitted.__getitem__) == "forward-node+ls"


def test_what_the_advice_says_of_few_nodes_is_what_was_recorded():
    said = " ".join(ADVICE)

    def error(folder: str, recipe: str, *densities: float, task: str = "mnist-mlp") -> str:
        lines = (RESULTS / folder / "records.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found = []
        for density in densities:
            own = [
                100 * r["after"]["test_error"]
                for r in rows
                if (r["task"], r["recipe"], r["density_asked"]) == (task, recipe, density)
            ]
            assert len(own) == 5
            found.append(f"{statistics.mean(own):.2f}")
        return ", ".join(found[:-1]) + (" and " if found[:-1] else "") + found[-1]

    few = (0.125, 0.0625, 0.03125)
    called = {"random-node": "random draws", "importance-node": "importance"}
    for name in ("forward-node", "obs-node", *called):
        by = called.get(name, name)
        assert f"{error('mnist_nodes', f'{name}+ls', *few)} % by {by}" in said

    def trained_on(folder: str, recipe: str, density: float) -> str:
        lines = (RESULTS / folder / "records.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        own = [
            100 * (r["retrained"] or r["after"])["test_error"]
            for r in rows
            if (r["recipe"], r["density_asked"]) == (recipe, density)
        ]
        assert len(own) == 5
        return f"{statistics.mean(own):.2f}"

    for density in (0.125, 0.03125):
        ours = trained_on("mnist_nodes_retrained", "forward-node+ls", density)
        small = trained_on("mnist_mlp", "small dense (for nodes)", density)
        assert f"{ours} against {small} % at {100 * density:g} %" in said
    for name in ("forward-node", "importance-node"):
        dense, pruned = (
            error("ye2020_digits", f"{name}+ls{suffix}", 0.06, task="digits-cnn")
            for suffix in ("", ", pruned inputs")
        )
        assert f"from {dense} to {pruned} %" in said


def test_the_table_of_nodes_in_the_benchmark_is_what_was_recorded():
    text = (RESULTS.parents[1] / "docs" / "benchmark.md").read_text()
    part = text.split("### Node selections, without training")[1].split("points, paired")[0]
    table = [line for line in part.splitlines() if line.startswith("| `")]
    lines = (RESULTS / "mnist_nodes" / "records.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    shown = {}
    for line in table:
        name, *cells = (cell.strip().strip("*") for cell in line.strip("|").split("|"))
        shown[name.replace("`", "").replace('inputs="pruned"', "pruned inputs")] = cells
    assert len(shown) == 11
    for name, cells in shown.items():
        for density, cell in zip((0.75, 0.5, 0.25, 0.125, 0.0625, 0.03125), cells, strict=True):
            own = {
                r["seed"]: 100 * r["after"]["test_error"]
                for r in rows
                if (r["recipe"], r["density_asked"]) == (name, density)
            }
            assert sorted(own) == list(range(5))
            assert f"{statistics.mean(own.values()):.2f}" == cell


def test_what_the_advice_says_of_repulsion_is_what_was_recorded():
    said = " ".join(ADVICE)
    edges = [r for r in recorded("repulsion") if r["kernel"] == "edge"]
    nats = [r["odds"] + r["repulsion"] for r in edges]
    assert f"{min(nats):.0f} to {max(nats):.0f} nats" in said
    assert f"at most {max(r['repulsion'] for r in edges):.1f} are repulsion" in said
    published = [r for r in recorded("repulsion") if r["bandwidth"] == "10/60000"]
    assert max(r["offdiag_max"] for r in published if r["kernel"] == "node") < 1e-12
    means = [r["offdiag_mean"] for r in published if r["kernel"] == "edge"]
    assert f"kernel is {statistics.mean(means):.2f} off its diagonal" in said


@pytest.mark.parametrize("name", ["magnitud", "magnitude+", "magnitude+lsq", "", "wanda+ls+ls", 5])
def test_what_is_no_recipe(name):
    assert name not in recipes
    with pytest.raises(KeyError, match=r"Unknown recipe '.*\. ?.*"):
        recipes[name]
    if isinstance(name, str):
        with pytest.raises(ValueError, match=r"^Unknown recipe "):
            resolve(name)


def test_names_that_are_near():
    message = "Unknown recipe 'magnitud'. Did you mean magnitude, magnitude+ls, magnitude-row?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resolve("magnitud")
    message = "`recipe` must be a name in prunus.recipes or a Recipe, got int."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        resolve(5)
    own = Recipe(score=Magnitude(reduction="l2"))
    assert resolve(own) == (f"recipe-{own.digest[:8]}", own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TopK(", "'TopK(' is no recipe: '(' was never closed. Write e.g. TopK()."),
        ("Top()", "Unknown part of a recipe 'Top'. Did you mean TopK?"),
        ("TopK", "'TopK' in 'TopK' is neither a number, a word in quotes, nor a part such as "
         "TopK()."),
        ("NM(2)", "NM(2): NM.__init__() missing 1 required positional argument: 'm'."),
        ("NM(2, 4, o=1)", "NM(2, 4, o=1): NM.__init__() got an unexpected keyword argument 'o'."),
        ("NM(5, 4)", "`n` must be a whole number in [1, 4], got 5."),
        ("NM(**{'n': 1})", "\"NM(**{'n': 1})\" unpacks a mapping. Write every field out."),
        ("os.system('x')", "\"os.system('x')\" in \"os.system('x')\" is neither a number, a "
         "word in quotes, nor a part such as TopK()."),
        ("Recipe(score=1 + one)", "'1 + one' in 'Recipe(score=1 + one)' is neither a number, a "
         "word in quotes, nor a part such as TopK()."),
        ("KDPP(shape='gausian')", "Unknown shape of a kernel 'gausian'. Did you mean gaussian?"),
    ],
)  # fmt: skip
def test_text_that_is_no_recipe(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize("text", ["", "\0", "Recipe(", "a b"])
def test_text_that_is_no_python(text):
    with pytest.raises(ValueError, match=r"is no recipe: .*\. Write e\.g\. TopK\(\)\.$"):
        parse(text)


def double(layer, mask):
    return 2 * layer.weight.masked_fill(~mask, 0.0), layer.bias


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"granularity": Edge}, TypeError, "`granularity` must be an instance such as Edge(), got"),
        ({"score": Magnitude}, TypeError, "`score` must be an instance that can be called, got"),
        ({"selection": "TopK"}, TypeError, "`selection` must be an instance that can be called"),
        ({"inputs": "sparse"}, ValueError, "`inputs` must be 'dense' or 'pruned', got 'sparse'."),
        ({"selection": KDPP()}, ValueError, f"{KDPP()!r} draws one set per output row"),
        ({"granularity": NM(2, 4), "allocation": Global()}, ValueError, "NM(n=2, m=4) fixes every "
         "count, so `allocation` must be Uniform(), got Global(minimum=1)."),
        ({"granularity": Node(), "allocation": ERK()}, ValueError, "ERK(minimum=1) serves edges, "
         "so `granularity` must not be Node(multiple_of=1), whose units are nodes. Choose another "
         "`allocation` or `granularity`."),
        ({"granularity": Node(), "selection": OBS()}, ValueError, "OBS(ridge=0.0001) removes "
         "edges, not nodes."),
        ({"granularity": NM(2, 4), "selection": OBS()}, ValueError, "OBS(ridge=0.0001) fills pools "
         "of a layer or a row, got NM(n=2, m=4). Edge() has a layer in each pool, EdgePerRow() a"),
        ({"granularity": Edge(), "selection": OBC()}, ValueError, "OBC(ridge=0.0001, size=1) fills "
         "pools of a row or a block, got Edge()."),
        ({"selection": SparseGPT(), "compensation": double}, ValueError, "SparseGPT(ridge=0.01, "
         "block=128) chooses and compensates in one sweep, so `compensation` must be "
         "NoCompensation() or LeastSquares(), got"),
    ],
)  # fmt: skip
def test_compositions_that_are_refused(parts, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        Recipe(**parts)


def negative(layer):
    return -layer.weight.abs()


def test_a_plain_function_is_a_score():
    model, x = build("mlp-relu")
    smallest = prunus.prune(model, Recipe(score=negative), 0.2)
    largest = prunus.prune(model, Recipe(score=Magnitude()), 0.8)
    for name in largest.layers:
        kept = smallest.layers[name].mask
        assert kept.sum() == round(0.2 * kept.numel())
        assert torch.equal(kept, ~largest.layers[name].mask)
    assert repr(Recipe(score=negative)).count("test_recipe.negative") == 1
    assert Recipe(score=negative).digest != Recipe().digest
    del x


def test_what_a_recipe_needs():
    assert Recipe().statistics == ()
    assert not Recipe().needs_data
    assert recipes["wanda"].statistics == ("diag",)
    assert recipes["wanda+ls"].statistics == ("gram",)
    assert recipes["dpp-node"].statistics == ("gram", "mean")
    assert recipes["importance-node"].needs_data  # an example to trace
    assert Recipe(inputs="pruned").needs_data
    assert Recipe(score=SNIP(), compensation=LeastSquares()).needs_labels
    assert not Recipe(score=RemovalError(), compensation=LeastSquares()).needs_labels
    assert Recipe() == Recipe(Edge(), Magnitude(), Uniform(), TopK())
    assert Recipe(score=Constant()) != Recipe()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_end_at_the_whole_budget(name):
    steps = list(SCHEDULES[name]()())
    assert [s.index for s in steps] == list(range(len(steps)))
    assert [s.last for s in steps] == [False] * (len(steps) - 1) + [True]
    shares = [s.budget for s in steps if s.budget is not None]
    assert shares[-1] == 1.0
    assert shares == sorted(set(shares))
    if name != "OneShot":
        with pytest.raises(ValueError, match=r"^`rounds` must be a whole number >= 1, got 0\.$"):
            SCHEDULES[name](rounds=0)


@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "TopK(" * 200 + ")" * 200, "-" * 3000 + "1", "[" * 100 + "]" * 100, "9" * 30_000],
)
def test_texts_too_long_or_deep_are_refused(text):
    with pytest.raises(ValueError, match=r"nested too deeply|more than the 20000|is no recipe"):
        parse(text)


def test_every_preset_is_within_the_limits():
    for name, recipe in prunus.recipes.items():
        assert parse(repr(recipe)) == recipe, name
