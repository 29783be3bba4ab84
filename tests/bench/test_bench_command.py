"""`prunus bench` as it is met: an example, how many cells and why, Ctrl-C, lines in a log."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import prunus
from prunus import progress
from prunus.bench.grid.config import cells, count_said
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import finished
from prunus.cli.app import main
from prunus.cli.bench import EXAMPLE


def test_the_example_is_a_grid_and_says_its_cells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prunus", "bench", "--example"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    text = capsys.readouterr().out
    assert text == EXAMPLE
    (tmp_path / "grid.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["prunus", "bench", "grid.yaml", "--dry-run"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    out = capsys.readouterr().out
    assert "24 cells: 8 of the grid (1 task × 2 recipes × 2 budgets × 1 schedule × 2 seeds)" in out
    assert "16 null baselines (4 random, 4 small-dense, 8 no-compensation" in out
    assert len([line for line in out.splitlines() if line.startswith("to do")]) == 24
    monkeypatch.setattr(sys, "argv", ["prunus", "bench"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert "`prunus bench --example` prints one" in capsys.readouterr().err


def test_failed_cells_are_counted_by_what_they_said_and_in_the_exit_code(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_TEST_MENDED", str(tmp_path / "mended"))
    grid = {"name": "g", "tasks": ["bench_tiny:broken"], "recipes": ["magnitude"],
            "densities": [0.5], "schedules": ["none", "retrain"], "seeds": 1,
            "without": ["random", "random-layers", "small-dense"]}  # fmt: skip
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    command = ["prunus", "bench", "grid.yaml", "--cache", "cache"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"^1$"):
        main()
    said = capsys.readouterr()
    assert "2 cells: 2 run now, 1 done, 1 failed" in said.out
    assert "1 failed: RuntimeError: the rate was too high" in said.err
    monkeypatch.setattr(sys, "argv", [*command[:-1], "grid.yaml", "--out", "others"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert "cannot be made" in (err := capsys.readouterr().err)
    assert "Name another with --cache" in err


@pytest.mark.parametrize(
    "change",
    [{}, {"without": ["random", "small-dense", "no-compensation"]}, {"schedules": ["retrain"]},
     {"recipes": ["magnitude-global", "Recipe(granularity=NM(2, 4))"]}],
)  # fmt: skip
def test_the_count_that_is_said_is_the_count(change):
    grid = make_grid({**yaml.safe_load(EXAMPLE), **change})
    said = count_said(grid)
    every = cells(grid)
    assert said.startswith(f"{len(every)} cells: ")
    own = int(said.split("cells: ")[1].split()[0])
    nulls = len(every) - own
    assert (f"and {nulls} null baselines (" in said) == (nulls > 0)
    if nulls:
        inner = said.split("null baselines (")[1].split(";")[0]
        assert sum(int(part.split()[0]) for part in inner.split(", ")) == nulls


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress.progress_board("cells", 6) as board:
        for job in range(6):
            board.begin(job, "a cell", None)
            board.end(job, 1)
    said = capsys.readouterr().err.splitlines()
    assert said == [  # every 15 seconds at the most, of ten for each cell
        "cells: 2 of 6, 0:00:20, about 0:00:40 left",
        "cells: 4 of 6, 0:00:40, about 0:00:20 left",
        "cells: 6 of 6, 0:01:00, about 0:00:00 left",
    ]
    with progress.progress_board("cells", 1, progress=False) as board:
        board.begin(1, "a cell", None)
        board.end(1, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_says_what_is_there(tmp_path, workers):
    """To the whole group, as a terminal sends it; the same command then does the rest."""
    (tmp_path / "grid.yaml").write_text(EXAMPLE.replace("seeds: 2", "seeds: 1"))
    command = [sys.executable, "-c", "from prunus.cli.app import main; main()", "bench",
               "grid.yaml", "--workers", workers]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(prunus.__file__).parents[1])}
    env["PRUNUS_CACHE"] = str(tmp_path / "cache")
    run = subprocess.Popen(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while run.poll() is None and len(finished(tmp_path / "records")) < 2:
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=120)
    done = len(finished(tmp_path / "records"))
    assert run.returncode == 130
    assert f"prunus: interrupted: {done} of 12 cells are done in records; the same command" in err
    assert "leaked" not in err
    assert "Traceback" not in err
    again = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert f"12 cells: {12 - done} run now, 12 done, 0 failed" in again.stdout
