"""A small grid, what of its records must not depend on how it ran, and runs that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import prunus
from forks import FORK
from prunus.bench import Record, read_records, run

GRID = {
    "tasks": ["bench_tiny:tiny"],
    "recipes": ["magnitude", "wanda+ls", "magnitude-global"],
    "densities": [0.5, 0.25],
    "schedules": ["none", "retrain"],
    "seeds": 2,
    "without": ["small-dense"],
}
ADDRESS = "127.0.0.2"  # Ray turns 127.0.0.1 into the host's address


def facts(record: Record) -> tuple:
    """All of a record that must not depend on how it was run."""
    return (
        record.id, record.status, record.recipe, record.seed, record.after, record.retrained,
        record.parameters, record.macs, record.bytes, record.layer_error, record.layer_density,
        record.extra.get("masks"), record.data,
    )  # fmt: skip


def table(out) -> list[tuple]:
    """The facts of every record, each cell once and every line whole."""
    stored = read_records(out)
    assert stored.torn == ()
    rows = sorted(map(facts, stored.rows), key=lambda row: row[0])
    assert len({row[0] for row in rows}) == len(rows), "a cell was recorded twice"
    return rows


SCRIPT = """
import json, sys
from bench_runs import executor
from prunus.bench import run
if __name__ == "__main__":
    grid, out, cache, engine = json.loads(sys.argv[1]), *sys.argv[2:]
    run(grid, out=out, cache=cache, executor=executor(engine), workers=2, retries=1000)
"""


def executor(engine: str, retries: int = 1000):
    """Two workers on loopback."""
    from prunus.bench.grid import clusters

    if engine == "ray":
        # Ray's workers step back for everything else on the machine, for minutes where it is busy.
        settings = {"worker_niceness": 0}
        return clusters.RayExecutor(
            2, 1, retries=retries, _node_ip_address=ADDRESS, _system_config=settings
        )
    return clusters.DaskExecutor(2, 1, retries=retries) if engine == "dask" else engine


def environment() -> dict[str, str]:
    """Of a process that finds this package and the tests' modules."""
    paths = [str(Path(prunus.__file__).parents[1]), str(Path(__file__).parent)]
    more = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def rows_on_disk(out: Path) -> int:
    rows = 0
    for file in out.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # a writer takes its empty file away
            rows += file.read_bytes().count(b"\n")
    return rows


class Gate:
    """Holds the cells of a run back at a number of records, so that it cannot end too early."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "gate"

    def allow(self, records: int) -> None:
        """Cells go on until there are so many records (and those under way end)."""
        part = self.path.with_suffix(".part")
        part.write_text(str(records))
        part.replace(self.path)

    def open(self) -> None:
        """Every cell may go on."""
        self.allow(10**9)


def is_open(gate: Path) -> bool:
    """Whether a cell may go on."""
    return rows_on_disk(gate.parent) < int(gate.read_text())


def writers(out: Path) -> list[int]:
    """Processes that are alive and have a file of records, by the files' names."""
    found = {int(file.name.split("-")[-2]) for file in out.glob("*.jsonl")} - {os.getpid()}
    return sorted(pid for pid in found if _works(pid))


def _works(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class _Forked:
    """A run in a process forked from this one, which has the imports already; as `Popen`."""

    def __init__(self, grid: dict, out: Path, cache: Path, told: dict[str, str]) -> None:
        self._child = FORK.Process(target=self._run, args=(grid, out, cache, told))
        self._child.start()

    @staticmethod
    def _run(grid: dict, out: Path, cache: Path, told: dict[str, str]) -> None:
        os.environ.update(told)
        run(grid, out=out, cache=cache, executor="local", workers=2, retries=1000)

    def poll(self) -> int | None:
        return self._child.exitcode

    def wait(self) -> int | None:
        self._child.join()
        return self._child.exitcode

    def kill(self) -> None:
        self._child.kill()

    @property
    def returncode(self) -> int | None:
        return self._child.exitcode


def disturbed(folder: Path, grid: dict, engine: str, kills: int) -> list[str]:
    """Run the grid, killing the run and single workers at random moments; what was killed."""
    out, cache = folder / "disturbed", folder / "cache"
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), json.dumps(grid), str(out), str(cache), engine]
    draw, gate = random.Random(kills), Gate(out)
    told = {**environment(), "PRUNUS_TEST_GATE": str(gate.path)}
    killed: list[str] = []
    while True:
        gate.allow(rows_on_disk(out) + 1)
        process = (
            _Forked(grid, out, cache, told)
            if engine == "local"
            else subprocess.Popen(command, env=told)
        )
        try:
            while len(killed) < kills and process.poll() is None:
                before = rows_on_disk(out)
                gate.allow(before + 1)
                while process.poll() is None and rows_on_disk(out) <= before:
                    time.sleep(0.005)
                time.sleep(draw.random() * 0.15)
                workers = writers(out)
                if process.poll() is not None:
                    break
                if not workers or killed.count("worker") > killed.count("run"):  # in turn
                    killed.append("run")
                    process.kill()
                    process.wait()
                    break
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    killed.append("worker")
            if len(killed) == kills:
                gate.open()
            assert process.wait() in (0, -signal.SIGKILL)  # the test's own limit holds
        finally:
            process.kill()
        if process.returncode == 0:
            return killed


def survives(folder: Path, engine: str, *, kills: int, seeds: int) -> None:
    """A run with `kills` kills leaves the records of an undisturbed one."""
    grid = {**GRID, "tasks": ["bench_tiny:lazy"], "seeds": seeds}
    killed = disturbed(folder, grid, engine, kills)
    assert len(killed) == kills, f"the run was over after {killed}: give it more cells"
    assert killed.count("worker") >= kills // 2
    run(grid, out=folder / "calm", cache=folder / "cache2")
    # `table` refuses torn lines and doubled rows.
    assert table(folder / "disturbed") == table(folder / "calm")
    left = [p.name for p in (folder / "cache" / "trained").iterdir()]
    assert len(left) == seeds, left
