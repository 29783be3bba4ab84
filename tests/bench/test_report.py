"""The benchmark's page: built from records alone, filtered and downloaded in a real browser."""

import csv
import json
import random
import re
import time
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from prunus.bench import Record, RecordWriter, content_id
from prunus.bench.statistics.tables import tables
from prunus.cli.app import main
from prunus.report.grid import grid_page, latex_table, markdown_table, pivot, write_static

RECIPES = ("magnitude", "wanda+ls", "magnitude-global")


def record(task, recipe, density, seed, value, **rest) -> Record:
    name = content_id(task=task, recipe=recipe, density=density, seed=seed)
    given = {
        "id": name, "task": task, "recipe": recipe, "recipe_repr": recipe, "recipe_hash": recipe,
        "seed": seed, "density_asked": density, "density": density, "schedule": "none",
        "budget": f"Budget(density={density})", "after": {"test_error": value},
        "before": {"test_error": 0.01}, "parameters": (1000, round(1000 * density)),
        "macs": (900, round(900 * density)), "bytes": (4000, round(3000 * density) + 100),
        "versions": {"prunus": "0"}, "seconds": 1.0, "extra": {"baselines": {}},
    }  # fmt: skip
    return Record(**{**given, **rest})


def some(tasks=("one", "two"), recipes=RECIPES, densities=(0.5, 0.25, 0.1), seeds=3):
    """Records with a null baseline that `magnitude` beats clearly and the others do not."""
    draw = random.Random(0)
    rows = []
    for task in tasks:
        for density in densities:
            for seed in range(seeds):
                noise = draw.random() * 1e-3
                null = record(task, "random-edge", density, seed, 0.1 / density + noise)
                rows.append(null)
                for i, recipe in enumerate(recipes):
                    value = 0.1 / density + noise - (0.05 if i == 0 else 0)
                    value += draw.random() * 1e-6
                    extra = {"baselines": {"random": null.id}}
                    rows.append(record(task, recipe, density, seed, value, extra=extra))
    return rows


def test_tables_mark_what_beats_the_baselines():
    found = tables(some(), "test_error")
    marks = {(r["task"], r["recipe"]): r["not_beaten"] for r in found.methods}
    assert marks["one", "magnitude"] == "none"
    assert marks["two", "wanda+ls"] == "random"
    assert marks["one", "random-edge"] is None
    assert any("everywhere by magnitude" in line for line in found.says)
    front = {r["recipe"] for r in found.methods if r["front_parameters"] and r["density"] == 0.5}
    assert front == {"magnitude"}
    with pytest.raises(ValueError, match="Unknown metric 'acuracy'"):
        tables(some(), "acuracy")
    with pytest.raises(ValueError, match="None of 1 records is of a finished run"):
        tables([replace(some()[0], status="failed")], "test_error")


def test_tables_for_papers():
    found = tables(some(recipes=("magnitude", "a_b")), "test_error")
    rows = pivot(found, "one", "none")
    assert list(rows[0]) == ["recipe", "density 0.5", "density 0.25", "density 0.1"]
    by_name = {row["recipe"]: row for row in rows}
    assert re.fullmatch(r"\*\*0\.15\d\d ± 0\.0\d+\*\*", by_name["magnitude"]["density 0.5"])
    assert by_name["a_b"]["density 0.5"].endswith(" r")
    text = markdown_table(rows)
    assert text.splitlines()[1] == "| --- | ---: | ---: | ---: |"
    assert len(text.splitlines()) == 2 + len(rows)
    latex = latex_table(rows)
    assert latex.startswith("\\begin{tabular}{lrrr}\nrecipe & density 0.5")
    assert "a\\_b & " in latex
    assert "\\textbf{0.15" in latex
    assert latex.count("\\\\") == 1 + len(rows)


def test_any_order_of_records_gives_the_same_bytes(tmp_path):
    rows = some()
    pages = []
    for i, order in enumerate((rows, rows[::-1])):
        with RecordWriter(tmp_path / str(i)) as writer:
            for row in order:
                writer.append(row)
        found = tables(order, "test_error")
        pages.append(grid_page(found, title="t"))
        write_static(found, tmp_path / f"static{i}")
    assert pages[0] == pages[1]
    for file in (tmp_path / "static0").iterdir():
        assert file.read_bytes() == (tmp_path / "static1" / file.name).read_bytes(), file.name
    names = {p.name for p in (tmp_path / "static0").iterdir()}
    assert {"methods.csv", "one-none.md", "one-none.tex", "one-none.svg", "one-none.png"} <= names
    assert {"critical-difference.svg", "critical-difference.png"} <= names
    picture = (tmp_path / "static0" / "critical-difference.svg").read_text()
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.count("<circle") == len(found.ranks["recipes"])


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["prunus", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def test_from_grid_to_page_on_the_command_line(tmp_path, monkeypatch, capsys):
    config = tmp_path / "grid.yaml"
    config.write_text(
        "tasks: ['bench_tiny:tiny']\nrecipes: [magnitude, wanda+ls]\ndensities: [0.5]\n"
        "schedules: [retrain]\nseeds: 2\n"
    )
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    common = ("bench", config, "--out", tmp_path / "records")
    code, out, _ = run(monkeypatch, capsys, *common, "--dry-run")
    assert (code, out.splitlines()[-1]) == (
        0,
        "10 cells, 10 to do: time unknown until a first cell has run; --probe runs one of each "
        "kind; 2 dense networks to train, time unknown",
    )  # fmt: skip
    assert not (tmp_path / "records").exists()
    code, out, _ = run(monkeypatch, capsys, *common, "--probe")
    # magnitude, wanda+ls, wanda, random and small-dense, of the first seed
    assert re.search(
        r"10 cells, 5 to do: about \d+ s with 1 worker; before, about \d+ s to train 1 dense", out
    )
    assert len(out.splitlines()) == 12  # and of what they are
    assert sum(line.startswith("done") for line in out.splitlines()) == 5
    code, out, _ = run(monkeypatch, capsys, *common)
    assert (code, out.splitlines()[1]) == (0, "10 cells: 5 run now, 10 done, 0 failed")
    code, out, _ = run(monkeypatch, capsys, *common, "--dry-run", "--set", "seeds=3")
    assert re.search(r"15 cells, 5 to do: about \d+ s with 1 worker", out)
    page = tmp_path / "page.html"
    code, out, _ = run(
        monkeypatch, capsys, "report", tmp_path / "records", "--out", page,
        "--static", tmp_path / "static",
    )  # fmt: skip
    assert code == 0
    first = page.read_bytes()
    run(monkeypatch, capsys, "report", tmp_path / "records", "--out", page)
    assert page.read_bytes() == first
    assert b"no-compensation" in first
    for words, message in (
        (("bench", tmp_path / "none.yaml"), "none.yaml"),
        ((*common, "--set", "recipes.0=magnitud"), "Did you mean magnitude"),
        ((*common, "--part", "3"), "--part must be i/n"),
        ((*common, "--executor", "slurm", "--set", "seeds=4"), "Unknown executor 'slurm'"),
        (("report", tmp_path / "records", "--metric", "x"), "Unknown metric 'x'"),
        (("report", tmp_path / "records", "--interval", "x"), "Unknown interval 'x'"),
    ):
        code, _, err = run(monkeypatch, capsys, *words)
        assert code == 2
        assert message in err
        assert "Traceback" not in err


DRAWN = "document.body && document.body.dataset.drawn == '2'"


def test_page_in_a_browser(tmp_path, tab):
    page = tmp_path / "page.html"
    page.write_text(grid_page(tables(some(), "test_error"), title="Two tasks"))
    for width, dark in ((1280, False), (390, False), (1000, True)):
        tab.look(width, dark=dark)
        tab.open(f"file://{page}", DRAWN)
        assert tab.complaints() == []
        assert tab.requests() == []
        assert tab.run("document.documentElement.scrollWidth") <= width
    rows = "[...document.querySelectorAll('#scores figure.table tbody tr')]"
    shown = f"{rows}.filter(r => !r.hidden).length"
    marks = "document.querySelectorAll('#chart-scores .mark-symbol path').length"
    before = tab.run(shown), tab.run(marks)
    assert before[0] == 12  # the first task's rows: 4 recipes at 3 densities
    for key, value in (("recipe", "magnitude"), ("task", "two")):
        menu = f"document.getElementById('filter-{key}')"
        tab.run(f"{menu}.value = '{value}'")
        tab.run(f"{menu}.dispatchEvent(new Event('input'))")
    assert tab.run(shown) == 3
    tab.wait(f"{marks} < {before[1]}")
    tab.run("document.getElementById('shown-csv').click()")
    file = tab.downloads / "shown-methods.csv"
    limit = time.monotonic() + 240
    while not file.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(r["task"], r["recipe"], r["density"]) for r in rows] == [
        ("two", "magnitude", d) for d in ("0.5", "0.25", "0.1")
    ]


def many() -> list[Record]:
    """About 10 000 records: 10 tasks × 10 recipes × 20 densities × 5 seeds, and the baseline."""
    densities = [round(0.05 * i, 2) for i in range(1, 21)]
    rows = some([f"task{i}" for i in range(10)], [f"recipe{i}" for i in range(9)], densities, 5)
    assert len(rows) == 10_000
    return rows


@pytest.mark.slow
def test_ten_thousand_records_are_fast(tmp_path, tab):
    rows = many()
    begun = time.process_time()
    text = grid_page(tables(rows, "test_error"), title="many")
    built = time.process_time() - begun
    page = tmp_path / "page.html"
    page.write_text(text)
    tab.look(1280)
    opened = tab.open(f"file://{page}", DRAWN)
    print(json.dumps({"build_s": built, "open_s": opened, "bytes": len(text)}))
    assert built < 5
    assert opened < 3


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_drawn_where_there_are_some(seeds):
    """A layer without numbers has an infinite extent, of which Vega warns."""
    found = tables(some(seeds=seeds), "test_error")
    text = grid_page(found, title="A benchmark")
    specs = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)[1])
    marks = [layer["mark"]["type"] for layer in specs["scores"]["layer"]]
    assert marks.count("rule") == any(row["low"] is not None for row in found.methods)
    assert marks.count("rule") == (seeds > 1)
