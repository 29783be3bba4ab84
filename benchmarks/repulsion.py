"""How diverse are k-DPPs over weights? What sets them apart from uniform draws, in nats.

KL(k-DPP ‖ uniform) = KL(k-DPP ‖ P) + KL(P ‖ uniform), where P is the conditional Poisson law with
the k-DPP's own inclusion probabilities: of all laws with these it is the closest to uniform, so the
second part is unequal odds and the first is repulsion. P's odds are found by iteration, the first
part is the mean over draws of log P_DPP(S) − log P(S), and the second is exact.

    python benchmarks/repulsion.py --data-dir DATA     MNIST's four .gz files in DATA/mnist

Results go to benchmarks/results/repulsion.json.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prunus
from prunus import dpp
from prunus.bench import load_data, task, trained
from prunus.dpp import tilt
from prunus.files import write_text

HERE = Path(__file__).parent
COUNTS = [79, 157, 392, 706]  # of 784 weights
NODES = [255]  # of 500 nodes


def matched_odds(inclusion: np.ndarray, k: int) -> np.ndarray:
    """Log odds of the conditional Poisson law of size k with these inclusion probabilities."""
    inclusion = np.clip(inclusion, 1e-300, 1.0 - 1e-12)
    logs = np.log(inclusion) - np.log1p(-inclusion)
    for _ in range(1000):
        own = np.clip(tilt.single_probabilities(logs, k), 1e-300, 1.0 - 1e-12)
        step = (np.log(inclusion) - np.log1p(-inclusion)) - (np.log(own) - np.log1p(-own))
        logs = logs + step
        if np.abs(own - inclusion).max() < 1e-9:
            return logs
    raise RuntimeError(f"The odds did not settle: off by {np.abs(own - inclusion).max():.1e}.")


def parts(kernel: torch.Tensor, k: int, draws: int, generator: torch.Generator) -> dict[str, Any]:
    """Nats by unequal odds and by repulsion, the latter with its standard error."""
    process = dpp.KDPP(kernel)
    n = len(kernel)
    inclusion = process.inclusion(k).numpy()
    logs = matched_odds(inclusion, k)
    normaliser = tilt.log_elementary(logs, k)
    sets = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    odds = float(inclusion @ logs) - normaliser + sets
    differences = []
    for _ in range(draws):
        drawn = process.sample(k, generator=generator)
        differences.append(process.log_prob(drawn) - float(logs[drawn.numpy()].sum()) + normaliser)
    return {
        "n": n,
        "k": k,
        "odds": odds,
        "repulsion": float(np.mean(differences)),
        "standard_error": float(np.std(differences, ddof=1) / math.sqrt(draws)),
        "offdiag_mean": dpp.diagnose(kernel).offdiag_mean,
        "offdiag_max": dpp.diagnose(kernel).offdiag_max,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; PRUNUS_DATA by default")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 7, 100])
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("mnist", data_dir=options.data_dir)
    dense = trained(task("mnist-mlp"), data, seed=0).model
    layers = prunus.calibrate(dense, data.batches(4096), progress=False)
    first = layers["fc1"]
    samples = len(data.x_train)
    bandwidths: dict[str, float | str] = {
        "10/60000": 10 / 60000 * samples, "0.1": 0.1 * samples, "0.5": 0.5 * samples,
        "median": "median",
    }  # fmt: skip
    records = []
    for label, beta in bandwidths.items():
        for row in options.rows:
            kernel = dpp.edge_kernel(first.gram, first.weight[row].double(), bandwidth=beta)
            for k in COUNTS:
                found = parts(kernel, k, options.draws, torch.Generator().manual_seed(k))
                records.append({"kernel": "edge", "row": row, "bandwidth": label, **found})
                print(records[-1])
        kernel = dpp.node_kernel(
            first.gram, first.weight.double(), mean=first.mean, bias=first.bias, bandwidth=beta
        )
        for k in NODES:
            found = parts(kernel, k, options.draws, torch.Generator().manual_seed(k))
            records.append({"kernel": "node", "row": None, "bandwidth": label, **found})
            print(records[-1])
    path = HERE / "results" / "repulsion.json"
    write_text(path, json.dumps(records, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
