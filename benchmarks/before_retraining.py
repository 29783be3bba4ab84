"""Test error before retraining at equal parameters, beside a peer; five trainings of each network.

Torch-Pruning (Fang et al. 2023, DepGraph) removes a share of the channels by group L2 magnitudes;
prunus gets the parameters that it reaches as a budget. Rows are kept one by one in
results/before_retraining.jsonl, and a stopped run goes on where it was. ResNet-20 is trained for 8
epochs on 5000 images of CIFAR-10, as a CPU allows; digits-cnn and fashion-cnn as `prunus bench`
trains them. Statistics come from the first 2000 training images (all 1346 of digits).

Needs torch-pruning 1.6.1: `pip install --target FOLDER --no-deps torch-pruning==1.6.1`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flow import theirs

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "before_retraining.jsonl"
FIGURE = HERE.parent / "docs" / "figures" / "before-retraining"
SHARES = (0.3, 0.5, 0.65)  # of channels that Torch-Pruning removes
SEEDS, CALIBRATION, IMAGES = 5, 2000, 5000
OURS = ("importance-node", "importance-node+ls")
NAMES = {
    "torch_pruning": "Torch-Pruning, group magnitude",
    "importance-node": "importance-node",
    "importance-node+ls": "importance-node+ls",
}
NETWORKS = ("digits-cnn", "fashion-cnn", "cifar10-resnet20")


def problem(network: str) -> tuple[Any, Any]:
    """The task and its data."""
    from prunus.bench.data.tasks import task

    chosen = task(network)
    data = chosen.data(data_dir=None)
    if network != "cifar10-resnet20":
        return chosen, data
    training = chosen.train.keywords["training"]  # type: ignore[attr-defined]
    short = replace(training, epochs=8)
    data = replace(
        data,
        x_train=data.x_train[:IMAGES],
        y_train=data.y_train[:IMAGES],
        fingerprint=f"{data.fingerprint}, first {IMAGES}",
    )
    train = partial(chosen.train.func, training=short)  # type: ignore[attr-defined]
    return replace(chosen, train=train, definition=f"{short!r}"), data


def measured(network: str, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each share: errors in % of the peer's network and of ours of the same size."""
    import prunus
    from prunus.bench.data.cache import trained
    from prunus.bench.data.train import accuracy

    chosen, data = problem(network)

    def error(model: Any) -> float:
        return 100 * (1 - accuracy(model, data.x_test, data.y_test))

    dense = trained(chosen, data, seed=seed, progress=False).model.eval()
    whole = {"dense": error(dense), "of": sum(p.numel() for p in dense.parameters())}
    batches = list(data.x_train[:CALIBRATION].split(500))
    calibration = prunus.calibrate(dense, batches, ("gram",), progress=False)
    for share in SHARES:
        small = theirs(dense, data.x_train[:2], share, p=2)
        count = sum(p.numel() for p in small.parameters())
        row = {"network": network, "seed": seed, "share": share, "parameters": count, **whole}
        row["torch_pruning"] = error(small)
        for name in OURS:
            budget = prunus.Budget(parameters=count)
            pruned = prunus.prune(
                dense, name, budget, data=calibration, measure=False, progress=False
            )
            row[name] = error(pruned.model)
            row[f"{name} parameters"] = int(pruned.cost_after.parameters)
        yield row


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and 95 % interval over trainings of each method at each size."""
    from prunus.bench.statistics.intervals import t_interval

    found = []
    for network in NETWORKS:
        for share in SHARES:
            own = [r for r in rows if r["network"] == network and r["share"] == share]
            for key, name in NAMES.items():
                if not own:
                    continue
                values = [r[key] for r in own]
                low, high = (t_interval(values) if len(values) > 2 else None) or (None, None)
                found.append(
                    {
                        "network": network,
                        "kept": sum(r["parameters"] / r["of"] for r in own) / len(own),
                        "parameters": sum(r["parameters"] for r in own) / len(own),
                        "of": own[0]["of"],
                        "dense": sum(r["dense"] for r in own) / len(own),
                        "method": name,
                        "error": sum(values) / len(values),
                        "low": low,
                        "high": high,
                        "seeds": len(own),
                    }
                )
    return found


def draw(rows: list[dict[str, Any]]) -> None:
    """README's picture: error over the share of parameters that is left, a panel per network."""
    from prunus.report.figure import figure, save_figure

    points = [
        {
            "network": f"{row['network']}, dense {row['dense']:.1f} %, {row['seeds']} trainings",
            "kept": 100 * row["kept"],
            "error": row["error"],
            "series": row["method"],
            "kind": kind,
            **({} if row["low"] is None else {"low": row["low"], "high": row["high"]}),
        }
        for row in rows
        for kind in ("theory", "measured")  # a line through the points
    ]
    chart = figure(
        points,
        x="kept",
        y="error",
        x_title="parameters left, %",
        y_title="test error before retraining, %",
        facet="network",
        columns=3,
        width=230,
        height=220,
    )
    save_figure(chart, FIGURE, rows)


def main() -> None:
    """Measure what is missing, print the table, draw the picture."""
    from prunus.files import LineFile, whole_lines

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, help="folder with torch_pruning")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--draw", action="store_true", help="only from what is kept")
    given = parser.parse_args()
    if given.peer is not None:
        sys.path.insert(0, str(given.peer))
    lines = whole_lines(RESULTS)[0] if RESULTS.exists() else []
    rows = [json.loads(line) for line in lines]
    known = {(row["network"], row["seed"]) for row in rows}
    for network in () if given.draw else given.networks:
        for seed in range(given.seeds):
            if (network, seed) in known:
                continue
            found = list(measured(network, seed))
            with LineFile(RESULTS) as file:
                for row in found:
                    file.append(json.dumps(row))
            rows += found
            print(*map(json.dumps, found), sep="\n", file=sys.stderr, flush=True)
    found = summary(rows)
    for row in found:
        print(json.dumps(row))
    draw(found)


if __name__ == "__main__":
    main()
