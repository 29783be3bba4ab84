"""From a network to a smaller, verified one, beside a peer; its error is in `before_retraining.py`.

Torch-Pruning (Fang et al. 2023, DepGraph) is asked for group L1 magnitudes, half of the channels,
and runs its result once. Prunus prunes by `l1-filter`, cuts, and verifies the cut network against
the masked one; `measured` has the layer errors too. One thread, processor time, all in turn in one
process, Python's collector off while a flow runs (as `timeit` has it; one pass over the objects of
the libraries takes as long as some of the flows, and comes in any of them); peak memory in fresh
processes, above what the process held with the network loaded.

Needs torch-pruning 1.6.1: `pip install --target FOLDER --no-deps torch-pruning==1.6.1`.
"""

import copy
import gc
import importlib
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import peer_networks as peers
from memory import peak_of

from coupling import resnet50

RESULTS = Path(__file__).parent / "results"
REPEATS = 5


def network(name: str) -> tuple[Any, Any]:
    """A network in evaluation mode and two samples."""
    import torch

    from prunus.bench.data.models import cifar10_resnet20, digits_cnn, mnist_lenet300

    torch.manual_seed(0)
    torch.set_num_threads(1)
    if name == "resnet50 at 96²":
        return resnet50()[0], torch.randn(2, 3, 96, 96)
    if name in BUILT | ALONE:
        return (BUILT | ALONE)[name]()
    if name == "resnet20":
        return cifar10_resnet20().eval(), torch.randn(2, 3, 32, 32)
    if name == "lenet-300-100":
        return mnist_lenet300().eval(), torch.randn(2, 1, 28, 28)
    return digits_cnn().eval(), torch.randn(2, 1, 8, 8)


BUILT = {
    "mobilenet-v2 at 96²": peers.mobilenet_v2,
    "vit-s/16 at 224²": peers.vit,
}
# Networks on which the peer comes to no end.
ALONE = {"llama, 4 blocks": peers.llama}
NETWORKS = ("lenet-300-100", "digits-cnn", "resnet20", "resnet50 at 96²", *BUILT)


def theirs(model: Any, x: Any, ratio: float = 0.5, *, p: int = 1) -> Any:
    """Torch-Pruning's network, given what its examples give it of attention."""
    import torch

    peer = importlib.import_module("torch_pruning")
    small = copy.deepcopy(model)
    last = [m for m in small.modules() if isinstance(m, torch.nn.Linear)][-1]
    heads = peers.heads_of(small)
    attention = {
        "num_heads": heads, "prune_num_heads": True, "head_pruning_ratio": ratio,
        "prune_head_dims": False,
    }  # fmt: skip
    pruner = peer.pruner.BasePruner(
        small,
        x,
        importance=peer.importance.GroupMagnitudeImportance(p=p),
        pruning_ratio=ratio,
        ignored_layers=[last],
        **(attention if heads else {}),
    )
    pruner.step()
    if heads:
        peers.set_attributes(small)
    with torch.no_grad():
        small(x)
    return small


def ours(model: Any, x: Any, *, measure: bool = False) -> Any:
    """Prunus's network; with `measure`, the error of every layer on the data too."""
    import prunus

    pruned = prunus.prune(model, "l1-filter", 0.5, data=x, measure=measure, progress=False)
    return pruned.compact(x)


def measured(model: Any, x: Any) -> Any:
    """The same with the error of every layer."""
    return ours(model, x, measure=True)


def seconds(call: Any, *args: Any) -> float:
    """Processor time of one call."""
    gc.collect()
    gc.disable()
    try:
        begun = time.process_time()
        call(*args)
        return time.process_time() - begun
    finally:
        gc.enable()


def forward(model: Any, x: Any) -> None:
    """The network by itself."""
    import torch

    with torch.no_grad():
        model(x)


def flows(repeats: int) -> list[dict[str, Any]]:
    """Time of the whole flow, both in turn, and memory."""
    rows = []
    for name in (*NETWORKS, *ALONE):
        model, x = network(name)
        flowing = (forward, ours, measured) if name in ALONE else (forward, ours, measured, theirs)
        for run in flowing:
            run(model, x)  # imports and first calls
        taken = [[seconds(run, model, x) for run in flowing] for _ in range(repeats)]
        row: dict[str, Any] = {
            "network": name,
            "forward_s": median(own[0] for own in taken),
            "prunus_s": median(own[1] for own in taken),
            "measured_s": median(own[2] for own in taken),
        }
        if name not in ALONE:
            row |= {
                "torch_pruning_s": median(own[3] for own in taken),
                "ratio": median(own[1] / own[3] for own in taken),
                "ratio_measured": median(own[2] / own[3] for own in taken),
            }
        if Path("/proc/self/clear_refs").exists():
            row["prunus_mb"] = peak_of(network, ours_only, name)[0] / 1e6
            if name not in ALONE:
                row["torch_pruning_mb"] = peak_of(network, theirs_only, name)[0] / 1e6
        rows.append(row)
        print(*(f"{k}={v}" for k, v in row.items()), file=sys.stderr, flush=True)
    return rows


def theirs_only(model: Any, x: Any) -> None:
    """The flow without an answer, for another process."""
    theirs(model, x)


def ours_only(model: Any, x: Any) -> None:
    """The flow without an answer, for another process."""
    ours(model, x)


def main() -> None:
    """Measure, print, and keep the numbers unless --small."""
    given = peers.asked(__doc__)
    if given is None:
        return
    from prunus.files import write_text
    from prunus.host import host_facts, versions

    path = RESULTS / "flow.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    rows = flows(1 if given.small else REPEATS)
    if not given.small:
        found |= {"flow": rows, "versions": versions(), "host": host_facts()}
        print(write_text(path, json.dumps(found, indent=1) + "\n"))


if __name__ == "__main__":
    main()
