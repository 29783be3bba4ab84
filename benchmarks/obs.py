"""OBS elimination and the SparseGPT sweep against textbook loops, and at width 4096.

One thread each, processor time, best of a few runs, both sides in one run. The textbook loop of
OBS downdates the full inverse at every removal; that of SparseGPT updates all columns to the right
at every column. Both are our own few lines, in NumPy.

    python benchmarks/obs.py             n = 784 against the loops, n = 4096 alone
    python benchmarks/obs.py --small     n = 200 and n = 512, in seconds

Results go to benchmarks/results/obs.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_of
from threadpoolctl import threadpool_limits

from prunus.elimination import damped_inverse, obs_trace
from prunus.files import write_text
from prunus.joint.sparsegpt import keep_in_layer, sparsegpt

HERE = Path(__file__).parent


def problem(rows: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and the Gram matrix of inputs whose neighbours are correlated."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, n + 8, generator=g, dtype=torch.float64)
    x = sum((0.8**lag * x[:, lag : lag + n] for lag in range(8)), torch.zeros(1)) + 0.3
    return torch.randn(rows, n, generator=g), x.T @ x / len(x)


def textbook_obs(row: np.ndarray, inverse: np.ndarray) -> list[int]:
    """Removal order by rank-one downdates of the full inverse."""
    w, p = row.copy(), inverse.copy()
    alive = np.ones(len(w), dtype=bool)
    order = []
    for _ in range(len(w)):
        loss = np.where(alive, w * w / np.where(alive, p.diagonal(), 1.0), np.inf)
        i = int(loss.argmin())
        order.append(i)
        w -= p[:, i] * (w[i] / p[i, i])
        p -= np.outer(p[:, i], p[i] / p[i, i])
        alive[i] = False
        w[i] = 0.0
    return order


def textbook_sweep(weight: np.ndarray, factor: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """SparseGPT with a given mask, one rank-one update of all columns to the right per column."""
    w = weight.copy()
    for j in range(w.shape[1]):
        error = np.where(mask[:, j], 0.0, w[:, j] / factor[j, j])
        w[:, j:] -= np.outer(error, factor[j, j:])
    return np.where(mask, w, 0.0)


def best(work: Any, runs: int) -> tuple[float, Any]:
    """Processor time of the best run, and its answer."""
    spent, answer = float("inf"), None
    for _ in range(runs):
        begun = time.process_time()
        answer = work()
        spent = min(spent, time.process_time() - begun)
    return spent, answer


def against_loops(n: int, rows: int, runs: int) -> dict[str, float]:
    """Ratios at width n."""
    weight, gram = problem(rows, n)
    inverse = damped_inverse(gram, 1e-4)
    few = 2
    slow, order = best(
        lambda: [textbook_obs(weight[h].double().numpy(), inverse) for h in range(few)], 1
    )
    fast, trace = best(lambda: obs_trace(weight[:few], gram), runs)
    same = sum(a == b for a, b in zip(trace.order[0].tolist(), order[0], strict=True)) / n
    swept, (mask, ours) = best(
        lambda: sparsegpt(weight.double(), gram, keep_in_layer(rows * n // 2, weight)), runs
    )
    damped = gram.numpy() + 1e-2 * float(gram.diagonal().mean()) * np.eye(n)
    given = mask.numpy()

    def loop() -> np.ndarray:
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: factorᵀ factor = inverse
        return textbook_sweep(weight.double().numpy(), factor, given)

    plain, theirs = best(loop, 1)
    gap = float(np.abs(ours.numpy() - theirs).max())
    print(f"n={n}: OBS {1e3 * fast / few:.1f} ms a row, textbook {1e3 * slow / few:.0f} ms: "
          f"ratio {slow / fast:.1f}; {100 * same:.1f} % of the order the same")  # fmt: skip
    print(f"n={n}, {rows} rows: SparseGPT {swept:.3f} s, textbook {plain:.3f} s: "
          f"ratio {plain / swept:.1f}; weights differ by at most {gap:.1e}")  # fmt: skip
    return {
        "n": n,
        "rows": rows,
        "obs_ms_a_row": 1e3 * fast / few,
        "obs_ratio": slow / fast,
        "obs_order_same": same,
        "sparsegpt_seconds": swept,
        "sparsegpt_ratio": plain / swept,
        "sparsegpt_gap": gap,
    }


def prepare(rows: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs of the large runs, in a process with one thread."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    return problem(rows, n)


def sweep(weight: torch.Tensor, gram: torch.Tensor) -> float:
    """SparseGPT on all rows; the density met."""
    mask, _ = sparsegpt(weight, gram, keep_in_layer(weight.numel() // 2, weight))
    return float(mask.float().mean())


def eliminate(weight: torch.Tensor, gram: torch.Tensor) -> float:
    """OBS on the rows given; the mean loss of the first half."""
    return float(obs_trace(weight, gram).loss[:, : weight.shape[1] // 2].sum(1).mean())


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="narrow layers, in seconds")
    parser.add_argument("--runs", type=int, default=3, help="the best of so many")
    parser.add_argument("--obs-rows", type=int, default=32, help="rows of the wide elimination")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    results = {"loops": against_loops(200 if options.small else 784, 500, options.runs)}
    n = 512 if options.small else 4096
    peak, spent, _ = peak_of(prepare, sweep, n, n)
    print(f"n={n}, {n} rows: SparseGPT {spent:.1f} s, peak {peak / 1e6:.0f} MB above the inputs")
    results["sparsegpt_wide"] = {"n": n, "rows": n, "seconds": spent, "peak_bytes": peak}
    rows = min(options.obs_rows, n)
    peak, spent, _ = peak_of(prepare, eliminate, rows, n)
    whole = spent * n / rows
    print(f"n={n}, {rows} rows: OBS {spent:.1f} s, peak {peak / 1e6:.0f} MB above the inputs; "
          f"all {n} rows extrapolated: {whole:.0f} s")  # fmt: skip
    results["obs_wide"] = {
        "n": n,
        "rows": rows,
        "seconds": spent,
        "peak_bytes": peak,
        "all_rows_seconds_extrapolated": whole,
    }
    path = HERE / "results" / ("obs-small.json" if options.small else "obs.json")
    write_text(path, json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
