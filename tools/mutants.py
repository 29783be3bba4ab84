"""Plant known bugs, one at a time, and see whether the tests that ought to notice do.

    python tools/mutants.py [--area NAME …] [--number N …] [--jobs J] [--limit SECONDS] [--out FILE]

The bugs stand in `mutants.toml`: a file, a text that occurs in it once, what stands there instead,
the area, and the tests that ought to fail. Each is planted in a scratch copy of the repository;
the checkout is never touched. A row whose text is no longer found, or found twice, is an error
that names the row: the code has moved, and the row must follow it.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("mutants.toml")
COPIED = ("src", "tests", "docs", "benchmarks", "examples", "pyproject.toml", "README.md")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch",
        "scipy.stats",
        "scipy.special",
        "safetensors.torch",
        "rich.progress",
        "pydantic",
        "typer",
    ]
)
NOTICED, SURVIVED, HUNG = "noticed", "SURVIVED", "noticed (ran out of time)"
# What pytest's exit status says; any other is an error of this tool or of the row.
PASSED, FAILED, BROKEN, TOOL_FAILED = 0, 1, 2, 70


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        number: place in the table, from 1.
        area: what part of the package it is in.
        file: below `src/prunus`.
        old: text that occurs once in the file.
        new: what stands there instead.
        tests: arguments of pytest: files or single tests.
    """

    number: int
    area: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def title(self) -> str:
        shown = [*self.new.strip().splitlines(), f"without {self.old.strip()}"][0]
        return f"{self.number:3} {self.area:<16} {self.file}: {shown}"


def load(table: Path = TABLE) -> list[Mutant]:
    """All rows, whose texts need not be in the code any more."""
    rows = tomllib.loads(table.read_text())["mutant"]
    return [
        Mutant(
            number=number,
            area=row["area"],
            file=row["file"],
            old=row["old"],
            new=row["new"],
            tests=tuple(row["tests"]),
        )
        for number, row in enumerate(rows, start=1)
    ]


def lost(mutants: Iterable[Mutant], root: Path = ROOT) -> list[str]:
    """A line for each row that does not fit the code: which, and why."""
    found = []
    for mutant in mutants:
        path = root / "src/prunus" / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else 0
        if count != 1:
            what = f"occurs {count} times" if path.is_file() else "is in a file that is gone"
            found.append(
                f"row {mutant.number} ({mutant.area}), {mutant.file}: {mutant.old!r} {what}"
            )
        elif mutant.old == mutant.new:
            found.append(f"row {mutant.number} ({mutant.area}): changes nothing")
        gone = [t for t in mutant.tests if not (root / t.partition("::")[0]).exists()]
        found += [f"row {mutant.number} ({mutant.area}): there is no {test}" for test in gone]
    return found


@contextmanager
def scratch_copy(root: Path = ROOT):
    """A folder with the sources and the tests, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in COPIED:
            place = root / name
            if place.is_dir():
                skip = shutil.ignore_patterns("__pycache__", "_build", "gallery")
                shutil.copytree(place, Path(folder) / name, ignore=skip)
            elif place.is_file():
                shutil.copy(place, folder)
        yield Path(folder)


def run_tests(folder: Path, tests: Sequence[str], limit: float) -> tuple[int | None, str]:
    """pytest's exit status (None where the time ran out) and the end of what it said.

    Each run is a process of its own, forked from one that has imported torch and the like: that
    takes longer than most tests.
    """
    process = FORKS.Process(target=_pytest, args=(folder, tuple(tests)))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return None, ""
    return process.exitcode, (folder / "said").read_text()[-2000:]


def _pytest(folder: Path, tests: Sequence[str]) -> None:
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    os.environ.update(PYTHONPATH=str(folder / "src"), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(folder / "src"), str(folder / "tests")]
    status = TOOL_FAILED
    try:
        import pytest

        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests])
    finally:
        sys.stdout.flush()
        os._exit(int(status))


def try_out(mutant: Mutant, folder: Path, limit: float) -> dict[str, object]:
    """Plant the bug in the scratch copy, run its tests, and take it out again."""
    path = folder / "src/prunus" / mutant.file
    text = path.read_text()
    begun = time.monotonic()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        status, said = run_tests(folder, mutant.tests, limit)
    finally:
        path.write_text(text)
    if status not in (None, PASSED, FAILED, BROKEN):
        raise RuntimeError(f"{mutant.title}\npytest ended with {status}:\n{said}")
    outcome = HUNG if status is None else SURVIVED if status == PASSED else NOTICED
    by = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return {
        "number": mutant.number,
        "area": mutant.area,
        "file": mutant.file,
        "old": mutant.old,
        "new": mutant.new,
        "outcome": outcome,
        "by": by[:160],
        "seconds": round(time.monotonic() - begun, 1),
    }


def table(results: Sequence[dict[str, object]]) -> str:
    """Planted and noticed by area."""
    areas = sorted({str(r["area"]) for r in results})
    lines = [f"{'area':<20} planted noticed  rate"]
    for area in [*areas, "all"]:
        own = [r for r in results if area in (r["area"], "all")]
        good = sum(r["outcome"] != SURVIVED for r in own)
        lines.append(f"{area:<20} {len(own):7} {good:7} {good / len(own):5.0%}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--area", nargs="+", help="only these areas")
    parser.add_argument("--number", nargs="+", type=int, help="only these rows, from 1")
    parser.add_argument("--jobs", type=int, default=1, help="scratch copies at work at once")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of a bug")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass now")
    given = parser.parse_args(arguments)
    every = load()
    if complaints := lost(every):
        print("\n".join(complaints), file=sys.stderr)
        return 2
    chosen = [
        m for m in every
        if (not given.area or m.area in given.area)
        and (not given.number or m.number in given.number)
    ]  # fmt: skip
    if not chosen:
        print(f"No row has this area or number; areas: {sorted({m.area for m in every})}.")
        return 2
    folders: Queue[Path] = Queue()
    results: list[dict[str, object]] = []

    def attempt(mutant: Mutant) -> None:
        folder = folders.get()
        try:
            found = try_out(mutant, folder, given.limit)
        finally:
            folders.put(folder)
        print(f"{found['outcome']:<9} {mutant.title}  [{found['seconds']} s]", flush=True)
        results.append(found)
        if given.out:  # what is known so far outlives an interrupt
            known = sorted(results, key=lambda r: int(str(r["number"])))
            text = json.dumps({"mutants": known}, indent=1, ensure_ascii=False)
            given.out.write_text(text + "\n")

    with ThreadPoolExecutor(given.jobs) as pool:
        copies = [scratch_copy() for _ in range(given.jobs)]
        try:
            for copy in copies:
                folders.put(copy.__enter__())
            if not given.no_baseline:
                folder = folders.get()
                tests = sorted({t for m in chosen for t in m.tests})
                status, said = run_tests(folder, tests, given.limit * len(tests))
                folders.put(folder)
                if status != PASSED:
                    print(f"The tests fail with no bug planted:\n{said}", file=sys.stderr)
                    return 2
            list(pool.map(attempt, chosen))
        finally:
            for copy in copies:
                copy.__exit__(None, None, None)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
