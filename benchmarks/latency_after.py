"""How fast is what comes out: a forward pass of the pruned network, beside a peer's of equal size.

Torch-Pruning (Fang et al. 2023, DepGraph) removes half of the channels by group L1 magnitudes, as
in `flow.py`; prunus gets the parameters that it leaves as a budget for `l1-filter`, and cuts. The
dense network, its and ours run in turn on one thread in one process, in another order each round.
Processor time; medians over rounds, ratios are medians of those of the rounds.

Needs torch-pruning 1.6.1: `pip install --target FOLDER --no-deps torch-pruning==1.6.1`.
"""

import json
import random
import sys
from pathlib import Path
from statistics import median
from typing import Any

from flow import NETWORKS, forward, network, seconds, theirs
from peer_networks import asked

RESULTS = Path(__file__).parent / "results" / "latency_after.json"
SAMPLES = 8
ROUNDS = 31


def contenders(name: str) -> tuple[dict[str, Any], Any]:
    """The dense network, the peer's and ours of as many parameters; and samples."""
    import torch

    import prunus

    dense, x = network(name)
    small = theirs(dense, x)
    budget = prunus.Budget(parameters=parameters(small))
    pruned = prunus.prune(dense, "l1-filter", budget, data=x, measure=False, progress=False)
    shape = (SAMPLES, *x.shape[1:])
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return {"dense": dense, "torch_pruning": small, "prunus": pruned.compact(x)}, samples


def parameters(model: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(p.numel() for p in model.parameters())


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Sizes and times of one network's three."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    models, x = contenders(name)
    order, taken = list(models), {key: [] for key in models}  # type: dict[str, list[float]]
    draws = random.Random(0)
    for model in models.values():
        forward(model, x)
    for _ in range(rounds):
        draws.shuffle(order)
        for key in order:
            taken[key].append(seconds(forward, models[key], x))
    row: dict[str, Any] = {"network": name, "samples": SAMPLES, "rounds": rounds}
    for key, model in models.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        row[f"{key}_parameters"] = parameters(model)
        row[f"{key}_gflops"] = counter.get_total_flops() / 1e9
        row[f"{key}_s"] = median(taken[key])
    for key in ("torch_pruning", "prunus"):
        ratios = sorted(a / b for a, b in zip(taken[key], taken["dense"], strict=True))
        row[f"{key}_ratio"] = median(ratios)
        row[f"{key}_quartiles"] = [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]
    return row


def main() -> None:
    """Measure, print, and keep the numbers unless --small."""
    given = asked(__doc__)
    if given is None:
        return
    from prunus.files import write_text
    from prunus.host import host_facts, versions

    rows = []
    for name in NETWORKS:
        rows.append(measured(name, 3 if given.small else ROUNDS))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if not given.small:
        found = {"rows": rows, "versions": versions(), "host": host_facts()}
        print(write_text(RESULTS, json.dumps(found, indent=1) + "\n"))


if __name__ == "__main__":
    main()
