"""Records in SQL and as Parquet: the same rows, each cell once, cut-off lines left out."""

import csv
import json
import sys
from dataclasses import fields, replace

import pytest

from bench_runs import GRID, table
from prunus.bench import Record, compact, query, read_records, run
from prunus.bench.grid.sweep import finished, unique
from prunus.bench.record.sql import TYPES
from prunus.cli.app import main

pytest.importorskip("duckdb", reason="the extra sql is not installed")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of a real run, with a failed one that was mended, and a line that was cut off."""
    folder = tmp_path_factory.mktemp("sql")
    grid = {**GRID, "seeds": 1, "certificate": 20, "densities": [0.5], "latency": True}
    run(grid, out=folder / "records", cache=folder / "cache")
    (file,) = (folder / "records").glob("*.jsonl")
    failed = replace(read_records(file).rows[3], status="failed", traceback='it\'s\n"broken"')
    lone = replace(failed, id="lone")
    first = folder / "records" / "a.jsonl"
    lines = [json.dumps(r.to_row(), sort_keys=True) + "\n" for r in (failed, lone)]
    first.write_text("".join(lines) + lines[0][:200])
    return folder / "records"


def test_every_field_has_a_type():
    assert set(TYPES) - {"format"} <= {field.name for field in fields(Record)}


def test_parquet_holds_the_records_as_they_were(records, tmp_path):
    expected = unique(read_records(records).rows)
    assert compact(records, tmp_path / "all.parquet") == len(expected)
    stored = read_records(tmp_path / "all.parquet")
    assert sorted(stored.rows, key=lambda r: r.id) == sorted(expected, key=lambda r: r.id)
    assert sum(r.status == "failed" for r in stored.rows) == 1
    again = tmp_path / "again.parquet"
    compact([tmp_path / "all.parquet", records], again)
    assert read_records(again).rows == stored.rows


def test_a_grid_goes_on_from_parquet(records, tmp_path):
    grid = {**GRID, "seeds": 1}
    run(grid, out=tmp_path / "r", cache=tmp_path / "c")
    rows = table(tmp_path / "r")
    compact(tmp_path / "r", tmp_path / "r" / "all.parquet")
    for file in (tmp_path / "r").glob("*.jsonl"):
        file.unlink()
    assert len(finished(tmp_path / "r")) == len(rows)
    assert run(grid, out=tmp_path / "r", cache=tmp_path / "c").ran == 0
    assert table(tmp_path / "r") == rows


def test_scores_are_asked_for_in_sql(records):
    rows = [r for r in unique(read_records(records).rows) if r.status == "done"]
    found = query(
        records,
        "SELECT recipe, schedule, seed, final['test_error'] AS error, parameters[2] AS left_over, "
        "extra ->> '$.role' AS role FROM records WHERE status = 'done' ORDER BY id",
    )
    expected = [
        {
            "recipe": r.recipe, "schedule": r.schedule, "seed": r.seed,
            "error": (r.retrained or r.after)["test_error"], "left_over": r.parameters[1],
            "role": r.extra["role"],
        }
        for r in sorted(rows, key=lambda r: r.id)
    ]  # fmt: skip
    assert found == expected


def test_what_is_wrong_is_one_line(records, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no_such") as caught:
        query(records, "SELECT no_such FROM records")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="No records at"):
        query(tmp_path, "SELECT 1")
    (tmp_path / "bad.jsonl").write_text("{}\nno json\n{}\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl"):
        query(tmp_path, "SELECT 1")
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        compact(records, tmp_path / "x.csv")
    (tmp_path / "no.parquet").write_text("nothing")
    with pytest.raises(ValueError, match=r"no\.parquet"):
        read_records(tmp_path / "no.parquet")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"duckdb is not installed.*'prunus\[sql\]'"):
        query(records, "SELECT 1")


def test_on_the_command_line(records, tmp_path, monkeypatch, capsys):
    words = ["prunus", "report", str(records), "--sql", "SELECT count(*) AS n FROM records",
             "--compact", str(tmp_path / "all.parquet")]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    out, err = capsys.readouterr()
    number = len(unique(read_records(records).rows))
    assert list(csv.DictReader(out.splitlines())) == [{"n": str(number)}]
    assert f"{number} records" in err
