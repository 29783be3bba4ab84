"""Determinantal sampling against DPPy and against the published way of pruning with it.

Peers, called through their public API, one thread each, processor time, best of a few runs, both
sides in one run:

- DPPy's exact k-DPP sampler on the same kernels;
- the published approach for one output row: scikit-learn's pairwise distances over all samples,
  DPPy, scikit-learn's linear regression over all samples.

    python benchmarks/dpp.py --data-dir DATA     MNIST's four .gz files in DATA/mnist
    python benchmarks/dpp.py --small             synthetic inputs, in a minute

Needs the extra `bench`. Results go to benchmarks/results/dpp.json, the growth to dpp-growth.png.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_of
from threadpoolctl import threadpool_limits

from prunus import dpp
from prunus.compensation.least_squares import least_squares
from prunus.dpp.exact import KDPP
from prunus.files import write_text
from prunus.joint.sparsegpt import keep_in_layer, sparsegpt
from prunus.layer import Layer
from prunus.selection import KDPP as KDPPSelection

HERE = Path(__file__).parent
# Kernels of 3072 items in 20 dimensions: whether items have sizes of their own, and the bandwidth.
WIDE = {"wide-smooth": (False, 0.02), "wide-sizes": (True, 0.5), "wide-narrow": (False, 0.5)}
ROWS = 10  # rows of the layer that the extrapolated figures come from


def seconds(work: Callable[[], Any], runs: int = 3) -> float:
    """Processor time of the best of `runs` calls."""
    best = float("inf")
    for _ in range(runs):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best


def problem(
    small: bool, data_dir: Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (samples, 784) and weights of a trained first layer; the same of the second."""
    if small:
        rng = np.random.default_rng(0)
        live = rng.random((6000, 300)) < 0.3
        inputs = rng.gamma(0.4, 1.0, size=(6000, 300)) * live
        weight = rng.normal(size=(ROWS, 300)) / 17
        return (
            inputs,
            weight,
            1 / (1 + np.exp(-inputs @ rng.normal(size=(300, 100)) / 17)),
            weight[:, :100],
        )
    from prunus.bench import load_data, task, trained

    data = load_data("mnist", data_dir=data_dir)
    dense = trained(task("mnist-mlp"), data, seed=0)
    inputs = torch.cat([x.flatten(1) for x, _ in data.batches(4096)]).double().numpy()
    first, second = (
        layer.weight.detach().double().numpy() for layer in (dense.model.fc1, dense.model.fc2)
    )
    bias = dense.model.fc1.bias.detach().double().numpy()
    return inputs, first, 1 / (1 + np.exp(-(inputs @ first.T + bias))), second


def published_row(
    inputs: np.ndarray, row: np.ndarray, beta: float, k: int, seed: int
) -> dict[str, float]:
    """Seconds of the published approach for one row, in its three parts; NaN where it fails."""
    from dppy.finite_dpps import FiniteDPP
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics.pairwise import rbf_kernel

    parts: dict[str, float] = {}
    begun = time.process_time()
    kernel = rbf_kernel((inputs * row).T, gamma=beta) + 0.01 * np.eye(len(row))
    parts["kernel"] = time.process_time() - begun
    begun = time.process_time()
    try:
        process = FiniteDPP("likelihood", L=kernel)
        chosen = process.sample_exact_k_dpp(size=k, random_state=np.random.RandomState(seed))
        parts["sample"] = time.process_time() - begun
    except (ValueError, FloatingPointError) as error:
        parts["sample"] = float("nan")
        print(f"    DPPy at beta={beta:g}, k={k}: {error}")
        chosen = np.random.RandomState(seed).permutation(len(row))[:k]
    kept = np.zeros(len(row), dtype=bool)
    kept[chosen] = True
    begun = time.process_time()
    lost = inputs[:, ~kept] @ row[~kept]
    LinearRegression(fit_intercept=False).fit(inputs[:, kept], lost)
    parts["reweight"] = time.process_time() - begun
    return parts


def samplers(
    kernel: torch.Tensor, ks: list[int], label: str, runs: int, *, further: bool = True
) -> list[dict[str, Any]]:
    """First and further draws of DPPy and of the samplers here on one kernel."""
    from dppy.finite_dpps import FiniteDPP

    rows = []
    matrix = kernel.numpy()
    for k in ks:
        generator = torch.Generator().manual_seed(k)
        random = np.random.RandomState(k)
        row: dict[str, Any] = {"kernel": label, "n": len(matrix), "k": k}
        try:
            process = FiniteDPP("likelihood", L=matrix)
            row["dppy_first"] = seconds(
                lambda random=random, k=k: FiniteDPP("likelihood", L=matrix).sample_exact_k_dpp(
                    size=k, random_state=random
                ),
                runs,
            )
            if further:
                process.sample_exact_k_dpp(size=k, random_state=random)
                row["dppy_further"] = seconds(
                    lambda process=process, random=random, k=k: process.sample_exact_k_dpp(
                        size=k, random_state=random
                    ),
                    runs,
                )
        except (ValueError, FloatingPointError) as error:
            row["dppy_error"] = str(error)[:60]
        held = KDPP(kernel)
        row["first"] = seconds(lambda k=k, g=generator: KDPP(kernel).sample(k, generator=g), runs)
        held.sample(k, generator=generator)
        row["further"] = seconds(lambda held=held, k=k, g=generator: held.sample(k, generator=g))
        row["once"] = (
            seconds(
                lambda k=k, g=generator: [dpp.draw_once(kernel, k, generator=g) for _ in range(4)],
                runs,
            )
            / 4
        )
        row["poisson"] = seconds(
            lambda k=k, g=generator: dpp.poisson_sample(
                dpp.poisson_odds(kernel, k, accuracy=0.02)[0], k, generator=g
            ),
            runs,
        )
        row["map"] = seconds(lambda k=k: dpp.greedy_map(kernel, k), runs)
        rows.append(row)
        show = {key: f"{1e3 * v:.1f}" for key, v in row.items() if isinstance(v, float)}
        print(f"  {label} n={len(matrix)} k={k}: ms {show}")
        for mine, theirs in (("first", "dppy_first"), ("further", "dppy_further")):
            if theirs in row:
                print(f"    {mine} against DPPy: {row[theirs] / row[mine]:.1f}")
        once = row.get("dppy_first", float("nan")) / row["once"]
        poisson = row["first"] / row["poisson"]
        print(
            f"    once against DPPy's first: {once:.1f}   Poisson against own first: {poisson:.1f}"
        )
    return rows


def whole_layer(
    inputs: np.ndarray, weight: np.ndarray, cases: list[tuple[str, float, int]], runs: int
) -> list[dict[str, Any]]:
    """Kernel, draw and reweighting of a row, ours with the Gram pass charged to all its rows."""
    gram_seconds = seconds(lambda: inputs.T @ inputs, 1)
    gram = torch.from_numpy(inputs.T @ inputs / len(inputs))
    rows = []
    for label, beta, k in cases:
        theirs = published_row(inputs, weight[0], beta, k, seed=k)
        record: dict[str, Any] = {"beta": label, "k": k, "published": theirs}
        per_row: dict[str, float] = {}
        for name in ("exact, kept eigenvectors", "exact, once", "poisson"):
            generator = torch.Generator().manual_seed(k)
            parts = dict.fromkeys(("kernel", "sample", "reweight"), float("inf"))
            for _ in range(runs):
                spent = dict.fromkeys(parts, 0.0)
                mask = torch.zeros(ROWS, weight.shape[1], dtype=torch.bool)
                for h in range(ROWS):
                    begun = time.process_time()
                    kernel = dpp.edge_kernel(gram, weight[h], bandwidth=beta * len(inputs))
                    middle = time.process_time()
                    if name == "poisson":
                        odds, _ = dpp.poisson_odds(kernel, k, accuracy=0.02)
                        drawn = dpp.poisson_sample(odds, k, generator=generator)
                    elif name == "exact, once":
                        drawn = dpp.draw_once(kernel, k, generator=generator)
                    else:
                        drawn = KDPP(kernel).sample(k, generator=generator)
                    mask[h, drawn] = True
                    spent["kernel"] += middle - begun
                    spent["sample"] += time.process_time() - middle
                begun = time.process_time()
                least_squares(torch.from_numpy(weight[:ROWS]), gram, mask)
                spent["reweight"] = time.process_time() - begun
                if sum(spent.values()) < sum(parts.values()):
                    parts = spent
            parts = {key: value / ROWS for key, value in parts.items()}
            parts["gram share"] = gram_seconds / 500
            record[name] = parts
            per_row[name] = sum(parts.values())
        total = sum(theirs.values())
        record["ratios"] = {name: total / own for name, own in per_row.items()}
        record["parts"] = {
            part: theirs[part] / (record["exact, once"][part] + extra)
            for part, extra in (("kernel", gram_seconds / 500), ("reweight", 0.0))
        }
        rows.append(record)
        ratios = ", ".join(f"{n} {r:.0f}" for n, r in record["ratios"].items())
        print(f"  beta={label} k={k}: published {total:.2f} s a row; ratios: {ratios}; "
              f"kernels {record['parts']['kernel']:.0f}, "
              f"reweighting {record['parts']['reweight']:.0f}")  # fmt: skip
        for name in per_row:
            print(f"    {name}: ms", {p: round(1e3 * v, 2) for p, v in record[name].items()})
    return rows


def strong_peers(inputs: np.ndarray, weight: np.ndarray, runs: int) -> dict[str, float]:
    """Calibration against its two products alone; cheap recipes against a SparseGPT sweep."""
    import prunus

    model = torch.nn.Linear(inputs.shape[1], len(weight))
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
    model.eval()
    net = torch.nn.Sequential(model)
    x = torch.from_numpy(inputs).float()
    batches = list(x.split(4096))

    def bare() -> None:
        total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                net(batch)
                wide = batch.double()
                total += wide.T @ wide

    alone = seconds(bare, runs)
    ours = seconds(lambda: prunus.calibrate(net, batches, progress=False), runs)
    calibration = prunus.calibrate(net, batches, progress=False)
    layer = calibration["0"]
    rows, n = layer.weight.shape
    sweep = seconds(
        lambda: sparsegpt(layer.weight, layer.gram, keep_in_layer(rows * n // 2, layer.weight)),
        runs,
    )
    found = {"calibration": ours / alone}
    print(f"  calibration / (forward + Gram): {ours / alone:.2f} (at most 1.3)")
    ls = "magnitude-row+ls"
    cases = [("magnitude", 0.5), ("wanda", 0.5), ("sparsegpt", 0.5)]
    for name, density in [*cases, (ls, 0.2), (ls, 0.5), (ls, 0.8), (ls, 0.9)]:
        spent = seconds(
            lambda name=name, density=density: prunus.prune(
                net, name, density, data=calibration, progress=False
            ),
            runs,
        )
        label = f"{name} at {density}"
        found[label] = spent / sweep
        print(f"  {label} / SparseGPT sweep alone ({1e3 * sweep:.0f} ms): {spent / sweep:.2f}")
    return found


def layer_and_gram(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the memory figure does not count."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    held = np.load(folder)
    return torch.from_numpy(held["weight"]), torch.from_numpy(held["gram"])


def prune_layer(weight: torch.Tensor, gram: torch.Tensor) -> float:
    """One k-DPP mask for every row, and least squares; the relative layer error."""
    layer = Layer(name="fc1", weight=weight, gram=gram)
    kept = torch.full((len(weight),), weight.shape[1] // 5)
    choice = KDPPSelection()(
        torch.zeros(weight.shape), kept, layer=layer, generator=torch.Generator().manual_seed(0)
    )
    fit = least_squares(weight, gram, choice.mask)
    return float(fit.after.sum() / ((weight @ gram) * weight).sum())


def memory(weight: np.ndarray, gram: np.ndarray) -> dict[str, float]:
    """Peak of pruning the whole layer above the layer and its Gram matrix."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/layer.npz", weight=weight, gram=gram)
        peak, spent, error = peak_of(layer_and_gram, prune_layer, f"{folder}/layer.npz")
    print(f"  {len(weight)} rows, k-DPP and least squares: peak {peak / 1e6:.0f} MB above layer "
          f"and Gram (at most 100), {spent:.1f} s, relative error {error:.4f}")  # fmt: skip
    return {"peak_bytes": peak, "seconds": spent, "rows": len(weight), "error": error}


def node_reweighting(hidden: np.ndarray, weight: np.ndarray, k: int, runs: int) -> dict[str, float]:
    """Nodes: one mask for all rows of the next layer, the Gram pass included, against regression.

    Args:
        hidden: activations (samples, nodes).
        weight: of the next layer (out, nodes).
        k: nodes kept.
        runs: the best of so many.
    """
    from sklearn.linear_model import LinearRegression

    kept = np.zeros(hidden.shape[1], dtype=bool)
    kept[np.random.default_rng(0).permutation(len(kept))[:k]] = True
    mask = torch.from_numpy(np.tile(kept, (len(weight), 1)))
    w = torch.from_numpy(weight)
    found: list[Any] = []

    def ours() -> None:
        gram = torch.from_numpy(hidden.T @ hidden / len(hidden))
        found.append(least_squares(w, gram, mask).weight)

    def at_once() -> None:
        fit = LinearRegression(fit_intercept=False).fit(hidden[:, kept], hidden[:, ~kept])
        found.append(torch.from_numpy(weight[:, kept] + weight[:, ~kept] @ fit.coef_))

    few = np.flatnonzero(~kept)[:3]  # the published code fits every removed node by itself

    def published() -> None:
        for node in few:
            LinearRegression(fit_intercept=False).fit(hidden[:, kept], hidden[:, node])

    mine, one_fit = seconds(ours, runs), seconds(at_once, 1)
    gap = float((found[0][:, torch.from_numpy(kept)] - found[-1]).abs().max())
    theirs = seconds(published, 1) / len(few) * int((~kept).sum())
    print(f"  {k} of {len(kept)} nodes: {1e3 * mine:.0f} ms with the Gram pass; a regression for "
          f"each removed node {theirs:.1f} s (extrapolated from {len(few)}): ratio "
          f"{theirs / mine:.0f} (at least 25); one for all of them {one_fit:.2f} s: ratio "
          f"{one_fit / mine:.0f}; weights differ by {gap:.1e}")  # fmt: skip
    return {"k": k, "seconds": mine, "published_seconds_extrapolated": theirs,
            "ratio": theirs / mine, "one_fit_ratio": one_fit / mine, "gap": gap}  # fmt: skip


def draws(kernel: torch.Tensor, k: int, generator: torch.Generator) -> dict[str, Callable[[], Any]]:
    """The ways of drawing k items."""
    held = KDPP(kernel)
    return {
        "eigenvectors, first": lambda: KDPP(kernel).sample(k, generator=generator),
        "eigenvectors, further": lambda: held.sample(k, generator=generator),
        "once": lambda: dpp.draw_once(kernel, k, generator=generator),
        "Poisson": lambda: dpp.poisson_sample(
            dpp.poisson_odds(kernel, k, accuracy=0.02)[0], k, generator=generator
        ),
        "greedy mode": lambda: dpp.greedy_map(kernel, k),
    }


def growth(small: bool) -> list[dict[str, Any]]:
    """Seconds by n at k = n/5, by k at n = 784, and of whole masks by rows at n = 784, k = 157."""
    records: list[dict[str, Any]] = []
    rng = np.random.default_rng(1)

    def note(size: int, series: str, spent: float, panel: str) -> None:
        records.append(
            {"size": size, "seconds": spent, "series": series, "kind": "measured", "panel": panel}
        )

    for n in [100, 200, 400, 800] if small else [100, 200, 400, 800, 1600, 3072]:
        kernel = dpp.gaussian_from_features(rng.normal(size=(n, 20)), bandwidth=0.02)
        for name, work in draws(kernel, n // 5, torch.Generator().manual_seed(n)).items():
            note(n, name, seconds(work, 2 if n > 1000 else 3), "one draw, by items n (k = n/5)")
    n = 300 if small else 784
    kernel = dpp.gaussian_from_features(rng.normal(size=(n, 20)), bandwidth=0.02)
    for k in [n // 20, n // 10, n // 5, n // 2, n * 4 // 5, n * 19 // 20]:
        for name, work in draws(kernel, k, torch.Generator().manual_seed(k)).items():
            note(k, name, seconds(work, 3), f"one draw, by k (n = {n})")
    x = np.maximum(rng.normal(size=(2 * n, n)), 0.0)
    gram = torch.from_numpy(x.T @ x / len(x))
    for rows in [4, 16] if small else [4, 16, 64]:
        weight = torch.from_numpy(rng.normal(size=(rows, n)))
        generator = torch.Generator().manual_seed(rows)
        mask = torch.zeros(rows, n, dtype=torch.bool)

        def drawn(name: str, weight: Any = weight, mask: Any = mask, g: Any = generator) -> None:
            mask.fill_(False)
            for h, row in enumerate(weight):
                kernel = dpp.edge_kernel(gram, row)
                mask[h, draws(kernel, n // 5, g)[name]()] = True

        for name in ("once", "Poisson", "greedy mode"):
            spent = seconds(lambda name=name: drawn(name), 1)
            note(rows, name, spent, f"masks of a layer, by rows (n = {n}, k = n/5)")
        note(rows, "least squares", seconds(lambda w=weight, m=mask: least_squares(w, gram, m), 3),
             f"masks of a layer, by rows (n = {n}, k = n/5)")  # fmt: skip
    for panel in dict.fromkeys(r["panel"] for r in records):
        print(f"  {panel}")
        for r in records:
            if r["panel"] == panel:
                print(f"    {r['size']:5d} {r['series']:22s} {r['seconds']:.4f} s")
    return records


def save(path: Path, results: dict[str, Any]) -> None:
    """Write what there is; a part that was not run keeps its last figures."""
    write_text(path, json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; PRUNUS_DATA by default")
    parser.add_argument("--small", action="store_true", help="synthetic inputs, in a minute")
    parser.add_argument("--runs", type=int, default=3, help="the best of so many")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["samplers", "layer", "nodes", "peers", "memory", "growth"],
        help=f"also {', '.join(WIDE)}, of one or two minutes each",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    inputs, weight, hidden, outgoing = problem(options.small, options.data_dir)
    n = weight.shape[1]
    ks = [n // 5, n // 2, n * 9 // 10] if options.small else [157, 392, 706]
    gram = inputs.T @ inputs / len(inputs)
    # The literature's bandwidths, per sum over the samples; the library's are per mean.
    betas = {"10/60000": 10 / 60000, "0.1": 0.1}
    path = HERE / "results" / ("dpp-small.json" if options.small else "dpp.json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["settings"] = {"samples": len(inputs), "items": n, "runs": options.runs}
    if "samplers" in options.parts:
        print("samplers, seconds of processor time")
        results["samplers"] = []
        for label, beta in betas.items():
            kernel = dpp.edge_kernel(gram, weight[0], bandwidth=beta * len(inputs))
            own = [*ks[:2], n * 8 // 10 + 1, ks[2]] if label == "0.1" else ks
            results["samplers"] += samplers(kernel, own, label, options.runs)
        save(path, results)
    for label, (spread, beta) in WIDE.items():
        if label not in options.parts or options.small:
            continue
        print(f"n = 3072, {label}")
        random = np.random.default_rng(0)
        items = random.normal(size=(3072, 20))
        if spread:  # as edges are: inputs times weights of all sizes
            items *= np.abs(random.normal(size=(3072, 1)))
        kernel = dpp.gaussian_from_features(items, bandwidth=beta)
        results.pop("wide", None)
        results[label] = samplers(kernel, [307, 1536], label, 1, further=False)
        save(path, results)
    if "layer" in options.parts:
        print("one row of the layer against the published approach")
        # DPPy fails on the other pairs of these bandwidths and sizes.
        cases = [("10/60000", betas["10/60000"], ks[0]), ("0.1", 0.1, ks[0]), ("0.1", 0.1, ks[1]),
                 ("0.5", 0.5, ks[2])]  # fmt: skip
        results["layer"] = whole_layer(inputs, weight, cases, options.runs)
        save(path, results)
    if "nodes" in options.parts:
        print("node reweighting")
        results["nodes"] = node_reweighting(
            hidden, outgoing, hidden.shape[1] * 51 // 100, options.runs
        )
        save(path, results)
    if "peers" in options.parts:
        print("strong peers")
        results["peers"] = strong_peers(inputs, weight, options.runs)
        save(path, results)
    if "memory" in options.parts:
        print("memory")
        results["memory"] = memory(weight, gram)
        save(path, results)
    if "growth" in options.parts:
        print("growth")
        results["growth"] = growth(options.small)
        from prunus.report.figure import figure, save_figure

        chart = figure(
            results["growth"], x="size", y="seconds", x_title="n, k or rows", y_title="seconds",
            x_scale="log", y_scale="log", facet="panel",
            title="Growth of drawing with n, k and rows",
        )  # fmt: skip
        save_figure(chart, HERE / "results" / "dpp-growth", results["growth"])
        save(path, results)
    print(path)


if __name__ == "__main__":
    main()
