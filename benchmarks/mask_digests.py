"""Digests of the masks of every recipe on the zoo of tests/models.py, which an engine must keep.

python benchmarks/mask_digests.py            compare with results/mask_digests.json
python benchmarks/mask_digests.py --write    keep today's
python benchmarks/mask_digests.py --recipes wanda obs --networks gated    only these
"""

import argparse
import hashlib
import json
import sys
import warnings
from pathlib import Path

import torch

import prunus

HERE = Path(__file__).resolve().parent
TABLE = HERE / "results" / "mask_digests.json"
DENSITIES, SEEDS = (0.5, 0.1), (0, 1)
sys.path.insert(0, str(HERE.parent / "tests"))

from models import ZOO, build  # noqa: E402


def digest(name: str, network: str, density: float, seed: int) -> dict[str, str]:
    """The masks' digest of one pruning, and the sum of its weights; or the error's first words."""
    model, x = build(network, samples=24)
    with torch.no_grad():
        classes = model(x).shape[-1]
    y = torch.arange(len(x)) % classes
    data = [(x[:16], y[:16]), (x[16:], y[16:])]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = prunus.prune(model, name, density, data=data, seed=seed, progress=False)
    except (ValueError, TypeError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:60]}"}
    sha = hashlib.sha256()
    for key in sorted(pruned.masks):
        sha.update(key.encode())
        sha.update(pruned.masks[key].cpu().contiguous().numpy().tobytes())
    total = sum(float(r.weight.double().abs().sum()) for r in pruned.layers.values())
    return {"masks": sha.hexdigest()[:16], "weights": f"{total:.8g}"}


def table(recipes: list[str], networks: list[str]) -> dict[str, dict[str, str]]:
    """`recipe | network | density | seed` to its digest."""
    return {
        f"{name} | {network} | {density} | {seed}": digest(name, network, density, seed)
        for name in recipes
        for network in networks
        for density in DENSITIES
        for seed in SEEDS
    }


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
    parser.add_argument("--recipes", nargs="*", default=sorted(prunus.recipes))
    parser.add_argument("--networks", nargs="*", default=sorted(ZOO))
    args = parser.parse_args()
    torch.set_num_threads(1)
    now = table(args.recipes, args.networks)
    kept = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if args.write:
        write({**kept, **now})
        print(f"wrote {len(now)} rows to {TABLE}")
        return 0
    found = different(now, kept)
    print("\n".join(found))
    print(f"{len(now)} rows, {len(found)} differ")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
