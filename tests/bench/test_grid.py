"""Grids: every mistake at once with its place, cells once each, baselines unless switched off."""

import sys
from dataclasses import replace

import pytest
import torch

import bench_tiny
from prunus import Budget, Plan
from prunus.bench import BASELINES, cells, load_data, load_grid, read_records, run
from prunus.bench.grid.budgets import budget_of, density_text, words
from prunus.bench.grid.cell import baselines, recipe_of
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.supplies import batches_of, draw_of
from prunus.bench.statistics.paired import against_baselines, differences, group_rows
from prunus.cli.app import main
from prunus.selection import RandomK

GOOD = """\
tasks: [digits-mlp]
recipes:
  - magnitude
  - {name: mine, recipe: "Recipe(score=Magnitude(), allocation=Global())"}
  - wanda+ls
densities: [0.5, 0.1]
budgets: [{parameters: 10000}]
schedules: [none, retrain, "Iterative(rounds=2)"]
seeds: 2
"""


def write(tmp_path, text=GOOD):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


def test_cells_are_the_product_and_the_baselines(tmp_path):
    grid = load_grid(write(tmp_path))
    bare = load_grid(write(tmp_path), [f"without=[{', '.join(BASELINES)}]"])
    assert len(cells(bare)) == 3 * 3 * 3 * 2
    every = cells(grid)
    assert len({cell.id for cell in every}) == len(every)
    seeds = [cell.seed for cell in every]
    assert seeds == sorted(seeds)  # cells of one dense network together
    # random: 9 places; its layer counts for `mine`; a small net for none and for the two that
    # train; wanda without least squares; the one-shot twin of Iterative is in the grid already.
    assert len(every) / 2 == 27 + 9 + 9 + 3 * 2 + 9
    ids = {cell.id for cell in every}
    for cell in cells(bare):
        assert {null.id for null in baselines(cell).values()} <= ids


def test_baselines_apply_where_they_mean_something(tmp_path):
    by_label = {
        (cell.label, cell.schedule): baselines(cell)
        for cell in cells(load_grid(write(tmp_path), [f"without=[{', '.join(BASELINES)}]"]))
    }
    assert set(by_label["magnitude", "none"]) == {"random", "small-dense"}
    assert set(by_label["mine", "none"]) == {"random", "random-layers", "small-dense"}
    assert set(by_label["wanda+ls", "retrain"]) == {
        "random", "small-dense", "no-compensation", "no-retraining",
    }  # fmt: skip
    found = by_label["wanda+ls", "Iterative(rounds=2)"]
    assert found["no-retraining"].schedule == "none"
    assert recipe_of(found["no-compensation"].recipe) == recipe_of("wanda")
    assert isinstance(recipe_of(found["random"].recipe).selection, RandomK)


def test_identity_is_of_content_not_of_names(tmp_path):
    one = cells(load_grid(write(tmp_path)))
    two = cells(load_grid(write(tmp_path), ["recipes.1.name=other"]))
    assert {c.id for c in one} == {c.id for c in two}
    assert not {c.id for c in one} & {c.id for c in cells(load_grid(write(tmp_path)), threads=2)}
    three = cells(load_grid(write(tmp_path), ["calibration=500"]))
    assert not {c.id for c in one} & {c.id for c in three}


def test_every_mistake_at_once_with_its_line(tmp_path):
    path = write(
        tmp_path,
        """\
tasks: [digits-mpl, "nowhere.at:all", "bench_tiny:train"]
recipes:
  - magnitud
  - Recipe(selection=TopK(1))
  - TopK()
densities: [0, 0.1, x]
budgets:
  - {parameters: 10.5}
  - {weights: 10}
schedules: [none, retrains]
seeds: -2
witout: [random]
without: [rando]
device: gpu7
""",
    )
    with pytest.raises(ValueError) as caught:
        load_grid(path)
    message = str(caught.value)
    for part in (
        f"{path}: 15 mistakes\n",
        "line 1, tasks.0: Unknown task 'digits-mpl'. Did you mean digits-mlp",
        "line 1, tasks.1: Task 'nowhere.at:all' could not be imported: No module named 'nowhere'",
        "line 1, tasks.2: 'bench_tiny:train' is a function, a prunus.bench.Task is needed",
        "line 3, recipes.0: Unknown recipe 'magnitud'. Did you mean magnitude",
        "line 4, recipes.1: TopK(1):",
        "line 5, recipes.2: 'TopK()' is a part of a recipe",
        "line 6, densities.0: `density` must lie in (0, 1], got 0",
        "line 6, densities.2: a density is a number in (0, 1], or a share as 30%, got 'x'",
        "line 8, budgets.0: `parameters` must be a whole number, got 10.5",
        "line 9, budgets.1: Unknown budget 'weights'",
        "line 10, schedules.1: Unknown schedule 'retrains'",
        "line 11, seeds: `seeds` must be a whole number >= 1, got -2",
        "line 12, witout: Unknown key 'witout'. Did you mean without?",
        "line 13, without.0: Unknown baseline 'rando'. Did you mean random",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["densities=[0.5, 0.5]"], r"Two cells have one identity: `digits-mlp  magnitude  dens"),
        (["recipes.1.name=magnitude"], "Two recipes are called 'magnitude'"),
        (["recipes.7=wanda"], r"--set recipes.7=wanda: the grid has no place 'recipes.7'"),
        (["recipes.0=wnda"], r"--set recipes.0: Unknown recipe 'wnda'. Did you mean wanda"),
        (["seeds"], "--set takes key=value, got 'seeds'"),
        (["densities=[]", "budgets=[]"], "densities: missing"),
        (["tasks=[]"], "--set tasks: List should have at least 1 item"),
    ],
)
def test_changes_are_checked_like_the_file(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_grid(write(tmp_path), changes)


def test_no_yaml_and_no_file(tmp_path):
    with pytest.raises(ValueError, match="is no YAML"):
        load_grid(write(tmp_path, "tasks: [a"))
    with pytest.raises(ValueError, match="must hold keys such as tasks"):
        load_grid(write(tmp_path, "just words"))
    with pytest.raises(FileNotFoundError):
        load_grid(tmp_path / "nowhere.yaml")


def test_n_of_m_brings_its_own_density():
    values = {"tasks": ["digits-mlp"], "recipes": ["Recipe(granularity=NM(2, 4))"], "seeds": 1}
    found = cells(make_grid(values))
    assert {cell.budget for cell in found} == {"Budget(density=0.5)"}


def test_tasks_of_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "mine_good": "from bench_tiny import tiny as thing",
        "mine_lacks": "import not_installed_anywhere",
        "mine_errs": "thing = no_such_name",
        "mine_torn": "def f(:",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
        config = write(tmp_path, f"tasks: ['{name}:thing']\nrecipes: [wanda]\ndensities: [0.5]\n")
        monkeypatch.setattr("sys.argv", ["prunus", "bench", str(config), "--dry-run"])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        if name == "mine_good":
            assert (stop.value.code or 0, err) == (0, "")
            assert "15 cells, 15 to do" in out
            continue
        says = {
            "mine_lacks": "No module named 'not_installed_anywhere'",
            "mine_errs": "NameError in mine_errs: name 'no_such_name' is not defined",
            "mine_torn": "SyntaxError in mine_torn: ",
        }[name]
        assert stop.value.code == 2
        assert says in err
        assert len(err.splitlines()) == 2


LAYERED = {
    "tasks": ["digits-mlp"],
    "recipes": ["magnitude"],
    "densities": [0.5, {"fc1": 0.08, "fc*": 0.3}],
    "budgets": [{"kept": {"fc2": 300, "fc1": 1000}}, {"parameters": 10000}],
    "seeds": 1,
}


def test_budgets_by_layer_are_texts_and_targets():
    found = {
        cell.budget: cell for cell in cells(make_grid({**LAYERED, "without": ["small-dense"]}))
    }
    assert set(found) == {
        "Budget(density=0.5)",
        "{'fc1': 0.08, 'fc*': 0.3}",
        "Plan(kept={'fc1': 1000, 'fc2': 300})",
        "Budget(parameters=10000)",
    }
    assert sorted(map(words, found)) == [
        "density fc1=0.08, fc*=0.3",
        "density=0.5",
        "kept fc1=1000, fc2=300",
        "parameters=10000",
    ]
    assert budget_of("{'fc1': 0.08, 'fc*': 0.3}") == {"fc1": 0.08, "fc*": 0.3}
    plan = budget_of("Plan(kept={'fc1': 1000, 'fc2': 300})")
    assert isinstance(plan, Plan)
    assert plan.kept == {"fc1": 1000, "fc2": 300}
    assert budget_of("Budget(parameters=10000)") == Budget(parameters=10000)
    # Where the budget says what each layer keeps, a random mask with equal counts is `random`.
    uneven = make_grid({**LAYERED, "recipes": ["magnitude-global"]})
    names = {
        cell.budget: set(baselines(cell))
        for cell in cells(uneven)
        if cell.label == "magnitude-global"
    }
    assert "random-layers" in names["Budget(density=0.5)"]
    assert "random-layers" not in names["{'fc1': 0.08, 'fc*': 0.3}"]
    assert "random-layers" not in names["Plan(kept={'fc1': 1000, 'fc2': 300})"]


def test_budgets_by_layer_keep_what_they_say(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    grid = {
        "tasks": ["bench_tiny:tiny"],
        "recipes": ["magnitude", "importance-node+ls"],
        "densities": [{"0": 0.25, "2": 0.5}],
        "budgets": [{"kept": {"0": 6, "2": 12}}],
        "seeds": 1,
        "rescore": ["bare", "emitting"],
    }
    swept = run(grid, out=tmp_path / "records", progress=False)
    assert swept.failed == 0
    known = {(r.recipe, r.budget): r for r in read_records(tmp_path / "records").rows}
    edges = known["magnitude", "Plan(kept={'0': 6, '2': 12})"]
    assert edges.layer_density == {"0": 6 / 72, "2": 12 / 144, "4": 1.0}
    assert edges.density_asked is None
    by_layer = known["magnitude", "{'0': 0.25, '2': 0.5}"]
    assert by_layer.layer_density == {"0": 0.25, "2": 0.5, "4": 1.0}
    nodes = known["importance-node+ls", "Plan(kept={'0': 6, '2': 12})"]
    assert nodes.parameters == (6 * 12 + 12 + 144 + 12 + 26, 6 * 6 + 6 + 72 + 12 + 26)
    assert {name.rpartition("test_error")[0] for name in nodes.after if "test_error" in name} == {
        "", "bare_", "emitting_",
    }  # fmt: skip
    bare = known["importance-node", "Plan(kept={'0': 6, '2': 12})"]
    assert nodes.after["bare_test_error"] == bare.after["test_error"]
    rows = group_rows(list(known.values()), "bare_test_error")
    assert {row["budget"] for row in rows} == {
        "kept 0=6, 2=12", "kept units 0=6, 2=12", "density 0=0.25, 2=0.5",
    }  # fmt: skip


def test_equal_counts_of_weights_and_of_units_are_two_places(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    grid = {
        "tasks": ["bench_tiny:tiny"],
        "recipes": ["magnitude", "importance-node"],
        "budgets": [{"kept": {"0": 6}}],
        "seeds": 2,
        "without": ["small-dense"],
    }
    run(grid, out=tmp_path / "records", progress=False)
    records = read_records(tmp_path / "records").rows
    pairs = {(r["recipe"], r["other"]) for r in differences(records, "test_error")}
    assert pairs == {("magnitude", "random-edge"), ("importance-node", "random-node")}


def test_different_budgets_by_layer_stay_apart_in_words():
    texts = [density_text({"0": value, "2": 0.5}) for value in (0.1234561, 0.1234562)]
    assert words(texts[0]) != words(texts[1])
    one, other = {"2": 0.5, "0": 0.1}, {"0": 0.1, "2": 0.5}
    assert density_text(one) == density_text(other)  # the order says nothing without globs
    assert density_text({"0": 0.1, "*": 0.5}) != density_text({"*": 0.5, "0": 0.1})


def test_counts_by_layer_are_reached_in_rounds(tmp_path, monkeypatch):
    """Kept weights after each round of a schedule: 72 · (9/72)^(i/3)."""
    counts = []

    def counting(model, data, *, generator, hold=None, progress=None):
        counts.append(int(model[0].weight.count_nonzero()))

    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bench_tiny.tiny", replace(bench_tiny.tiny, retrain=counting))
    grid = {
        "tasks": ["bench_tiny:tiny"],
        "recipes": ["magnitude"],
        "budgets": [{"kept": {"0": 9}}],
        "schedules": ["Iterative(rounds=3)"],
        "seeds": 1,
        "without": list(BASELINES),
    }
    assert run(grid, out=tmp_path / "records", progress=False).failed == 0
    assert counts == [36, 18, 9]


def test_rounds_end_without_a_training_where_the_grid_says_so(tmp_path, monkeypatch):
    """The same masks and scores after pruning; `none`, which trains nothing, stays one cell."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    grid = {
        "tasks": ["bench_tiny:tiny"],
        "recipes": ["wanda+ls"],
        "densities": [0.4],
        "schedules": ["none", "Refine(rounds=3)"],
        "seeds": 1,
    }
    done = {}
    for train in (True, False):
        folder = tmp_path / f"{train}"
        assert run(grid | {"train": train}, out=folder, progress=False).failed == 0
        done[train] = {(r.recipe, r.schedule): r for r in read_records(folder).rows}
    rounds = ("wanda+ls", "Refine(rounds=3)")
    trained, bare = done[True][rounds], done[False][rounds]
    assert trained.retrained != trained.after == bare.after
    assert bare.retrained is None
    assert trained.extra["masks"] == bare.extra["masks"]
    assert trained.id != bare.id
    assert done[True]["wanda+ls", "none"].id == done[False]["wanda+ls", "none"].id
    assert ("small dense", "retrain") in done[True]
    assert ("small dense", "none") in done[False]
    assert ("small dense", "retrain") not in done[False]
    assert make_grid(grid | {"train": True}) == make_grid(grid)
    for schedule in ("retrain", "Gradual(every=5)", "Rewinding(rounds=2)", "Iterative(rounds=2)"):
        with pytest.raises(ValueError, match=r"train: .* is not without a training"):
            make_grid(grid | {"train": False, "schedules": [schedule]})


def test_n_of_m_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    grid = {
        "tasks": ["bench_tiny:tiny"],
        "recipes": ["Recipe(granularity=NM(2, 4))"],
        "layers": ["2"],
        "seeds": 1,
    }
    swept = run(grid, out=tmp_path / "records", progress=False)
    assert (swept.done, swept.failed) == (3, 0)
    assert {r.density for r in read_records(tmp_path / "records").rows if r.extra["masks"]} == {0.5}


def test_rescored_metrics_are_compared_with_every_baseline(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    grid = {
        "tasks": ["bench_tiny:tiny"],
        "recipes": ["wanda+ls"],
        "densities": [0.5],
        "schedules": ["retrain"],
        "seeds": 2,
        "rescore": ["bare", "bare"],
    }
    run(grid, out=tmp_path / "records", progress=False)
    records = read_records(tmp_path / "records").rows
    rows = against_baselines(records, "bare_test_error")
    own = {row["baseline"] for row in rows if row["recipe"] == "wanda+ls"}
    assert own == {"random", "small-dense", "no-compensation", "no-retraining"}
    equal = next(r for r in rows if (r["recipe"], r["baseline"]) == ("wanda+ls", "no-compensation"))
    assert equal["advantage"] == 0.0  # the same masks, not compensated
    assert {cell.id for cell in cells(make_grid(grid))} == {
        cell.id for cell in cells(make_grid({**grid, "rescore": ["bare"]}))
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"densities": [{"fc1": 0}]}, r"densities.0: `fc1` must lie in \(0, 1\], got 0"),
        ({"densities": [{}]}, r"densities.0: densities by layer are"),
        ({"budgets": [{"kept": {"fc1": 2.5}}]}, r"budgets.0: `fc1` must be a whole number"),
        ({"budgets": [{"kept": 5}]}, r"budgets.0: `kept` is \{layer or group: count\}, got 5"),
        ({"budgets": [{"keep": 5}]}, r"Unknown budget 'keep'. Did you mean kept"),
        ({"densities": [{"fc7": 0.5}]}, r"digits-mlp: Unknown layer or glob 'fc7'"),
        ({"densities": [{"act1": 0.5}]}, r"digits-mlp: Unknown layer or glob 'act1'"),
        ({"densities": [{"fc1": 0.5}], "layers": ["fc2"]}, r"Unknown layer or glob 'fc1'"),
        ({"densities": [{1: 0.5, "1": 0.2}]}, r"densities.0: a layer is named twice"),
        ({"budgets": [{"kept": {"fc*": 10}}]}, r"digits-mlp: Unknown layer in `kept` 'fc\*'"),
        ({"budgets": [{"kept": {"fc3": 1001}}]}, r"asks for 1001 of the 1000 weights of 'fc3'"),
        ({"layers": ["conv*"]}, r"digits-mlp: Unknown layer or glob 'conv\*'"),
        ({"exclude": ["fc9"]}, r"digits-mlp: Unknown layer or glob 'fc9'. Did you mean fc"),
        ({"exclude": ["*"]}, r"digits-mlp: The model has no prunable layers left"),
        ({"rescore": ["bare"], "schedules": ["Iterative(rounds=2)"]}, r"rescore: masks of several"),
        ({"rescore": ["bear"]}, r"rescore.0: Unknown way to score masks 'bear'. Did you mean bare"),
    ],
)
def test_layers_that_are_not_there_are_said_before_the_run(changes, message):
    with pytest.raises(ValueError, match=message):
        make_grid({**LAYERED, **changes})


BOMB = "a: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"b{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, r"line \d+ unfolds to more than 100000 values"),
        ("tasks: &a [*a]", "line 1 holds an alias of itself"),
        ("tasks: [digits-mlp]\ntasks: [digits-mlp]", "line 2 has the key 'tasks' again"),
        ("[" * 5000, "nested too deeply"),
        ("seeds: 1000000000", "`seeds` must be at most 100000, got 1000000000"),
        ("tasks: !!python/name:os.system", "is no YAML"),
        ("seeds: " + "9" * 5000, "is no YAML"),
        ("x" * 2**21, "more than the 1048576 bytes"),
    ],
)
def test_grids_that_nobody_writes(text, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load_grid(write(tmp_path, text))


def test_a_grid_of_too_many_cells(tmp_path):
    text = "tasks: [digits-mlp]\nrecipes: [magnitude]\nseeds: 60000\ndensities: [0.1, 0.2]\n"
    with pytest.raises(ValueError, match=r"1 × 1 × 2 × 1 × 60000 cells .* more than 100000"):
        load_grid(write(tmp_path, text))


def test_one_network_for_all_seeds():
    values = {
        "tasks": ["digits-mlp"], "recipes": ["wanda"], "densities": [0.5], "seeds": 3,
        "calibration": 20, "without": list(BASELINES),
    }  # fmt: skip
    own, one = cells(make_grid(values)), cells(make_grid({**values, "network": 1}))
    assert [cell.model_seed for cell in own] == [0, 1, 2]
    assert [cell.model_seed for cell in one] == [1, 1, 1]
    assert not {cell.id for cell in own} & {cell.id for cell in one}
    assert [draw_of(cell) for cell in own] == [None] * 3
    data = load_data("digits")
    drawn = [batches_of(data, 20, draw_of(cell))[0][0] for cell in one]
    assert all(len(x) == 20 for x in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], batches_of(data, 20, 0)[0][0])
    assert torch.equal(batches_of(data, 20, None)[0][0], data.x_train[:20])
