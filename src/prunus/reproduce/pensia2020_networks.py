"""Trained networks inside random ones: what comes out of a construction for every layer."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from prunus.bench.data.cache import trained
from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import task
from prunus.calibration import calibrate
from prunus.files import Row
from prunus.rng import generator_for
from prunus.theory.subset_sum import construct
from prunus.weights import weights_of

__all__ = ["networks"]

# Mean and deviation by which the task's pixels are standardised.
PIXELS = {"digits-mlp": (0.0, 1.0), "digits-cnn": (0.0, 1.0), "mnist-lenet300": (0.1307, 0.3081)}


def networks(
    name: str, items: Sequence[int], draws: int, seed: int, data_dir: Path | None
) -> Iterator[Row]:
    """A trained network inside random ones, weight by weight and with feedback.

    Every layer is a block by itself: its inputs are pixels, or come from a ReLU, so that all are
    ≥ 0. Of a convolution the block is built of the matrix that multiplies its patches.
    """
    chosen = task(name)
    data: Dataset = chosen.data(data_dir=data_dir)
    mean, deviation = PIXELS[name]
    model = _of_pixels(trained(chosen, data, seed=seed, progress=False).model, mean, deviation)
    x, test = ((v.double() * deviation + mean).clamp(min=0)
               for v in (data.x_train[:10_000], data.x_test))  # fmt: skip
    seen = calibrate(model, x, ("gram",), progress=False)
    with torch.no_grad():
        dense = model(test)
    spread = float(dense.var(0).sum().sqrt())
    for n, draw, feedback in itertools.product(items, range(draws), (False, True)):
        generator = generator_for(seed, "random network", name, n, draw)
        built, worst = copy.deepcopy(model), 0.0
        for layer, weight in weights_of(built).items():
            gram = [seen[layer].statistic("gram")] if feedback else None
            made = construct(
                [weight.matrix()], n, gram=gram, nonnegative=True, generator=generator
            )  # fmt: skip
            block = made.blocks[0]
            worst = max(worst, block.error / block.scale if block.scale else 0.0)
            weight.put(made.effective()[0])  # the block's target shares its memory
        with torch.no_grad():
            found = built(test)
        yield {
            "part": "network", "task": name, "n": n, "draw": draw, "feedback": feedback,
            "rms": float((found - dense).square().sum(1).mean().sqrt()) / spread,
            "error": 100 * float((found.argmax(1) != data.y_test).double().mean()),
            "dense": 100 * float((dense.argmax(1) != data.y_test).double().mean()),
            "weight": worst,
        }  # fmt: skip


def _of_pixels(model: nn.Module, mean: float, deviation: float) -> nn.Module:
    """The same network on pixels ≥ 0, float64: W x + b = (W/σ) (σx + μ) + b − (W/σ) μ 1.

    Only a first layer without padding answers alike where μ is not 0.
    """
    model = copy.deepcopy(model).double().eval()
    first = next(iter(weights_of(model).values()))
    weight, bias = first.matrix() / deviation, first.bias()
    if mean and bias is not None:
        first.put(weight, bias - weight.sum(1) * mean)
    else:
        first.put(weight)
    return model
