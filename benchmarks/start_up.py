"""What a fresh process pays: imports, `prunus --help`, and the first pruning against the second.

Every number is of a new process, after one that does not count and leaves compiled modules behind,
as installing does; medians of seven, each kind in turn. Wall seconds beside processor seconds,
which other processes stretch less.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from prunus.files import write_text
from prunus.host import host_facts, versions

RESULTS = Path(__file__).parent / "results" / "start_up.json"
REPEATS = 7
RECIPES = ("wanda", "wanda+ls", "importance-node")
HEAD = """
import json, time
def now():
    return time.perf_counter(), time.process_time()
def since(begun):
    return [b - a for a, b in zip(begun, now())]
found, begun = {}, now()
import torch
found["import torch"], begun = since(begun), now()
import prunus
found["import prunus"], begun = since(begun), now()
"""
NAMES = """
prunus.prune
found["the name `prunus.prune`"] = since(begun)
"""
PRUNE = """
torch.manual_seed(0)
layers = torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
model, x = torch.nn.Sequential(*layers).eval(), torch.randn(64, 1, 8, 8)
model(x)
for which in ("first", "second"):
    begun = now()
    prunus.prune(model, {recipe!r}, 0.5, data=x, progress=False)
    found[f"{{which}} `{recipe}`"] = since(begun)
"""
HELP = ("-c", "from prunus.cli.app import main; main()", "--help")


def fresh(*arguments: str, environment: dict[str, str]) -> tuple[str, list[float]]:
    """What a new process of Python says, and its wall and processor seconds."""
    begun, before = time.perf_counter(), os.times()
    command = [sys.executable, *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - begun, os.times()
    used = after.children_user + after.children_system
    return run.stdout, [wall, used - before.children_user - before.children_system]


def measure(environment: dict[str, str]) -> dict[str, list[float]]:
    """Every number once."""
    found = {"prunus --help": fresh(*HELP, environment=environment)[1]}
    for code in (NAMES, *(PRUNE.format(recipe=recipe) for recipe in RECIPES)):
        said, _ = fresh("-c", f"{HEAD}{code}\nprint(json.dumps(found))", environment=environment)
        found |= json.loads(said)
    return found


def main() -> None:
    """Measure, print, keep."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        measure(environment)
        load = [os.getloadavg()[0]]
        runs = [measure(environment) for _ in range(REPEATS)]
        load.append(os.getloadavg()[0])
    rows = []
    for name in runs[0]:
        wall, used = (median(run[name][i] for run in runs) for i in range(2))
        rows.append({"what": name, "wall_s": round(wall, 4), "processor_s": round(used, 4)})
        print(json.dumps(rows[-1]))
    facts = {"rows": rows, "load": load, "versions": versions(), "host": host_facts()}
    write_text(RESULTS, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
