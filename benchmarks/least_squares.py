"""Least squares by conjugate gradients against one factorisation per row and against SparseGPT.

One thread, processor time. Inputs are 1.5 n Gaussian samples for each input, with a spectrum that
decays as k^-1.5 (`decaying`), and hidden units of a random ReLU layer on those (`relu`). The mask
is Wanda's. `excess` is the bound that the fit states, relative to the least error; `measured` the
difference to Cholesky's, on the rows that were factorised (`cholesky_rows`: up to half kept, each
costs the same).
`bfloat16` says whether steps multiplied in it, as they do where the processor has instructions.
The sweep is `prunus.joint.sparsegpt` as a recipe runs it, which chooses its own mask.

`--parts` is for layers too large for all of their rows: every method's time is a fixed part and one
in proportion to rows, which 256 and 512 rows tell apart, and the row of the record says so by
`measured_rows`. Rows of the record that are not measured stay.
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
from prunus.compensation.descent import multiplies_half
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


def measure(kind: str, n: int, density: float, *, exact: int) -> dict[str, Any]:
    """One layer, n × n; `exact` rows of it are factorised, too."""
    generator = torch.Generator().manual_seed(2)
    gram = second_moment(kind, n)
    weight = torch.randn(n, n, generator=generator)
    kept = round(density * n)
    price = weight.square() * gram.diagonal().float()
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask = mask.scatter(1, price.topk(kept, dim=1).indices, True)
    choose = keep_in_rows(torch.full((n,), kept), weight)
    row: dict[str, Any] = {"inputs": kind, "n": n, "density": density}
    row["bfloat16"] = multiplies_half()
    _, row["sparsegpt_s"] = seconds(lambda: sparsegpt(weight, gram, choose))
    for rtol in (1e-2, 1e-3):
        fit, took = seconds(lambda r=rtol: least_squares(weight, gram, mask, solver="cg", rtol=r))
        least = float(fit.after.sum() - fit.excess.sum())
        row |= {f"cg_{rtol:.0e}_s": took, f"excess_{rtol:.0e}": float(fit.excess.sum()) / least}
        row[f"times_sparsegpt_{rtol:.0e}"] = took / row["sparsegpt_s"]
    if exact:
        some = slice(None, None, max(1, n // exact))
        best, took = seconds(
            lambda: least_squares(weight[some], gram, mask[some], solver="cholesky")
        )
        if density <= 0.5 or len(best.after) == n:  # else rows share A⁻¹, and few say nothing
            row |= {"cholesky_s": took * n / len(best.after), "cholesky_rows": len(best.after)}
            row["cholesky_over_cg"] = row["cholesky_s"] / row["cg_1e-03_s"]
        row["measured_1e-03"] = float(fit.after[some].sum() / best.after.sum()) - 1
    row["mask_over_least"] = float(fit.before.sum()) / least
    return row


def parts(kind: str, n: int, density: float) -> dict[str, Any]:
    """One layer, n × n, of which 256 and 512 rows are measured."""
    generator = torch.Generator().manual_seed(2)
    gram = second_moment(kind, n)
    kept, few = round(density * n), (256, 512)
    weight = torch.randn(max(few), n, generator=generator)
    price = weight.square() * gram.diagonal().float()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask = mask.scatter(1, price.topk(kept, dim=1).indices, True)
    found: dict[str, Any] = {"inputs": kind, "n": n, "density": density, "measured_rows": few}
    found["bfloat16"] = multiplies_half()
    taken: dict[str, list[float]] = {}
    for rows in few:
        w, m = weight[:rows], mask[:rows]
        choose = keep_in_rows(torch.full((rows,), kept), w)
        _, took = seconds(lambda w=w, c=choose: sparsegpt(w, gram, c))
        taken.setdefault("sparsegpt_s", []).append(took)
        for rtol in (1e-2, 1e-3):
            fit, took = seconds(
                lambda w=w, m=m, r=rtol: least_squares(w, gram, m, solver="cg", rtol=r)
            )
            taken.setdefault(f"cg_{rtol:.0e}_s", []).append(took)
            least = float(fit.after.sum() - fit.excess.sum())
            found[f"excess_{rtol:.0e}"] = float(fit.excess.sum()) / least
    if density <= 0.5:
        _, took = seconds(lambda: least_squares(weight[:32], gram, mask[:32], solver="cholesky"))
        found["cholesky_s"] = took / 32 * n
    for name, (some, more) in taken.items():
        found[name] = more + (more - some) / (few[1] - few[0]) * (n - few[1])
    for rtol in ("1e-02", "1e-03"):
        found[f"times_sparsegpt_{rtol}"] = found[f"cg_{rtol}_s"] / found["sparsegpt_s"]
    if density <= 0.5:
        found["cholesky_over_cg"] = found["cholesky_s"] / found["cg_1e-03_s"]
    return found


def kept_rows() -> dict[tuple[str, int, float], dict[str, Any]]:
    """The rows of the record by inputs, size and density."""
    path = RESULTS / "least_squares.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {(row["inputs"], row["n"], row["density"]): row for row in rows}


def main() -> None:
    """Measure, print, and keep the numbers unless --small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--exact", type=int, default=256, help="rows to factorise, too")
    parser.add_argument("--parts", action="store_true", help="some rows of every layer")
    parser.add_argument("--kinds", nargs="+", default=["decaying", "relu"])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = {} if given.small else kept_rows()
    for n in [256] if given.small else given.sizes:
        for kind in given.kinds:
            for density in given.densities:
                if given.parts:
                    row = parts(kind, n, density)
                else:
                    row = measure(kind, n, density, exact=given.exact)
                rows[kind, n, density] = row
                shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}
                print(*(f"{k}={v}" for k, v in shown.items()), file=sys.stderr, flush=True)
                if not given.small:
                    facts = {"rows": list(rows.values()), "versions": versions()}
                    text = json.dumps({**facts, "host": host_facts()}, indent=1) + "\n"
                    write_text(RESULTS / "least_squares.json", text)


if __name__ == "__main__":
    main()
