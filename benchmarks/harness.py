"""What the benchmark's harness itself costs: per cell, per record, per page.

Overhead per cell is the wall time of a run beyond the cells' own, with the dense networks trained
and the process warm; the engines' is of jobs without work (extras ray and dask); append and load
are of a store with 10 000 records. Processor seconds stand beside wall seconds, which a busy
machine stretches.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from prunus.bench import Executor, RecordWriter, host_facts, make_executor, read_records, run
from prunus.bench.grid.engines import EXECUTORS
from prunus.bench.grid.executors import closing
from prunus.bench.grid.sweep import unique
from prunus.bench.statistics.places import higher_is_better
from prunus.bench.statistics.tables import tables
from prunus.files import write_text
from prunus.host import versions
from prunus.report.grid import grid_page


def overhead(folder: Path, small: bool) -> dict[str, Any]:
    """Seconds per cell beyond the work, serial."""
    grid = {
        "tasks": ["digits-mlp"],
        "recipes": ["magnitude", "wanda", "magnitude-global"],
        "densities": [0.5, 0.25, 0.1] if small else [round(0.05 * i, 2) for i in range(1, 20)],
        "seeds": 1,
        "without": ["small-dense"],
    }
    cache = folder / "cache"
    run({**grid, "densities": [0.9]}, out=folder / "warm", cache=cache, progress=False)
    begun = time.perf_counter()
    done = run(grid, out=folder / "timed", cache=cache, progress=False)
    wall = time.perf_counter() - begun
    work = sum(record.seconds or 0.0 for record in read_records(folder / "timed").rows)
    begun = time.perf_counter()
    run(grid, out=folder / "timed", cache=cache, progress=False)
    return {
        "cells": done.ran,
        "work_s_per_cell": work / done.ran,
        "overhead_ms_per_cell": 1000 * (wall - work) / done.ran,
        "second_run_s": time.perf_counter() - begun,
    }


def engines(small: bool) -> dict[str, Any]:
    """Milliseconds per job that does next to nothing, with two workers."""
    found = {}
    for name in EXECUTORS:
        with closing(make_executor(name, workers=2)) as executor:
            _handed_out(executor, 20)  # workers start and import
            jobs = 20 if small else 500
            begun = time.perf_counter()
            _handed_out(executor, jobs)
            found[f"{name}_ms_per_job"] = 1000 * (time.perf_counter() - begun) / jobs
    return found


def _handed_out(executor: Executor, jobs: int) -> None:
    """Jobs as a sweep hands them out, one per free worker."""
    left = jobs
    for _ in range(min(left, executor.slots)):
        executor.submit(higher_is_better, "loss")
        left -= 1
    for ended in executor.as_completed():
        assert ended.value is False
        if left:
            executor.submit(higher_is_better, "loss")
            left -= 1


def store(folder: Path, small: bool) -> dict[str, Any]:
    """Append and load with 10 000 records, and the page made of them."""
    like = read_records(folder / "timed").rows
    count = 1000 if small else 10_000
    places = count // (len(like) * 5) + 1
    rows = [
        replace(row, id=f"{place}-{seed}-{row.id}", seed=seed, task=f"task-{place}")
        for place in range(places)
        for seed in range(5)
        for row in like
    ][:count]
    times = []
    with RecordWriter(folder / "store") as writer:
        for row in rows:
            begun = time.perf_counter()
            writer.append(row)
            times.append(time.perf_counter() - begun)
    begun, cpu = time.perf_counter(), time.process_time()
    stored = read_records(folder / "store")
    load, load_cpu = time.perf_counter() - begun, time.process_time() - cpu
    assert len(unique(stored.rows)) == count
    begun, cpu = time.perf_counter(), time.process_time()
    text = grid_page(tables(stored.rows, "test_error"), title="store")
    return {
        "records": count,
        "append_ms_median": 1000 * median(times),
        "append_ms_last_100": 1000 * median(times[-100:]),
        "append_ms_highest": 1000 * max(times),
        "load_s": load,
        "load_cpu_s": load_cpu,
        "page_s": time.perf_counter() - begun,
        "page_cpu_s": time.process_time() - cpu,
        "page_mb": len(text) / 1e6,
    }


def main() -> None:
    """Measure, print, and keep the numbers unless --small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    small = parser.parse_args().small
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {**overhead(folder, small), **engines(small), **store(folder, small)}
    for key, value in found.items():
        print(f"{key:<24}{value:.4g}")
    if not small:
        facts = {**found, "versions": versions(), "host": host_facts()}
        path = Path(__file__).parent / "results" / "harness.json"
        print(write_text(path, json.dumps(facts, indent=1) + "\n"), file=sys.stderr)


if __name__ == "__main__":
    main()
