"""The main commands: demo, prune, list, report, each with what goes wrong."""

import importlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from prunus.bench import RecordWriter, load_data, read_records
from prunus.bench.data.models import mlp
from prunus.bench.record import Record
from prunus.cli import app as program
from prunus.cli.app import main
from prunus.surgery import CompactionError

FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

def wrong():
    return 3

steps = []

def train(model, step):
    steps.append(step.index)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a user's module and data, as the current one."""
    (tmp_path / "mine_for_tests.py").write_text(FACTORY)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 6))
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(80) % 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the program."""
    monkeypatch.setattr("sys.argv", ["prunus", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


NET = "mine_for_tests:net"


def test_prune_saves_what_it_says(home, monkeypatch, capsys):
    code, out, err = run(
        monkeypatch, capsys, "prune", NET, "--recipe", "magnitude+ls", "--density", "0.5",
        "--data", "own.npz", "--out", "small",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "density 0.5 of the selected weights" in " ".join(out.split())
    names = sorted(re.sub("-[0-9a-f]+\\.", ".", p.name) for p in (home / "small").iterdir())
    assert names == ["pruned.json", "report.html", "run.json", "weights.safetensors"]
    facts = json.loads((home / "small" / "run.json").read_text())
    assert facts["data_fingerprint"] == load_data("own.npz").fingerprint
    import mine_for_tests

    import prunus

    loaded = prunus.load(home / "small", mine_for_tests.net)
    assert int((loaded.model[0].weight != 0).sum()) == 24
    page = (home / "small" / "report.html").read_text()
    assert "Pruned by magnitude+ls" in page
    for text in (out, page):  # in pieces: on all of a page the pattern would take 20 s
        said = re.findall(r"latency: .{,400}", " ".join(text.split()))
        assert any(re.search(r"\(.*, batch 60, \d+ threads?\)", piece) for piece in said)


def test_prune_nodes_keeps_a_compact_network(home, monkeypatch, capsys):
    code, _, err = run(
        monkeypatch, capsys, "prune", NET, "--recipe", "importance-node+ls", "--density", "0.5",
        "--data", "own.npz", "--out", "small",
    )  # fmt: skip
    assert (code, err) == (0, "")
    import mine_for_tests

    import prunus

    loaded = prunus.load(home / "small", mine_for_tests.net)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert loaded.compact()[0].weight.shape == (4, 6)
    torch.testing.assert_close(loaded.compact()(x), loaded.model(x), atol=1e-5, rtol=1e-5)


def test_prune_goes_on_from_a_saved_folder_and_trains(home, monkeypatch, capsys):
    import mine_for_tests

    first = ("prune", NET, "--recipe", "magnitude", "--density", "0.8", "--out", "a")
    assert run(monkeypatch, capsys, *first)[0] == 0
    code, _, err = run(
        monkeypatch, capsys, "prune", "a", "--factory", NET, "--recipe", "magnitude", "--density",
        "0.25", "--train", "mine_for_tests:train", "--rounds", "3", "--out", "b",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert mine_for_tests.steps == [0, 1, 2]
    facts = json.loads((home / "b" / "pruned.json").read_text())
    assert "Iterative(rounds=3)" in facts["recipe"]


def test_prune_with_weights_globs_and_a_recipe_in_words(home, monkeypatch, capsys):
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    save_file(net.state_dict(), home / "w.safetensors")
    code, _, err = run(
        monkeypatch, capsys, "prune", NET, "--weights", "w.safetensors", "--recipe",
        "Recipe(granularity=EdgePerRow(), selection=RandomK())", "--density", "0=0.5",
        "--density", "2=0.25", "--out", "small",
    )  # fmt: skip
    assert (code, err) == (0, "")
    import mine_for_tests

    import prunus

    model = prunus.load(home / "small", mine_for_tests.net).model
    kept = [int((model[i].weight != 0).sum()) for i in (0, 2)]
    assert kept == [24, 8]
    where = model[0].weight != 0
    assert torch.equal(model[0].weight[where], net[0].weight[where])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "nothing:net"), "MODEL: there is no module 'nothing'"),
        (("prune", "mine_for_tests:nat"), "mine_for_tests has no 'nat'. Did you mean net"),
        (("prune", "mine_for_tests:wrong"), "returned int, a torch.nn.Module is needed"),
        (("prune", "mine_for_tests:steps"), "is a list, not a function"),
        (("prune", "nowhere"), "MODEL must be package.module:factory or a folder"),
        (
            ("prune", "mine.py"),
            "MODEL must name the function that builds the network, as mine:function",
        ),
        (("prune", "taken"), "holds weights and no code. Give --factory"),
        (("prune", NET, "--density", "0.5", "--out", "taken"), "taken exists already"),
        (("prune", NET, "--density", "0.5", "--out", "own.npz"), "own.npz exists already"),
        (("prune", NET, "--recipe", "magntude", "--density", "0.5"), "Did you mean magnitude"),
        (("prune", NET, "--recipe", "Recipe(score=Magnitud())"), "Did you mean Magnitude"),
        (("prune", NET, "--density", "0"), "--density must lie in (0, 1], got 0.0"),
        (("prune", NET, "--density", "1.5"), "--density must lie in (0, 1], got 1.5"),
        (("prune", NET, "--density", "nan"), "--density must lie in (0, 1], got nan"),
        (
            ("prune", NET, "--density", "half"),
            "--density must be a number, such as 0.2 or 20%, got 'half'",
        ),
        (("prune", NET, "--density", "0.5", "--density", "0=1"), "must be one number, or GLOB"),
        (("prune", NET, "--density", "fc*=0.5", "--recipe", "magnitude"), "fc*"),
        (("prune", NET, "--budget", "params=3"), "Did you mean parameters"),
        (("prune", NET, "--budget", "macs=inf"), "--budget macs must be a whole number"),
        (("prune", NET, "--budget", "bytes=nan"), "--budget bytes must be a whole number"),
        (("prune", NET, "--budget", "macs=9.5"), "--budget macs must be a whole number"),
        (
            ("prune", NET, "--recipe", "magnitude", "--density", "0.5", "--device", "nope"),
            "--device must name a torch device",
        ),
        (("prune", NET, "--budget", "latency=0.5"), "--budget latency needs --data"),
        (("prune", NET, "--budget", "macs=5", "--density", "0.5"), "not both"),
        (("prune", NET, "--density", "0.5", "--recipe", "wanda"), "needs data"),
        (("prune", NET, "--density", "0.5", "--data", "digts"), "Did you mean digits"),
        (("prune", NET, "--density", "0.5", "--data", "no.npz"), "There is no file no.npz"),
        (("prune", NET, "--density", "0.5", "--rounds", "2"), "--rounds needs --train"),
        (("prune", NET, "--density", "0.5", "--rounds", "0"), "--rounds must be a whole number"),
        (("prune", NET, "--weights", "w.safetensors"), "there is no file w.safetensors"),
        (("prune", NET, "--weights", "own.npz"), "is no whole safetensors file"),
        (("prune", NET, "--density", "0.5", "--data", "digits"), "could not run on the data"),
        (("sensitivity", NET, "--budget", "20%", "--drop", "1%"), "--budget or --drop, not both"),
        (("sensitivity", NET, "--out", "plan.json"), "a plan, which needs --budget or --drop"),
        (("list", "slections"), "Did you mean selections"),
        (("report", "nowhere"), "No records at nowhere"),
        (("report", "records", "--metric", "acuracy"), "Did you mean accuracy"),
        (("demo", "--seeds", "0"), "--seeds must be a whole number >= 1, got 0"),
        (("demo", "--out", "own.npz/in"), "own.npz"),
    ],
)
def test_bad_input_costs_one_line_and_exit_code_2(home, monkeypatch, capsys, arguments, message):
    (home / "taken").mkdir()
    (home / "taken" / "file").write_text("here already")
    with RecordWriter(home / "records") as writer:
        writer.append(RECORD)
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("prunus: ")
    assert err.count("\n") == 1


def test_weights_that_do_not_fit(home, monkeypatch, capsys):
    save_file(torch.nn.Linear(3, 3).state_dict(), home / "w.safetensors")
    code, _, err = run(monkeypatch, capsys, "prune", NET, "--weights", "w.safetensors")
    assert code == 2
    assert "w.safetensors does not fit the network" in err
    assert err.count("\n") == 1
    assert "wrapper" not in err
    inside = importlib.import_module(NET.split(":")[0])
    own = getattr(inside, NET.split(":")[1])().state_dict()
    save_file({f"module.{name}": value for name, value in own.items()}, home / "w.safetensors")
    code, _, err = run(monkeypatch, capsys, "prune", NET, "--weights", "w.safetensors")
    assert code == 2
    assert "its names are the network's behind 'module.', as those of a wrapper are" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("theory",)])
def test_nothing_asked_for_is_said(monkeypatch, capsys, arguments):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "Usage: prunus" in out
    path = " ".join(("prunus", *arguments))
    assert err == f"prunus: Nothing was asked for. See `{path} --help`.\n"


@pytest.mark.parametrize(
    "kind",
    ["recipes", "granularities", "scores", "allocations", "selections", "joint", "compensations",
     "schedules", "statistics", "tasks", "data", "reproductions"],
)  # fmt: skip
def test_list_prints_every_table(monkeypatch, capsys, kind):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(monkeypatch, capsys, "list", kind)
    assert code == 0
    names = {
        "recipes": "magnitude-row[+ls]",
        "granularities": "NM(n, m",
        "scores": "Magnitude(",
        "allocations": "Uniform(",
        "selections": "KDPP(",
        "compensations": "LeastSquares(",
        "schedules": "Iterative(rounds=3)",
        "statistics": "Curvature(loss='cross-entropy')",
        "tasks": "mnist-mlp",
        "data": "digits",
    }
    assert names.get(kind, "") in out
    assert out.strip()


@pytest.mark.parametrize("command", ["demo", "prune", "report", "list"])
def test_help_shows_an_example_that_parses(command):
    result = CliRunner().invoke(program.app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    text = " ".join(result.output.split()).partition("Example")[2]
    examples = re.findall(rf"prunus {command} (.*?)(?= prunus |╭)", text)
    assert examples
    group = typer.main.get_command(program.app)
    for example in examples:
        words = example.replace("│", "").split()
        group.commands[command].make_context(command, words)  # raises on an unknown option


RECORD = Record(
    id="a",
    task="digits-mlp",
    recipe="magnitude",
    recipe_repr="Recipe(granularity=Edge())",
    recipe_hash="h",
    seed=0,
    density_asked=0.5,
    density=0.5,
    before={"accuracy": 0.9, "test_error": 0.1},
    after={"accuracy": 0.8, "test_error": 0.2},
    parameters=(100, 50),
    versions={"prunus": "0"},
)


def test_report_from_records_alone_is_the_same_every_time(home, monkeypatch, capsys):
    with RecordWriter(home / "records") as writer:
        for name, shift in (("magnitude", 0.0), ("magnitude+ls", -0.1), ("wanda", 0.2)):
            for density in (0.5, 0.1):
                after = {"accuracy": 0.7 - shift, "test_error": 0.3 + shift}
                row = replace(RECORD, recipe=name, density_asked=density, after=after)
                writer.append(replace(row, layer_density={"fc1": density}))
        writer.append(replace(RECORD, status="failed", traceback="no", after={}))
    with writer.path.open("ab") as file:
        file.write(b'{"format": 1, "id": "to')
    pages = []
    for name in ("one.html", "two.html"):
        code, out, err = run(monkeypatch, capsys, "report", "records", "--out", name)
        assert (code, out.strip()) == (0, name)
        assert "the last line is cut off" in err
        pages.append((home / name).read_bytes())
    assert pages[0] == pages[1]
    text = pages[0].decode()
    assert "6 finished runs, 1 failed." in text
    assert "Sun et al. (2024)" in text
    assert "Test error (%) against density" in text


DEMO = {"nets": ["digits-mlp"], "densities": [0.5, 0.1], "seeds": 2}
SHOWN = ["magnitude", "magnitude+ls", "random-node", "random-node+ls"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demonstration in small, made by this process, and the folder of its trained networks."""
    from prunus.bench.demo import run_demo

    folder = tmp_path_factory.mktemp("demo")
    cache = folder / "cache"
    return run_demo(folder / "report", names=SHOWN, cache=cache, **DEMO), cache


def test_demo_in_small(demo):
    names, (made, _) = SHOWN, demo
    stored = read_records(made.lines)
    assert len(stored.rows) == len({row.id for row in stored.rows}) == 16
    assert [row.model_seed for row in stored.rows].count(0) == 8
    for row in stored.rows:
        assert row.density <= row.density_asked + 1e-9
        assert row.before["test_error"] < 0.04
        assert row.parameters[1] < row.parameters[0] == 50610
    timed = [row for row in stored.rows if row.latency is not None]
    assert {(row.recipe, row.model_seed) for row in timed} == {("random-node", 0)}
    assert all(row.latency["threads"] >= 1 for row in timed)
    plain, better = (
        {(r.density_asked, r.seed): r.after["test_error"] for r in stored.rows if r.recipe == name}
        for name in ("magnitude", "magnitude+ls")
    )
    assert all(better[key] <= plain[key] for key in plain)
    text = made.page.read_text()
    for part in ("What pruning looks like", "Layer by layer", "Measured latency", "Recipes"):
        assert part in text
    table = made.table("digits-mlp")
    assert [row["recipe"] for row in table] == names
    by_hand = [100 * r.after["test_error"] for r in stored.rows
               if r.recipe == "magnitude" and r.density_asked == 0.1]  # fmt: skip
    assert table[0]["density 0.1"] == pytest.approx(sum(by_hand) / 2, rel=1e-3)


def test_demo_knows_its_recipes():
    from prunus.bench.demo import BASIC, basic_recipes, trained_recipes
    from prunus.presets import recipes

    assert set(basic_recipes()) <= set(trained_recipes()) <= set(recipes)
    assert len(basic_recipes()) == 2 * len(BASIC)


@pytest.mark.parametrize("net", ["digits-mlp", "digits-cnn"])
def test_every_recipe_of_the_demo_serves_its_networks(net):
    """What `prunus demo` runs: one that refused a network would end it for all."""
    from prunus import compare
    from prunus.bench import load_data
    from prunus.bench.data.tasks import fresh_model, task
    from prunus.bench.demo import basic_recipes

    model = fresh_model(task(net), 0).eval()
    data = load_data("digits").batches(limit=60)
    found = compare(
        model, basic_recipes(), [0.5], data=data, evaluate=lambda pruned: 0.0, seeds=1,
        progress=False,
    )  # fmt: skip
    assert sorted(row["recipe"] for row in found.records) == sorted(basic_recipes())
    assert all(row["density_met"] <= 0.5 for row in found.records)


def test_demo_is_the_same_on_several_workers(demo, tmp_path):
    from prunus.bench.demo import run_demo

    made, cache = demo
    name = "random-node+ls"
    again = run_demo(tmp_path, names=[name], cache=cache, workers=2, **DEMO)

    def told(records):
        return [(r.id, r.after, r.layer_density) for r in records if r.recipe == name]

    assert len(told(again.records)) == 4
    assert told(again.records) == told(made.records)


def test_pruning_page_of_a_small_net(tmp_path):
    import prunus

    data = load_data("digits")
    net = mlp((64, 12, 10)).eval()
    pruned = prunus.prune(net, "magnitude+ls", 0.25, data=data.batches(limit=200))
    text = pruned.report(tmp_path / "page.html").read_text()
    assert text.count('role="img"') == 4  # before, after, and a mask for each of two layers
    assert "Before" in text
    assert "multiply-adds per sample" in text


@pytest.mark.parametrize("error", [CompactionError("layer `0` differs"), MemoryError("too wide")])
def test_a_refusal_costs_one_line_and_a_fault_of_ours_its_traceback(
    home, monkeypatch, capsys, error
):
    engine = importlib.import_module("prunus.engine")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(engine, "prune", refuse)
    code, _, err = run(monkeypatch, capsys, "prune", NET, "--density", "0.5")
    assert (code, err) == (2, f"prunus: {error}\n")
    error = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(monkeypatch, capsys, "prune", NET, "--density", "0.5")


def test_a_plan_that_was_written_is_pruned_to(home, monkeypatch, capsys):
    net, data = "mine_for_tests:net", str(home / "own.npz")
    code, _, err = run(
        monkeypatch, capsys, "plan", net, "--limit", "0.3", "--data", data, "--out", "plan.json"
    )
    assert code == 0, err
    code, _, err = run(
        monkeypatch, capsys, "prune", net, "--recipe", "magnitude", "--plan", "plan.json",
        "--data", data, "--blocks", "*", "--out", "smaller",
    )  # fmt: skip
    assert code == 0, err
    asked = json.loads((home / "plan.json").read_text())["kept"]
    assert json.loads((home / "smaller" / "pruned.json").read_text())["plan"]["kept"] == asked
    (home / "plan.json").write_text('{"kept": {"9": 3}}')
    for wrong, said in [
        (("--plan", "none.json"), "No plan at none.json. Write one with prunus plan --out."),
        (("--plan", "plan.json"), "Unknown layer in the plan '9'"),
        (("--plan", "own.npz"), "--plan own.npz "),
        (("--plan", "plan.json", "--density", "0.5"), "not both"),
    ]:
        code, _, err = run(
            monkeypatch, capsys, "prune", net, "--recipe", "magnitude", *wrong, "--out", "other"
        )
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
        if (home / "other").exists():
            (home / "other").rmdir()
