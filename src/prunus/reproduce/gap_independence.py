"""Where the theory of independent weights fails: trained layers against shuffled ones."""

import math
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import fresh_model, task
from prunus.bench.data.train import Training, fit
from prunus.counting import count_of
from prunus.files import Row
from prunus.progress import track
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.rng import generator_for
from prunus.theory.gap.concentration import iid_norm
from prunus.theory.gap.laws import HALF_ORDERS

__all__ = ["layer_map", "reproduce"]

DELTA = 0.05
DENSITIES = (0.9, 0.5, 0.2)
METHODS = ("magnitude", "random")


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None = None, progress: bool | None = None
) -> Reproduction:
    """‖W − V‖ of every layer and epoch over the 95 % quantile of the same entries shuffled.

    Args:
        scale: "small" trains the digits' networks; "full" adds MNIST (784-500-500-10).
        seed: of training, shuffles and masks.
        data_dir: folder with MNIST, for "full".
        progress: see `prunus.progress.progress_bar`.
    """
    full = scale == "full"
    names = ["digits-mlp", "digits-cnn"] + (["mnist-mlp"] if full else [])
    shuffles = 100 if full else 40
    rows: list[Row] = []
    for name in names:
        chosen = task(name)
        data = chosen.data(data_dir=data_dir)
        large = name.startswith("mnist")
        rate, batch = (2e-3, 256) if large else (3e-3, 64)
        epochs = (0, 1, 2, 5, 10) if large else (0, 1, 2, 5, 10, 20, 30)
        model = fresh_model(chosen, seed)
        done = 0
        for epoch in track(epochs, f"{name}, epochs", progress=progress):
            if epoch > done:
                training = Training(
                    epochs=epoch - done, learning_rate=rate, batch=batch, decay="constant"
                )
                _train(model, data, training, generator_for(seed, "independence", name, epoch))
                done = epoch
            generator = generator_for(seed, "independence shuffles", name, epoch)
            found = layer_map(model, 20 if large else shuffles, generator=generator)
            rows += [{"network": name, "epoch": epoch, **row} for row in found]
    records = [
        {
            "epoch": row["epoch"],
            "ratio": row["D over shuffled"],
            "series": row["layer"],
            "kind": "measured",
            "panel": f"{row['network']}, {row['method']}, density {row['density']:g}",
        }
        for row in rows
        if row["density"] == 0.5
    ]
    chart = figure(
        records,
        x="epoch",
        y="ratio",
        x_title="epoch of training",
        y_title="‖W − V‖ / 95 % quantile, entries shuffled",
        y_scale="log",
        facet="panel",
        title="Where independence fails: above 1 the layer is no draw of independent weights",
    )
    return Reproduction(
        name="gap-independence",
        title="The independence assumption on trained weights, per layer and epoch",
        paper="Qian & Klabjan (2021): their assumption of independent weights, an open question",
        conditions=(
            "D = W − V of each layer's matrix (a kernel as out × in·taps); shuffled: the entries "
            "of W in random places, pruned the same way: independence with the layer's own law",
            f"quantile: 95 % of {shuffles} shuffles (20 on MNIST); engine: threshold of the walk "
            f"moments at δ = {DELTA} from the entries' own moments, signs made fair",
            "W over shuffled: the same ratio for the whole matrix",
            "constant rates (Adam 3e-3, batch 64; MNIST 2e-3, 256), seed in the record",
        ),
        rows=rows,
        figures={"gap-independence-map": (chart, records)},
    )


def _train(model: nn.Module, data: Dataset, training: Training, generator: Generator) -> None:
    model.train()
    fit(model, data, training, generator=generator, progress=False)
    model.eval()


def layer_map(model: nn.Module, shuffles: int, *, generator: Generator) -> list[Row]:
    """One row per layer, method and density: norms of W and W − V, and of shuffled entries.

    Args:
        model: with linear layers and convolutions.
        shuffles: random rearrangements of each layer's entries.
        generator: of shuffles and masks.

    Returns:
        rows with `layer`, `method`, `density`, `D` = ‖W − V‖ in weight units, `D over shuffled`
        and `W over shuffled` (over the 95 % quantile of the shuffled), and `engine over shuffled`,
        the threshold of the iid theory over the same quantile.
    """
    rows = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        weight = module.weight.detach().double().flatten(1)
        places = [
            torch.randperm(weight.numel(), generator=generator) for _ in range(shuffles)
        ]  # fmt: skip
        shuffled = [weight.flatten()[place].reshape(weight.shape) for place in places]
        whole = _norm(weight) / _quantile([_norm(w) for w in shuffled])
        for method in METHODS:
            for density in DENSITIES:
                removed = _removed(weight, method, density, generator)
                norms = [
                    _norm(_removed(w, method, density, generator)) for w in shuffled
                ]  # fmt: skip
                quantile = _quantile(norms)
                rows.append(
                    {
                        "layer": name,
                        "method": method,
                        "density": density,
                        "D": _norm(removed),
                        "D over shuffled": _norm(removed) / quantile,
                        "W over shuffled": whole,
                        "engine over shuffled": _engine(weight, method, density) / quantile,
                    }
                )
    return rows


def _removed(weight: Tensor, method: str, density: float, generator: Generator) -> Tensor:
    """D = W − V with exactly N − ⌊density · N + 1/2⌋ entries removed."""
    flat = weight.flatten()
    kept = count_of(density, len(flat))
    if method == "magnitude":
        order = flat.abs().argsort(descending=True, stable=True)
    else:
        order = torch.randperm(len(flat), generator=generator)
    gone = torch.zeros_like(flat)
    gone[order[kept:]] = flat[order[kept:]]
    return gone.reshape(weight.shape)


def _engine(weight: Tensor, method: str, density: float) -> float:
    """Threshold of iid symmetric entries with the even moments of this layer's removed entries.

    For magnitude the moments of the removed entries stand in for those below the threshold; the
    masked entry is 0 with probability `density`.
    """
    flat = weight.flatten().abs().sort().values
    count = len(flat) - count_of(density, len(flat))
    part = flat[:count] if method == "magnitude" else flat
    logs = part[part > 0].log()[:, None] * 2 * torch.from_numpy(HALF_ORDERS)
    share = math.log(count / len(flat)) - math.log(len(part))
    moments = (torch.logsumexp(logs, dim=0) + share).numpy()
    return iid_norm(weight.shape[0], weight.shape[1], moments, DELTA).value


def _norm(matrix: Tensor) -> float:
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return float(torch.linalg.eigvalsh(wide @ wide.T)[-1].clamp_min(0).sqrt())


def _quantile(norms: list[float]) -> float:
    return float(torch.tensor(norms, dtype=torch.float64).quantile(1 - DELTA))
