"""Wall time with nothing set against one thread: `dpp-edge`, `wanda+ls` and `obs`.

Every run is a fresh process, which times each method on 64-300-100-10 after one run to warm up; the
two settings take turns. What else the machine did is kept beside the ratios, as its load; `--busy`
adds so many processes that compute all the time.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results" / "threads.json"
METHODS = ("wanda+ls", "obs", "dpp-edge")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
REPEATS = 3


def measure() -> dict[str, object]:
    """Wall time of each method in this process, the least of two."""
    import torch

    import prunus
    from prunus.bench.data.models import digits_mlp

    torch.manual_seed(0)
    model, x = digits_mlp().eval(), torch.randn(1000, 64)
    found: dict[str, object] = {"threads": torch.get_num_threads()}
    prunus.prune(model, "wanda+ls", 0.5, data=x, progress=False)
    for method in METHODS:
        taken = []
        for _ in range(2):
            begun = time.perf_counter()
            prunus.prune(model, method, 0.5, data=x, seed=0, progress=False)
            taken.append(time.perf_counter() - begun)
        found[method] = min(taken)
    return found


def child(threads: int | None) -> dict[str, float]:
    """The times of a fresh process."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if threads is not None:
        environment |= dict.fromkeys(VARIABLES, str(threads))
    command = [sys.executable, __file__, "--child"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main() -> None:
    """Measure in turn, print, keep."""
    from prunus.files import write_text
    from prunus.host import host_facts, versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", action="store_true", help="time in this process")
    parser.add_argument("--busy", type=int, default=0, help="processes beside it")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure()))
        return
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(given.busy)]
    try:
        load = [os.getloadavg()[0]]
        pairs = [(child(None), child(1)) for _ in range(REPEATS)]
        load.append(os.getloadavg()[0])
    finally:
        for other in others:
            other.kill()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [row for row in rows if row["busy"] != given.busy]
    for method in METHODS:
        row = {
            "method": method,
            "busy": given.busy,
            "load": load,
            "threads": int(pairs[0][0]["threads"]),
            "unset_s": median(unset[method] for unset, _ in pairs),
            "one_s": median(one[method] for _, one in pairs),
            "ratio": median(unset[method] / one[method] for unset, one in pairs),
            "ratios": [unset[method] / one[method] for unset, one in pairs],
        }
        rows.append(row)
        print(json.dumps(row))
    facts = {"rows": rows, "versions": versions(), "host": host_facts()}
    write_text(RESULTS, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
