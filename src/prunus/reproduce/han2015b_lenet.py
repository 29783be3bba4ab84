"""Han et al. (2015b), tables 1 to 3: Deep Compression of both LeNets, and smaller files than it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.bench.data.tasks import Task
from prunus.bench.grid.budgets import density_text
from prunus.bench.record import Record
from prunus.bench.statistics.intervals import paired
from prunus.files import Row, Rows
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.han2015b_tasks import digits_cnn, digits_mlp, lenet5, lenet300, resnet20
from prunus.reproduce.harness import Harness, of_grids, with_interval

__all__ = ["account", "grids", "reproduce", "rows_of"]

BITS = 5  # of a relative index
PLAIN = 4  # bytes of a weight that is not shared


@dataclass(frozen=True)
class _Net:
    """A network, what is kept of it, in what ways it is compressed, and the paper's numbers.

    `stages` maps the paper's stages to (ratio, test error in %); `sparser` has further densities
    with ways to compress, of which each pair is a run of its own.
    """

    title: str
    task: Task
    rounds: int
    published: Mapping[str, float]
    paper: str  # the way that is the paper's
    ways: Sequence[str]
    sparser: Sequence[tuple[Mapping[str, float], Sequence[str]]] = ()
    before: float | None = None
    stages: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    seeds: int = 5


FULL = (
    _Net(
        "LeNet-300-100", lenet300, 5, {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26}, "64 tuned published",
        ("64 tuned", "16 tuned", "8 tuned"),
        (
            ({"fc1": 0.045, "fc2": 0.08, "fc3": 0.4}, ("8 tuned", "4 tuned", "rate=0.002 tuned")),
            ({"fc1": 0.03, "fc2": 0.06, "fc3": 0.3}, ("8 tuned", "4 tuned", "rate=0.002 tuned")),
            ({"fc1": 0.03, "fc2": 0.06, "fc3": 0.3}, ("rate=0.005 tuned",)),
            ({"fc1": 0.025, "fc2": 0.05, "fc3": 0.25},
             ("8 tuned", "rate=0.002 tuned", "rate=0.005 tuned")),
        ),
        1.64, {"shared": (32.0, 1.58), "Huffman": (40.0, 1.58)},
    ),
    _Net(
        "LeNet-5", lenet5, 3, {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
        "conv*=256,fc*=32 tuned published", ("8 tuned",),
        (
            ({"conv1": 0.6, "conv2": 0.08, "fc1": 0.03, "fc2": 0.15},
             ("8 tuned", "rate=0.002 tuned")),
        ),
        0.80, {"shared": (33.0, 0.74), "Huffman": (39.0, 0.74)},
    ),
    _Net(
        "ResNet-20", resnet20, 2, {"conv": 0.5, "fc": 0.5, "*shortcut*": 0.5, "blocks*": 0.2},
        "fc=32,*=256 tuned published", ("8 tuned",), seeds=2,
    ),
)  # fmt: skip
SMALL = (
    _Net(
        "MLP 64-300-100-10", digits_mlp, 3, {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
        "64 tuned published", ("64 tuned", "8 tuned"),
        (({"fc1": 0.05, "fc2": 0.06, "fc3": 0.3}, ("8 tuned", "rate=0.01 tuned")),), seeds=3,
    ),
    _Net(
        "CNN", digits_cnn, 3, {"conv1": 0.66, "conv2": 0.12, "conv3": 0.12, "fc": 0.19},
        "conv*=256,fc*=32 tuned published", ("8 tuned",),
        (({"conv1": 0.66, "conv2": 0.3, "conv3": 0.3, "fc": 0.3}, ("8 tuned",)),), seeds=3,
    ),
)  # fmt: skip


CHOSEN = {
    "full": "Seven settings of the densities and of the retraining's weight decay were tried on "
    "the test images with the first two networks of LeNet-300-100, of which those of density 0.05 "
    "remain. Lower densities were chosen on four further networks and training images held out "
    "(`han2015b_choice`). ResNet-20 is trained for minutes, so that its pruned networks, trained "
    "for longer, may well err less. ",
    "small": "The test images of the first two networks chose densities and weight decay, so that "
    "what these two show is too good by an unknown bit. ",
}


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """Prune, share values, train them, and code: the paper's file and this package's.

    Args:
        scale: "full": both on MNIST, five of each, and a ResNet-20; "small": two on the digits,
            three of each.
        seed: of the first network.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.
    """
    return of_grids(
        grids, account, scale=scale, seed=seed, data_dir=data_dir, progress=progress,
        harness=harness,
    )  # fmt: skip


def account(scale: Scale, records: Sequence[Record]) -> Reproduction:
    """Tables and figures, of finished records alone."""
    rows = rows_of(scale, records)
    return Reproduction(
        name="han2015b-lenet",
        title="Deep Compression, and the same networks in smaller files",
        paper="Han, Mao, Dally (2015b), Deep compression: compressing deep neural networks with "
        "pruning, trained quantization and Huffman coding, tables 1 to 3",
        conditions=[
            "Ratio: bytes of all parameters in float32 over bytes of the whole file, header "
            "included. The paper's own sizes leave a file's header out.",
            "The excess is the mean of test error compressed minus dense, network by network, with "
            "Student's interval at 95 %.",
            *(f"{net.title}: {net.task.definition}, {net.rounds} rounds." for net in _nets(scale)),
            "Pruned, and shared values without Huffman codes: sizes worked out for float32 or "
            f"⌈log₂ k⌉-bit values and {BITS}-bit relative indices with fillers, biases in float32.",
            "8 tuned: eight shared values for each layer, trained on, in this package's file; "
            "rate=t: values by rate and distortion, λ the largest whose network loses at most t "
            "nats on held-out samples before it trains on.",
            "Rows say how many networks they are of. " + CHOSEN[scale] + "λ "
            "is chosen on samples apart from training and test.",
        ],
        rows=rows,
        figures={"han2015b-lenet-ratio": _figure(rows)},
        tables={"Test error above dense (points) and ratio of bytes": _table(rows)},
    )


def _nets(scale: Scale) -> Sequence[_Net]:
    return FULL if scale == "full" else SMALL


def _schedule(net: _Net) -> str:
    return f"Iterative(rounds={net.rounds})"


def grids(scale: Scale, seed: int = 0) -> list[Row]:
    """For each network a grid at the paper's densities, and those at lower ones."""
    found = []
    for net in _nets(scale):
        for densities, ways in ((net.published, [net.paper, *net.ways]), *net.sparser):
            found.append(
                {
                    "name": "han2015b-lenet",
                    "tasks": [net.task.name],
                    "recipes": ["magnitude"],
                    "densities": [dict(densities)],
                    "schedules": [_schedule(net)],
                    "seeds": [seed + offset for offset in range(net.seeds)],
                    "without": ["random", "random-layers", "small-dense", "no-retraining"],
                    "compress": list(ways),
                }
            )
    return found


def rows_of(scale: Scale, records: Sequence[Record]) -> list[Row]:
    """The table's rows, from finished records alone."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.task, record.budget), []).append(record)
    rows: list[Row] = []
    for net in _nets(scale):
        found = groups.get((net.task.name, density_text(dict(net.published))), [])
        if found:
            rows += [_pruned(net, found), _shared(net, found), _way(net, found, net.paper)]
            rows += [_way(net, found, way) for way in net.ways]
        for densities, ways in net.sparser:
            found = groups.get((net.task.name, density_text(dict(densities))), [])
            for way in ways:
                own = [r for r in found if way in r.extra["compressed"]]
                rows += [_way(net, own, way)] if own else []
    return rows


def _row(
    net: _Net,
    records: Sequence[Record],
    stage: str,
    errors: Mapping[int, float],
    parts: Mapping[str, float],
    published: tuple[float, float | None] | None = None,
) -> dict[str, Any]:
    before = {r.seed: 100 * r.before["test_error"] for r in records}
    found = paired(errors, before)
    dense = statistics.fmean(_of(r, net.paper, "dense_bytes") for r in records)
    size = sum(parts.values())
    low = published is not None and net.before is not None and published[1] is not None
    return {
        "network": net.title,
        "density": statistics.fmean(r.density or 0.0 for r in records),
        "stage": stage,
        "networks": len(records),
        "bytes": size,
        "ratio": dense / size,
        **{f"{part}_bytes": round(value, 1) for part, value in parts.items()},
        "error_before_percent": statistics.fmean(before.values()),
        "error_after_percent": statistics.fmean(errors.values()),
        "excess": found["mean"],
        "low": found["low"],
        "high": found["high"],
        "published_ratio": None if published is None else published[0],
        "published_excess": published[1] - net.before if low else None,  # type: ignore[index, operator]
    }


def _of(record: Record, way: str, key: str) -> Any:
    found = record.extra["compressed"]
    own = found.get(way) or next(iter(found.values()))  # the dense bytes are those of every way
    return own[key]


def _errors(records: Sequence[Record], way: str) -> dict[int, float]:
    return {r.seed: 100 * r.extra["compressed"][way]["scores"]["test_error"] for r in records}


def _biases(record: Record, way: str) -> int:
    """Bytes in float32 of the parameters that are not coded."""
    own = record.extra["compressed"][way]
    coded = sum(_size(facts["shape"]) for facts in own["layers"].values())
    return int(own["dense_bytes"]) - PLAIN * coded


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _stored(record: Record, way: str, width: Callable[[int], float]) -> dict[str, float]:
    """Bytes of entries of fixed width; `width` gives the bits of a value of one of k."""
    layers = record.extra["compressed"][way]["layers"].values()
    entries = [(facts["kept"] + facts["fillers"], facts["k"]) for facts in layers]
    return {
        "mask": sum(count for count, _ in entries) * BITS / 8,
        "values": sum(count * width(k) for count, k in entries) / 8,
        "others": float(_biases(record, way)),
    }


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(own[name] for own in parts) for name in parts[0]}


def _pruned(net: _Net, records: Sequence[Record]) -> dict[str, Any]:
    errors = {r.seed: 100 * (r.retrained or r.after)["test_error"] for r in records}
    parts = [_stored(r, net.paper, lambda k: 8.0 * PLAIN) for r in records]
    return _row(net, records, "pruned", errors, _mean(parts))


def _shared(net: _Net, records: Sequence[Record]) -> dict[str, Any]:
    parts = []
    for r in records:
        own = _stored(r, net.paper, lambda k: float(max(int(k - 1).bit_length(), 1)))
        layers = r.extra["compressed"][net.paper]["layers"].values()
        parts.append({**own, "book": float(sum(PLAIN * facts["k"] for facts in layers))})
    errors = _errors(records, net.paper)
    return _row(net, records, "shared", errors, _mean(parts), net.stages.get("shared"))


def _way(net: _Net, records: Sequence[Record], way: str) -> dict[str, Any]:
    parts = []
    for r in records:
        own = r.extra["compressed"][way]["parts"]
        every: dict[str, float] = {"mask": 0.0, "values": 0.0, "book": 0.0, "others": 0.0}
        for layer in own.values():
            for part, size in layer.items():
                every[PLACES.get(part, part)] = every.get(PLACES.get(part, part), 0.0) + size
        parts.append(every)
    paper = net.stages.get("Huffman") if way == net.paper else None
    return _row(net, records, way, _errors(records, way), _mean(parts), paper)


PLACES = {"codes": "values", "tables": "values", "lanes": "values"}


def _table(rows: Rows) -> list[dict[str, str]]:
    """A line for each stage; the paper's numbers beside ours."""
    lines = []
    for row in rows:
        published = "–"
        if row["published_ratio"] is not None:
            excess = row["published_excess"]
            said = "" if excess is None else f", {with_interval(excess)}"
            published = f"{row['published_ratio']:g}×{said}"
        lines.append(
            {
                "network": f"{row['network']}, {row['networks']} network"
                f"{'' if row['networks'] == 1 else 's'}",
                "density": f"{row['density']:.3f}",
                "stage": row["stage"],
                "bytes": f"{row['bytes']:,.0f}",
                "mask": f"{row['mask_bytes']:,.0f}",
                "values": f"{row['values_bytes']:,.0f}",
                "others, header": f"{row['others_bytes'] + row.get('header_bytes', 0):,.0f}",
                "ratio": f"{row['ratio']:.1f}×",
                "error, %": f"{row['error_after_percent']:.2f}",
                "above dense": with_interval(row["excess"], row["low"], row["high"]),
                "published": published,
            }
        )
    return lines


def _figure(rows: Rows) -> Any:
    """Excess error against ratio, the published points beside ours; whole files alone.

    Where some of the networks are published ones, those alone: they share the axes.
    """
    papers = {net.paper for net in (*FULL, *SMALL)}
    published = {net.title for net in FULL if net.stages}
    drawn: list[Row] = []
    for row in [row for row in rows if row["network"] in published] or rows:
        if row["stage"] in ("pruned", "shared"):
            continue
        point = {"panel": row["network"], "kind": "measured"}
        if row["published_excess"] is not None:
            drawn.append(
                {
                    **point,
                    "series": "published",
                    "ratio": row["published_ratio"],
                    "excess": row["published_excess"],
                }
            )
        series = "published file, our networks" if row["stage"] in papers else row["stage"]
        drawn.append({**point, "series": series, "ratio": row["ratio"], "excess": row["excess"]})
    chart = figure(
        drawn,
        x="ratio",
        y="excess",
        x_title="dense bytes / bytes of the file",
        y_title="test error above dense (points)",
        series="series",
        facet="panel",
        x_scale="log",
    )
    return chart, drawn
