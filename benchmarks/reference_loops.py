"""SparseGPT's and Wanda's sweeps, layer by layer, against textbook loops of the published ones.

The loops below are written from the papers' pseudocode: Frantar and Alistarh (2023), Algorithm 1,
in float32 with blocks of 128 columns; Sun et al. (2024), Algorithm 1. Same weights, same inputs
(4096 correlated Gaussian samples of log-normal scales), one process, one thread, both sides in
turn, the smallest processor time of the repetitions. Errors are tr ΔW G ΔWᵀ in float64 on one G.
Beside each ratio stands what was recorded against the authors' own code (SparseGPT at 147d215,
Wanda at 8e8fc87) before this project had loops of its own.

    python benchmarks/reference_loops.py [--small]
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.calibration.second_moment import add_second_moment, mirror
from prunus.files import write_text
from prunus.granularity import NM, Edge, EdgePerRow, Granularity
from prunus.host import host_facts, versions
from prunus.joint import SparseGPT
from prunus.layer import Layer
from prunus.scores import RemovalError
from prunus.selection import top_k_mask

SAMPLES, BLOCK, DAMPING = 4096, 128, 0.01
SHAPES = ((512, 512), (1024, 1024), (2816, 1024))
# {(out, in, pattern): (time, error)} ours / theirs, and Wanda's time.
RECORDED = {
    (512, 512, "50 %"): (0.95, 0.99991), (512, 512, "2:4"): (0.77, 1.0),
    (1024, 1024, "50 %"): (0.90, 0.99995), (1024, 1024, "2:4"): (1.04, 1.0),
    (2816, 1024, "50 %"): (1.07, 0.99997), (2816, 1024, "2:4"): (1.15, 1.0),
}  # fmt: skip
TARGETS = {"time": 1.1, "error": 1.0001, "wanda time": 0.7, "gram time": 1.3}


def textbook_sparsegpt(weight: Tensor, gram: Tensor, pattern: str) -> Tensor:
    """Algorithm 1, float32; half of each block of columns, or 2 of each 4 inputs, are removed."""
    w, n = weight.clone(), weight.shape[1]
    hessian = gram.float()
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        part, own = w[:, start:stop].clone(), factor[start:stop, start:stop]
        errors, gone = torch.zeros_like(part), torch.zeros_like(part, dtype=torch.bool)
        if pattern == "50 %":
            price = (part / own.diagonal()).square()
            flat = gone.view(-1)
            flat[price.flatten().argsort(stable=True)[: price.numel() // 2]] = True
        for i in range(stop - start):
            if pattern == "2:4" and i % 4 == 0:
                price = (part[:, i : i + 4] / own.diagonal()[i : i + 4]).square()
                gone[:, i : i + 4].scatter_(1, price.topk(2, dim=1, largest=False).indices, True)
            kept = part[:, i].masked_fill(gone[:, i], 0.0)
            errors[:, i] = (part[:, i] - kept) / own[i, i]
            part[:, i:] -= errors[:, i, None] * own[i, i:]
            part[:, i] = kept
        w[:, start:stop] = part
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return w


def textbook_wanda(weight: Tensor, gram: Tensor) -> Tensor:
    """Algorithm 1: half of each row goes by |W| · ‖x‖; the mask of the rest."""
    metric = weight.abs() * gram.diagonal().sqrt().to(weight.dtype)
    gone = metric.sort(dim=1, stable=True).indices[:, : weight.shape[1] // 2]
    return torch.ones_like(weight, dtype=torch.bool).scatter_(1, gone, False)


def swept(layer: Layer, granularity: Granularity, kept: Tensor) -> Tensor:
    """The weights as prunus prunes them."""
    return SparseGPT()(layer, granularity, kept).weight


def error(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """tr ΔW G ΔWᵀ, float64."""
    lost = (weight - new).double()
    return float(((lost @ gram) * lost).sum())


def in_turn(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], repeats: int
) -> tuple[Tensor, Tensor, float, float]:
    """The answers of both, and the least processor seconds of each."""
    best = [float("inf"), float("inf")]
    found: list[Tensor] = [torch.empty(0), torch.empty(0)]
    for _ in range(repeats):
        for side, call in enumerate((ours, theirs)):
            begun = time.process_time()
            found[side] = call()
            best[side] = min(best[side], time.process_time() - begun)
    return found[0], found[1], best[0], best[1]


def inputs(width: int) -> Tensor:
    """Correlated Gaussian inputs with log-normal scales, float32."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    scales = (0.5 * torch.randn(width, generator=generator)).exp()
    return torch.randn(SAMPLES, width, generator=generator) @ mixing * scales


def gram_pass(x: Tensor) -> Tensor:
    """E[x xᵀ] as calibration sums it, of eight batches."""
    total = torch.zeros(1, x.shape[1], x.shape[1], dtype=torch.float64)
    for batch in x.split(len(x) // 8):
        add_second_moment(total, batch.double()[:, None])
    return mirror(total)[0].div_(len(x))


def textbook_gram(x: Tensor) -> Tensor:
    """The same in float32, whole products."""
    total = torch.zeros(x.shape[1], x.shape[1])
    for batch in x.split(len(x) // 8):
        total += batch.T @ batch
    return total.div_(len(x))


def measure(out: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of one shape."""
    x = inputs(width)
    mine, other, spent, their_time = in_turn(
        lambda: gram_pass(x), lambda: textbook_gram(x), repeats
    )
    away = float((mine - other.double()).abs().max() / mine.abs().max())
    rows: list[dict[str, Any]] = [
        {"what": "gram", "out": out, "in": width, "time": spent / their_time, "differs": away}
    ]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out, width, generator=generator) / width**0.5
    layer = Layer(name="layer", weight=weight, bias=None, statistics={"gram": mine})
    for pattern, granularity, kept in (
        ("50 %", Edge(), torch.tensor([out * width // 2])),
        ("2:4", NM(2, 4), torch.full((out * width // 4,), 2)),
    ):
        own, theirs, spent, their_time = in_turn(
            partial(swept, layer, granularity, kept),
            partial(textbook_sparsegpt, weight, mine, pattern),
            repeats,
        )
        rows.append(
            {
                "what": "sparsegpt", "out": out, "in": width, "pattern": pattern,
                "time": spent / their_time, "seconds": spent,
                "error": error(weight, own, mine) / error(weight, theirs, mine),
                "relative error": error(weight, own, mine) / error(weight, weight * 0, mine),
                "masks agree": float(((own != 0) == (theirs != 0)).float().mean()),
                "kept": int((own != 0).sum()), "asked": out * width // 2,
                "recorded time, error": RECORDED.get((out, width, pattern)),
            }
        )  # fmt: skip
    half = torch.full((out,), width // 2)
    own, theirs, spent, their_time = in_turn(
        lambda: top_k_mask(EdgePerRow().pool("layer", RemovalError()(layer)), half),
        lambda: textbook_wanda(weight, mine),
        repeats,
    )
    rows.append(
        {
            "what": "wanda", "out": out, "in": width, "pattern": "50 % per row",
            "time": spent / their_time, "seconds": spent,
            "masks differ": int((own != theirs).sum()),
            "kept": int(own.sum()), "asked": out * width // 2,
        }
    )  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = ((128, 128),) if options.small else SHAPES
    rows = [row for shape in shapes for row in measure(*shape, 2 if options.small else 5)]
    for row in rows:
        print(row)
    if not options.small:
        path = Path(__file__).resolve().parent / "results" / "reference_loops.json"
        facts = {"targets": TARGETS, "rows": rows, "versions": versions(), "host": host_facts()}
        write_text(path, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
