"""Wall time with nothing set against one thread: `dpp-edge`, `wanda+ls` and `obs`.

Two processes at a time, alike but for what is set, prune 64-300-100-10 in turn, each first in every
other turn, after a run that does not count: what the machine does beside them changes from second
to second, by more than what is measured here. How a process lies in memory makes a few percent, so
that several pairs are begun anew: a pair's ratio is the median of its turns', and the interval is
Student's over pairs. `--busy` adds so many processes that compute all the time.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median

RESULTS = Path(__file__).parent / "results" / "threads.json"
TURNS = {"wanda+ls": 12, "obs": 5, "dpp-edge": 3}
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PAIRS = 5


def work() -> None:
    """In a child: prune by the recipe of each line of the input, and say how long it took."""
    import torch

    import prunus
    from prunus.bench.data.models import digits_mlp

    torch.manual_seed(0)
    model, x = digits_mlp().eval(), torch.randn(1000, 64)
    print(torch.get_num_threads(), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        prunus.prune(model, line.strip(), 0.5, data=x, seed=0, progress=False)
        print(time.perf_counter() - begun, flush=True)


class Child:
    """A process that prunes when it is asked to."""

    def __init__(self, threads: int | None) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        if threads is not None:
            environment |= dict.fromkeys(VARIABLES, str(threads))
        command = [sys.executable, __file__, "--child"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> float:
        """The next number that it says."""
        assert self.process.stdout is not None  # a pipe
        return float(self.process.stdout.readline())

    def prune(self, method: str) -> float:
        """Seconds that one pruning took it."""
        assert self.process.stdin is not None  # a pipe
        print(method, file=self.process.stdin, flush=True)
        return self.read()


@contextmanager
def child(threads: int | None) -> Iterator[Child]:
    """A process that ends with the block."""
    found = Child(threads)
    try:
        yield found
    finally:
        found.process.communicate()


@contextmanager
def beside(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def pair() -> tuple[int, dict[str, list[tuple[float, float]]]]:
    """Threads where nothing is set, and each method's (unset, one) seconds, turn by turn."""
    found: dict[str, list[tuple[float, float]]] = {}
    with child(None) as unset, child(1) as one:
        threads = int(unset.read())
        one.read()
        for method, turns in TURNS.items():
            unset.prune(method)
            one.prune(method)
            found[method] = []
            for turn in range(turns):
                order = (one, unset) if turn % 2 else (unset, one)
                taken = {who: who.prune(method) for who in order}
                found[method].append((taken[unset], taken[one]))
    return threads, found


def main() -> None:
    """Measure in turn, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", action="store_true", help="prune in this process")
    parser.add_argument("--busy", type=int, default=0, help="processes beside it")
    given = parser.parse_args()
    if given.child:
        work()
        return
    from prunus.bench.statistics.intervals import t_interval
    from prunus.files import write_text
    from prunus.host import host_facts, versions

    with beside(given.busy):
        load = [os.getloadavg()[0]]
        pairs = [pair() for _ in range(PAIRS)]
        load.append(os.getloadavg()[0])
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [row for row in rows if row["busy"] != given.busy]
    for method in TURNS:
        times = [found[method] for _, found in pairs]
        ratios = [median(unset / one for unset, one in turns) for turns in times]
        logs = [math.log(ratio) for ratio in ratios]
        interval = t_interval(logs)
        assert interval is not None  # of several pairs
        row = {
            "method": method,
            "busy": given.busy,
            "load": load,
            "threads": pairs[0][0],
            "unset_s": median(unset for turns in times for unset, _ in turns),
            "one_s": median(one for turns in times for _, one in turns),
            "ratio": math.exp(fmean(logs)),
            "interval": [math.exp(end) for end in interval],
            "ratios": ratios,
        }
        rows.append(row)
        print(json.dumps(row))
    facts = {"rows": rows, "versions": versions(), "host": host_facts()}
    write_text(RESULTS, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
