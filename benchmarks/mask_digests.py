"""Digests of the masks of every recipe on small networks, which an engine must keep.

The networks are the zoo of tests/models.py and two with whole parts to remove (`residual` and
`mixture` of tests/laws/networks.py); densities 0.5 and 0.1, seeds 0 and 1. Recipes that train
between their steps, or prune inside a training, are given a short one (`trained`). A recipe that
refuses a network has its error there; each is served by some network. Not every recipe is kept on
every network, which would take hours: see `ON_ZOO`, `SOME` and `FEW`.

python benchmarks/mask_digests.py            compare with results/mask_digests.json
python benchmarks/mask_digests.py --write    keep today's
python benchmarks/mask_digests.py --recipes wanda obs --networks gated    only these
python benchmarks/mask_digests.py --missing --write    only what the table lacks
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

import prunus
from prunus.result import Pruned

HERE = Path(__file__).resolve().parent
TABLE = HERE / "results" / "mask_digests.json"
DENSITIES, SEEDS = (0.5, 0.1), (0, 1)
SAMPLES, BATCH = 24, 16
STEPS = 20  # of a training
EVERY = 4  # steps between changes inside a training, in place of the recipes' 100
RATE = 0.05
sys.path.insert(0, str(HERE.parent / "tests"))

from laws.networks import network as tiny  # noqa: E402
from models import ZOO, build  # noqa: E402

PARTS = ("mixture", "residual")  # networks with experts, with blocks
NETWORKS = (*sorted(ZOO), *PARTS)
# The recipes that the whole zoo is kept for, with and without least squares; all others are kept
# on SOME networks, and LONG ones, of many trainings or passes, on FEW.
ON_ZOO = (
    "apoz", "block-cosine", "block-gap", "bn-scale", "dpp-edge", "dpp-map", "dpp-node",
    "dpp-poisson", "gap-gradient", "grasp", "importance-node", "l1-filter", "magnitude",
    "magnitude-erk", "magnitude-global", "magnitude-lamp", "magnitude-row", "obs", "random-edge",
    "random-init", "random-node", "snip", "sparsegpt", "synflow", "variance-optimal", "wanda",
)  # fmt: skip
LONG = ("edge-popup", "lottery", "obd")
FEW = ("cnn-relu", "mlp-norm", *PARTS)
SOME = ("attention", "gated", "lstm", *FEW)
Batches = list[tuple[Tensor, Tensor]]


def digest(name: str, network: str, density: float, seed: int) -> dict[str, str]:
    """The masks' digest of one pruning, and the sum of its weights; or the error's first words."""
    model, data = problem(network)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = pruned_by(name, model, data, density, seed)
    except (ValueError, TypeError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:60]}"}
    sha = hashlib.sha256()
    for key in sorted(pruned.masks):
        sha.update(key.encode())
        sha.update(pruned.masks[key].cpu().contiguous().numpy().tobytes())
    total = sum(float(r.weight.double().abs().sum()) for r in pruned.layers.values())
    return {"masks": sha.hexdigest()[:16], "weights": f"{total:.8g}"}


def problem(network: str) -> tuple[nn.Module, Batches]:
    """A network in float64, and its data in two batches; classes take turns as labels."""
    model, x = tiny(network)[:2] if network in PARTS else build(network, samples=SAMPLES)
    with torch.no_grad():
        classes = model(x).shape[-1]
    y = torch.arange(len(x)) % classes
    return model, [(x[:BATCH], y[:BATCH]), (x[BATCH:], y[BATCH:])]


def pruned_by(name: str, model: nn.Module, data: Batches, density: float, seed: int) -> Pruned:
    """By the recipe of this name, with a short training where it wants one."""
    recipe = prunus.recipes[name]
    if recipe.schedule.inside:
        course = replace(recipe.schedule, every=EVERY)  # type: ignore[type-var]  # all are
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        sparse = prunus.sparsify(
            model, replace(recipe, schedule=course), density, optimizer=optimizer, steps=STEPS,
            seed=seed, example=data[0],
        )  # fmt: skip
        trained(model, data, optimizer)
        return sparse.finish()

    def train(network: nn.Module, step: object) -> None:
        trained(network, data, torch.optim.SGD(network.parameters(), lr=RATE))

    return prunus.prune(
        model, name, density, data=data, seed=seed, progress=False,
        train=train if recipe.schedule.trains else None,
    )  # fmt: skip


def trained(model: nn.Module, data: Batches, optimizer: torch.optim.Optimizer) -> None:
    """`STEPS` steps over the batches in turn, norms and dropout as in evaluation."""
    for step in range(STEPS):
        x, y = data[step % len(data)]
        optimizer.zero_grad()
        logits = model(x)
        if logits.ndim == 3:  # a sequence: its last position
            logits = logits[:, -1]
        loss = nn.functional.cross_entropy(logits, y)
        torch.autograd.backward(loss)
        optimizer.step()


def keys_of(
    recipes: Sequence[str], networks: Sequence[str]
) -> Iterator[tuple[str, tuple[str, str, float, int]]]:
    """The table's keys for these, each with what it says."""
    for name, network, density, seed in product(recipes, networks, DENSITIES, SEEDS):
        base = name.removesuffix("+ls")
        if base in ON_ZOO or network in (FEW if base in LONG else SOME):
            yield f"{name} | {network} | {density} | {seed}", (name, network, density, seed)


def table(
    recipes: Sequence[str], networks: Sequence[str], without: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """`recipe | network | density | seed` to its digest, but of what is known."""
    wanted = ((key, args) for key, args in keys_of(recipes, networks) if key not in without)
    return {key: digest(*args) for key, args in wanted}


def different(now: dict[str, dict[str, str]], kept: dict[str, dict[str, str]]) -> list[str]:
    """The rows that are not as kept: masks to the bit, weights to 6 digits, errors as such."""
    found = []
    for key, row in now.items():
        old = kept.get(key)
        if old is None:
            continue  # a recipe or network that is new
        same = row.get("masks") == old.get("masks")
        if "masks" in row and "masks" in old:
            a, b = float(row["weights"]), float(old["weights"])
            same = same and abs(a - b) <= 1e-6 * max(abs(a), abs(b))
        else:
            same = ("error" in row) == ("error" in old)
        if not same:
            found.append(f"{key}: {old} -> {row}")
    return found


def write(rows: dict[str, dict[str, str]]) -> None:
    """Keep the rows, one a line, so that a change shows as the lines that changed."""
    lines = (f"{json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(rows.items()))
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """Compare or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--missing", action="store_true", help="only rows that the table lacks")
    parser.add_argument("--recipes", nargs="*", default=sorted(prunus.recipes))
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    rows, found = 0, []
    for name, network in product(args.recipes, args.networks):
        now = table([name], [network], kept if args.missing else ())
        rows += len(now)
        if not args.write:
            found += different(now, kept)
        elif now:  # at once, so that a long run may be stopped
            kept |= now
            write(kept)
    print("\n".join(found))
    print(f"{rows} rows {'written' if args.write else 'compared'}, {len(found)} differ")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
