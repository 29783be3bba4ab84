"""Least squares by conjugate gradients against one factorisation per row and against SparseGPT.

One thread, processor time. Inputs are 1.5 n Gaussian samples for each input, with a spectrum that
decays as k^-1.5 (`decaying`), and hidden units of a random ReLU layer on those (`relu`). The mask
is Wanda's. `excess` is the bound that the fit states, relative to the least error; `measured` the
difference to Cholesky's, where that was run. The sweep is `prunus.joint.sparsegpt` as a recipe
runs it, which chooses its own mask.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.compensation import least_squares
from prunus.files import write_text
from prunus.host import host_facts, versions
from prunus.joint.sparsegpt import keep_in_rows, sparsegpt

RESULTS = Path(__file__).parent / "results"


def second_moment(kind: str, n: int) -> Tensor:
    """G of the named inputs, float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3 * n // 2, n, generator=generator)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator))[0]
    x = x * torch.arange(1, n + 1).pow(-0.75) @ basis.T * n**0.5
    if kind == "relu":
        x = (x @ torch.randn(n, n, generator=generator) / n**0.5).relu()
    x = x.double()
    return x.T @ x / len(x)


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its processor time."""
    begun = time.process_time()
    found = call()
    return found, time.process_time() - begun


def measure(kind: str, n: int, density: float, *, exact: bool) -> dict[str, Any]:
    """One layer, n × n."""
    generator = torch.Generator().manual_seed(2)
    gram = second_moment(kind, n)
    weight = torch.randn(n, n, generator=generator)
    kept = round(density * n)
    price = weight.square() * gram.diagonal().float()
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask = mask.scatter(1, price.topk(kept, dim=1).indices, True)
    choose = keep_in_rows(torch.full((n,), kept), weight)
    row: dict[str, Any] = {"inputs": kind, "n": n, "density": density}
    _, row["sparsegpt_s"] = seconds(lambda: sparsegpt(weight, gram, choose))
    for rtol in (1e-2, 1e-3):
        fit, took = seconds(lambda r=rtol: least_squares(weight, gram, mask, solver="cg", rtol=r))
        least = float(fit.after.sum() - fit.excess.sum())
        row |= {f"cg_{rtol:.0e}_s": took, f"excess_{rtol:.0e}": float(fit.excess.sum()) / least}
        row[f"times_sparsegpt_{rtol:.0e}"] = took / row["sparsegpt_s"]
    if exact:
        best, row["cholesky_s"] = seconds(
            lambda: least_squares(weight, gram, mask, solver="cholesky")
        )
        row["cholesky_over_cg"] = row["cholesky_s"] / row["cg_1e-03_s"]
        row["measured_1e-03"] = float(fit.after.sum() / best.after.sum()) - 1
    row["mask_over_least"] = float(fit.before.sum()) / least
    return row


def main() -> None:
    """Measure, print, and keep the numbers unless --small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--exact-up-to", type=int, default=1024, help="run Cholesky to this size")
    parser.add_argument("--exact-half", type=int, default=2048, help="and to this with half kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n in [256] if given.small else given.sizes:
        for kind in ("decaying", "relu"):
            for density in (0.2, 0.5, 0.8):
                exact = n <= given.exact_up_to or (
                    n <= given.exact_half and density == 0.5 and kind == "decaying"
                )
                rows.append(measure(kind, n, density, exact=exact))
                shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()}
                print(*(f"{k}={v}" for k, v in shown.items()), file=sys.stderr, flush=True)
    if not given.small:
        facts = {"rows": rows, "versions": versions(), "host": host_facts()}
        print(write_text(RESULTS / "least_squares.json", json.dumps(facts, indent=1) + "\n"))


if __name__ == "__main__":
    main()
