"""Records: nothing is lost, torn lines are counted, rows come back equal."""

import importlib.util
import json
import math
import os
import signal
import time
from dataclasses import replace

import pytest

from forks import FORK
from prunus.bench import Record, RecordWriter, content_id, host_facts, read_records
from prunus.bench.record import RecordIndex, store

ROW = Record(
    id=content_id(task="t", seed=0),
    task="t",
    recipe="magnitude",
    recipe_repr="Recipe()",
    recipe_hash="abc",
    seed=0,
    density_asked=0.2,
    density=0.2,
    before={"test_error": 0.03},
    parameters=(100, 20),
    extra={"note": "β"},
)


def test_rows_come_back_equal(tmp_path):
    rows = [replace(ROW, seed=seed) for seed in range(3)]
    with RecordWriter(tmp_path) as writer:
        for row in rows:
            writer.append(row)
    stored = read_records(tmp_path)
    assert list(stored.rows) == rows
    assert stored.torn == ()
    assert read_records([writer.path, tmp_path]).rows == (*rows, *rows)


def test_a_writer_without_records_leaves_no_file(tmp_path):
    with RecordWriter(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_content_id_is_of_content():
    assert content_id(a=1, b=[0.5]) == content_id(b=[0.5], a=1)
    assert content_id(a=1) != content_id(a=2)
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_id(a=float("nan"))


def test_torn_last_line_is_skipped_and_counted(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.append(ROW)
        writer.append(replace(ROW, seed=1))
    whole = writer.path.read_bytes()
    writer.path.write_bytes(whole[:-20])
    stored = read_records(tmp_path)
    assert [row.seed for row in stored.rows] == [0]
    assert stored.torn == (writer.path,)


def test_damage_in_the_middle_is_an_error(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.append(ROW)
        writer.append(ROW)
    lines = writer.path.read_bytes().split(b"\n")
    writer.path.write_bytes(b"\n".join([lines[0][:30], *lines[1:]]))
    with pytest.raises(ValueError, match=r"line 1 is damaged"):
        read_records(tmp_path)
    writer.path.write_bytes(lines[0].replace(b'"format": 1', b'"format": 2') + b"\n")
    with pytest.raises(ValueError, match=r"line 1: The row has format 2; .* Update prunus"):
        read_records(tmp_path)
    writer.path.write_bytes(b'{"format": 1, "id": "x"}\n')
    with pytest.raises(ValueError, match=r"line 1: The row is no record of prunus"):
        read_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="No records at"):
        read_records(tmp_path / "nowhere")


def test_a_full_disk_leaves_earlier_rows_whole(tmp_path, monkeypatch):
    real = os.pwrite
    with RecordWriter(tmp_path) as writer:
        writer.append(ROW)

        def half(file, data, place):
            if len(data) < 300:
                raise OSError(28, "No space left on device")
            return real(file, data[:200], place)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match=r"No space left.*records-.*jsonl"):
            writer.append(replace(ROW, seed=1))
        monkeypatch.setattr(os, "pwrite", real)
        writer.append(replace(ROW, seed=2))
    stored = read_records(tmp_path)
    assert [row.seed for row in stored.rows] == [0, 2]
    assert stored.torn == ()


def test_values_that_json_has_no_word_for(tmp_path):
    """They come back, by all ways, and the lines are JSON to everybody."""
    inf, nan = math.inf, math.nan
    row = replace(
        ROW,
        before={"loss": inf, "test_error": 0.1},
        after={"loss": nan, "test_error": 0.2},
        retrained={"loss": -inf, "test_error": 0.1},
        layer_error={"fc": nan},
        density=nan,
        extra={"values": [inf, {"a": nan}], "why": "NaN"},
    )
    assert row.not_finite == ("before.loss", "after.loss", "retrained.loss")
    with RecordWriter(tmp_path / "lines") as writer:
        writer.append(row)
    json.loads(writer.path.read_text(), parse_constant=pytest.fail)
    places = [tmp_path / "lines"]
    if importlib.util.find_spec("duckdb"):
        from prunus.bench.record.sql import compact, query

        compact(places, tmp_path / "rows.parquet")
        places.append(tmp_path / "rows.parquet")
        for place in places:
            found = query(place, "SELECT after['loss'] AS a, final['loss'] AS f FROM records")
            assert repr(found) == "[{'a': nan, 'f': -inf}]"
    for place in places:
        (back,) = read_records(place).rows
        assert back.status == "done"
        expected = replace(row, extra={"values": ["Infinity", {"a": "NaN"}], "why": "NaN"})
        assert repr(back) == repr(expected)
        assert back.not_finite == row.not_finite


def append_forever(folder, ready):
    with RecordWriter(folder) as writer:
        seed = 0
        while True:
            writer.append(replace(ROW, seed=seed))
            ready.value = seed = seed + 1


def test_killed_writers_lose_nothing_they_finished(tmp_path):
    counters = [FORK.Value("i", 0) for _ in range(2)]
    workers = [FORK.Process(target=append_forever, args=(tmp_path, c)) for c in counters]
    for worker in workers:
        worker.start()
    while min(c.value for c in counters) < 20:
        time.sleep(0.01)
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    stored = read_records(tmp_path)
    finished = [c.value for c in counters]
    assert min(finished) >= 20
    # A row on disk may be one ahead of the counter, never behind it.
    assert sum(finished) <= len(stored.rows) <= sum(finished) + 2


def test_host_facts_name_the_machine():
    facts = host_facts()
    assert facts["cores"] == os.cpu_count()
    assert facts["threads"] >= 1
    assert facts["processor"]


def test_a_file_taken_away_while_a_folder_is_read_is_no_error(tmp_path, monkeypatch):
    """Another run's empty file goes between the listing of the folder and the reading of it."""
    with RecordWriter(tmp_path) as writer:
        writer.append(ROW)
    gone = tmp_path / "records-other-1-0.jsonl"
    listed, scan = store.record_files, os.scandir

    def listing(places):
        gone.touch()
        found = listed(places)
        gone.unlink(missing_ok=True)
        return found

    def scanning(folder):
        gone.touch()
        found = list(scan(folder))
        gone.unlink(missing_ok=True)
        assert len(found) == 2
        return found

    monkeypatch.setattr(store, "record_files", listing)
    assert read_records(tmp_path).rows == (ROW,)
    with pytest.raises(FileNotFoundError):
        read_records([gone, tmp_path])  # one that was named must be there
    monkeypatch.setattr(os, "scandir", scanning)
    assert RecordIndex(tmp_path).status(ROW.id) == "done"


def test_an_interrupted_line_is_cut_off(tmp_path, monkeypatch):
    with RecordWriter(tmp_path) as writer:
        writer.append(ROW)
        write = os.pwrite

        calls = []

        def stopped(file, data, place):
            calls.append(file)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return write(file, data[:40], place)

        monkeypatch.setattr(os, "pwrite", stopped)
        with pytest.raises(KeyboardInterrupt):
            writer.append(ROW)
        monkeypatch.setattr(os, "pwrite", write)
        writer.append(replace(ROW, seed=1))
    assert [row.seed for row in read_records(tmp_path).rows] == [0, 1]
