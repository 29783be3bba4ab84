"""Time and memory of calibrating the first layer of 784-500-500-10 on 60 000 inputs.

The peer is what cannot be saved: one forward pass and one plain Gram product X.T @ X in float64,
block by block; `single` is the same with products in float32, the cheapest that could be done. Each
is timed in turn in a fresh process, with one thread and with two; memory is the peak of the
resident set above what it is with the data, the model and one small pass loaded. `--network` does
the same for every layer of ResNet-20 on images of CIFAR-10, with one thread and `single` alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
Times = dict[str, list[float]]


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

    def peer(dtype: torch.dtype = torch.float64) -> object:
        total = torch.zeros(784, 784, dtype=torch.float64)
        with torch.no_grad():
            for part in x.split(1024):
                model(part)
                wide = part.to(dtype)
                total += wide.T @ wide
        return total / len(x)

    calibrate(model, x[:64], layers="0", progress=False)
    before = peak_mib()
    gram = ours()
    memory = peak_mib() - before
    torch.testing.assert_close(gram, peer(), rtol=1e-10, atol=1e-12)
    runs = {"ours": ours, "peer": peer, "single": lambda: peer(torch.float32)}
    seconds, work = in_turn(runs, repeats)
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
        "processor_ratio_single": median_ratio(work["ours"], work["single"]),
        "memory_mib": memory,
    }


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> tuple[Times, Times]:
    """Wall and processor time of every run, one after another, some times over."""
    seconds: Times = {name: [] for name in runs}
    work: Times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begun, spent = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - begun)
            work[name].append(time.process_time() - spent)
    return seconds, work


def median_ratio(ours: list[float], other: list[float]) -> float:
    """The median over pairs that ran in turn."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def network(images: int, repeats: int) -> dict[str, object]:
    """All layers of ResNet-20, against a forward pass and X.T @ X in float32 of every layer."""
    import torch
    from torch import nn
    from torch.nn import functional

    from prunus import calibrate
    from prunus.bench.data.models import cifar10_resnet20
    from prunus.bench.data.sets import load_data

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = cifar10_resnet20().eval()
    x = load_data("cifar10", data_dir=os.environ["PRUNUS_DATA"]).x_train[:images]
    batches = list(x.split(100))
    sums: dict[nn.Module, torch.Tensor] = {}

    def add(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0]
        if isinstance(module, nn.Conv2d):
            size = {"kernel_size": module.kernel_size, "stride": module.stride}
            rows = functional.unfold(rows, padding=module.padding, **size)
            rows = rows.transpose(1, 2).flatten(0, 1)
        sums[module] = sums.get(module, torch.zeros(())) + (rows.T @ rows).double()

    def single() -> object:
        sums.clear()
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        hooks = [layer.register_forward_pre_hook(add) for layer in layers]
        with torch.no_grad():
            for part in batches:
                model(part)
        for hook in hooks:
            hook.remove()
        return sums

    def ours() -> object:
        return calibrate(model, batches, statistics=("gram",), progress=False)

    found = ours()
    single()
    names = {name: module for name, module in model.named_modules() if module in sums}
    for name, module in names.items():  # both sum the same, in another order of the inputs
        theirs = float(sums[module].trace())
        torch.testing.assert_close(
            float(found[name].gram.trace()) * found[name].samples, theirs, rtol=1e-4, atol=0
        )
    _, work = in_turn({"ours": ours, "single": single}, repeats)
    return {
        "network": "resnet20",
        "layers": len(names),
        "samples": len(x),
        "threads": 1,
        "processor_seconds": min(work["ours"]),
        "processor_ratio_single": median_ratio(work["ours"], work["single"]),
    }


def main() -> None:
    """Measure in fresh processes, print, and write `results/calibration.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="6 000 inputs, two repeats")
    parser.add_argument("--threads", type=int, help="measure in this process, print JSON")
    parser.add_argument("--file", help="inputs as .npy, for --threads")
    parser.add_argument("--network", action="store_true", help="ResNet-20 on 200 images alone")
    options = parser.parse_args()
    path = RESULTS / "calibration.json"
    if options.network:
        kept = json.loads(path.read_text())
        rows = [row for row in kept["rows"] if "network" not in row]
        rows.append(network(100 if options.small else 200, 2 if options.small else 3))
        print(json.dumps(rows[-1]))
        if not options.small:
            path.write_text(json.dumps({**kept, "rows": rows}, indent=1) + "\n")
        return
    samples, repeats = (6_000, 2) if options.small else (60_000, 3)
    if options.threads:
        print(json.dumps(measure(options.file, repeats, options.threads)))
        return
    rows = []
    folder = tempfile.TemporaryDirectory()
    stored = Path(folder.name) / "inputs.npy"
    data, x = inputs(samples)
    np.save(stored, x.numpy())
    for threads in (1, 2):
        command = [sys.executable, __file__, "--threads", str(threads), "--file", str(stored)]
        command += ["--small"] if options.small else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        row = {"data": data, **json.loads(run.stdout)}
        rows.append(row)
        print(
            f"{row['samples']} × 784 {row['data']}, {threads} thread(s): {row['seconds']:.2f} s "
            f"(best {row['seconds_best']:.2f}, processor {row['processor_seconds']:.2f}), "
            f"{row['ratio']:.2f} × forward + Gram (processor {row['processor_ratio']:.2f} ×), "
            f"{row['processor_ratio_single']:.2f} × with float32, "
            f"{row['memory_mib']:.0f} MiB above the data"
        )
    folder.cleanup()
    if not options.small:
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        rows += [row for row in old if "network" in row]
        text = json.dumps({"benchmark": "calibration", "rows": rows}, indent=1)
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
