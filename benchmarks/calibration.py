"""Time and memory of calibrating the first layer of 784-500-500-10 on 60 000 inputs.

The peer is what cannot be saved: one forward pass and one plain Gram product X.T @ X in float64,
block by block. Each is timed in turn in a fresh process, with one thread and with two; memory is
the peak of the resident set above what it is with the data, the model and one small pass loaded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"


def inputs(samples: int):
    """MNIST from PRUNUS_DATA, or uniform numbers of the same shape where it is unset."""
    import torch

    if os.environ.get("PRUNUS_DATA"):
        from prunus.bench.data.sets import load_data

        x = load_data("mnist", data_dir=os.environ["PRUNUS_DATA"]).x_train.flatten(1)
        return "mnist", x[:samples].float().contiguous()
    return "uniform", torch.rand(samples, 784, generator=torch.Generator().manual_seed(0))


def peak_mib() -> float:
    """Peak of the resident set of this process, MiB.

    Not `ru_maxrss`, which a child inherits from the process that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(path: str, repeats: int, threads: int) -> dict[str, object]:
    """One process's figures on the inputs of an .npy file, which loads without a copy."""
    import torch
    from torch import nn

    from prunus import calibrate

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.from_numpy(np.load(path))
    model = nn.Sequential(
        nn.Linear(784, 500), nn.Sigmoid(), nn.Linear(500, 500), nn.Sigmoid(), nn.Linear(500, 10)
    )

    def ours() -> object:
        return calibrate(model, x, layers="0", progress=False)["0"].gram

    def peer() -> object:
        total = torch.zeros(784, 784, dtype=torch.float64)
        with torch.no_grad():
            for part in x.split(1024):
                model(part)
                wide = part.double()
                total += wide.T @ wide
        return total / len(x)

    calibrate(model, x[:64], layers="0", progress=False)
    before = peak_mib()
    gram = ours()
    memory = peak_mib() - before
    torch.testing.assert_close(gram, peer(), rtol=1e-10, atol=1e-12)
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    work: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("peer", peer)):
            begun, spent = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - begun)
            work[name].append(time.process_time() - spent)
    return {
        "samples": len(x),
        "threads": threads,
        "seconds": statistics.median(seconds["ours"]),
        "seconds_best": min(seconds["ours"]),
        "peer_seconds": statistics.median(seconds["peer"]),
        "ratio": statistics.median(
            a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True)
        ),
        "processor_seconds": min(work["ours"]),
        "processor_ratio": min(work["ours"]) / min(work["peer"]),
        "memory_mib": memory,
    }


def main() -> None:
    """Measure in fresh processes, print, and write `results/calibration.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="6 000 inputs, two repeats")
    parser.add_argument("--threads", type=int, help="measure in this process, print JSON")
    parser.add_argument("--file", help="inputs as .npy, for --threads")
    options = parser.parse_args()
    samples, repeats = (6_000, 2) if options.small else (60_000, 3)
    if options.threads:
        print(json.dumps(measure(options.file, repeats, options.threads)))
        return
    rows = []
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "inputs.npy"
    data, x = inputs(samples)
    np.save(path, x.numpy())
    for threads in (1, 2):
        command = [sys.executable, __file__, "--threads", str(threads), "--file", str(path)]
        command += ["--small"] if options.small else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        row = {"data": data, **json.loads(run.stdout)}
        rows.append(row)
        print(
            f"{row['samples']} × 784 {row['data']}, {threads} thread(s): {row['seconds']:.2f} s "
            f"(best {row['seconds_best']:.2f}, processor {row['processor_seconds']:.2f}), "
            f"{row['ratio']:.2f} × forward + Gram (processor {row['processor_ratio']:.2f} ×), "
            f"{row['memory_mib']:.0f} MiB above the data"
        )
    folder.cleanup()
    if not options.small:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({"benchmark": "calibration", "rows": rows}, indent=1)
        (RESULTS / "calibration.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
