"""The sweep at initialisation: methods × densities × seeds, with the control that explains gains.

For each seed one split of the data, one noise draw and one initialisation are shared by all
methods and densities, so differences to the dense network are paired. Beside every density stands
the control: the dense network with the pruned layers' first weights times √density, which has the
same variance of its initial function as a random mask.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunus.bench.at_init.cells import CONTROL, DENSE, Cell, Outcome, cells_of
from prunus.bench.at_init.masks import METHODS, Masks, built, he_mlp, masks_at_init
from prunus.bench.at_init.stacked import FullBatch, check_stackable, stacked_fit, stacked_outputs
from prunus.bench.data.sets import Dataset
from prunus.budget import checked_density
from prunus.calibration.select import matching, prunable
from prunus.check import positive, unknown, whole
from prunus.progress import progress_bar
from prunus.rng import generator_for
from prunus.surgery.connected import Connection, connection
from prunus.theory.at_init.summary import MINIMUM_SEEDS
from prunus.weights import Weight, weight_at

__all__ = ["CONTROL", "DENSE", "METHODS", "Cell", "Sweep", "sweep"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep:
    """All cells of a sweep, and how it was made.

    Attributes:
        cells: the dense network first, then methods × densities, then the control.
        accuracy: {(method, density): test accuracy per seed}.
        seeds: of splits, noise, first weights and random masks.
        data: name and fingerprint of the data set.
        samples: training points.
        input_noise: added to training and test inputs, in units of the inputs' deviation.
        training: how the networks were trained.
        reports: one line per (method, density, seed) whose mask disconnects an output or a layer.
    """

    cells: list[Cell]
    accuracy: Mapping[tuple[str, float], Float[Tensor, " seeds"]]
    seeds: list[int]
    data: str
    samples: int
    input_noise: float
    training: FullBatch
    reports: tuple[str, ...]


def sweep(
    data: Dataset,
    model: Callable[[int, int, int], nn.Module] | Sequence[int] = (100,),
    *,
    methods: Sequence[str] = METHODS,
    densities: Sequence[float] = (0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02),
    seeds: int | Sequence[int] = 10,
    samples: int = 300,
    test_samples: int = 2000,
    input_noise: float = 0.0,
    training: FullBatch | None = None,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Prune before training by every method, train, and compare with dense and control networks.

    Args:
        data: a data set, also the user's own; training and test parts are pooled and split anew
            for each seed.
        model: hidden widths of a ReLU network with He's first weights, or a function
            (features, classes, seed) -> untrained module without buffers and dropout.
        methods: of `METHODS`.
        densities: kept / total of the pruned layers' weights, each in (0, 1); the dense network is
            always trained.
        seeds: a count, or the seeds themselves.
        samples: training points of each seed.
        test_samples: at most so many test points.
        input_noise: standard deviation of noise added to all inputs, in units of the training
            inputs' deviation; the noisy inputs are standardised, so their scale stays.
        training: full-batch Adam; None takes 200 steps at rate 0.01.
        layers: names or globs of the layers that are pruned; all where None.
        exclude: names or globs to leave alone.
        progress: see `prunus.progress.progress_bar`.

    Raises:
        ValueError: an unknown method, a bad density, no seeds, more samples than there are, a
            model with buffers or dropout.

    Warns:
        RuntimeWarning: fewer than 5 seeds (no interval is given), or masks that disconnect the
            network, said before that seed's networks are trained.
    """
    chosen = _checked(methods, densities)
    seed_list = _seeds(seeds)
    how = training if training is not None else FullBatch()
    positive("input_noise", input_noise, zero=True)
    if len(seed_list) < MINIMUM_SEEDS:
        warnings.warn(
            f"{len(seed_list)} seeds are fewer than {MINIMUM_SEEDS}: no interval is given.",
            RuntimeWarning,
            stacklevel=2,
        )
    keys = [(DENSE, 1.0)]
    keys += [(method, density) for method in (*methods, CONTROL) for density in chosen]
    table: dict[tuple[str, float], list[Outcome]] = {key: [] for key in keys}
    reports: list[str] = []
    with progress_bar("Sweeping at initialisation", len(seed_list), progress=progress) as advance:
        for seed in seed_list:
            problem = _problem(data, seed, samples, test_samples, input_noise)
            network = _network(model, problem, seed)
            names = _names(network, layers, exclude)
            masks = _all_masks(network, names, methods, chosen, problem, seed)
            whole = _all(network, names, kept=True)
            scale = {key: math.sqrt(key[1]) if key[0] == CONTROL else 1.0 for key in keys}
            by_key = [masks.get(key, whole) for key in keys]
            found = [_connected(network, own, problem.inputs) for own in by_key]
            said = [
                f"{method} at density {density:g}, seed {seed}: {link.summary()}"
                for (method, density), link in zip(keys, found, strict=True)
                if not link.whole
            ]
            if said:
                reports += said
                warnings.warn(
                    f"{len(said)} masks of seed {seed} disconnect the network; {said[0]}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            stack = _stack(network, names, [scale[key] for key in keys])
            first = weight_at(network, names[0])
            own = [_by_parameter(network, masks) for masks in by_key]
            shaped = {path: torch.stack([masks[path] for masks in own]) for path in own[0]}
            trained, losses = stacked_fit(
                network, stack, shaped, problem.inputs, problem.labels, how
            )
            accuracies = _accuracies(network, trained, problem, how.chunk)
            for i, key in enumerate(keys):
                start = {name: value[i] * shaped[name][i] if name in shaped else value[i]
                         for name, value in stack.items()}  # fmt: skip
                end = {name: value[i] for name, value in trained.items()}
                table[key].append(
                    Outcome(
                        accuracy=float(accuracies[i]),
                        train_loss=float(losses[i]),
                        dead_units=_dead_units(by_key[i]),
                        link=found[i],
                        alignment=_alignment(first, end, problem),
                        alignment_start=_alignment(first, start, problem),
                    )
                )
            advance(1)
    return Sweep(
        cells=cells_of(table, chosen),
        accuracy={
            key: torch.tensor([o.accuracy for o in outcomes], dtype=torch.float64)
            for key, outcomes in table.items()
        },
        seeds=seed_list,
        data=f"{data.name} ({data.fingerprint})",
        samples=samples,
        input_noise=input_noise,
        training=how,
        reports=tuple(reports),
    )


def _checked(methods: Sequence[str], densities: Sequence[float]) -> list[float]:
    for method in methods:
        if method not in METHODS:
            raise unknown("method at initialisation", method, METHODS)
    if not len(methods) or not len(densities):
        raise ValueError(
            "`methods` and `densities` must each hold at least one entry, got "
            f"{list(methods)} and {list(densities)}."
        )
    chosen = [checked_density(density, "densities") for density in densities]
    if len(set(chosen)) < len(chosen) or 1.0 in chosen:
        raise ValueError(
            f"`densities` must be distinct and below 1 (the dense network is always trained), got "
            f"{chosen}."
        )
    return chosen


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, Sequence):
        found = [whole("seeds", seed, low=0) for seed in seeds]
        if not found:
            raise ValueError("`seeds` must hold at least one seed, got none.")
        return found
    return list(range(whole("seeds", seeds, low=1)))


@dataclass(frozen=True, eq=False)
class _Problem:
    """One seed's data, standardised by the training part."""

    inputs: Float[Tensor, "train ..."]
    labels: Int[Tensor, " train"]
    test_inputs: Float[Tensor, "test ..."]
    test_labels: Int[Tensor, " test"]
    classes: int


def _problem(
    data: Dataset, seed: int, samples: int, test_samples: int, input_noise: float
) -> _Problem:
    """One split and one noise draw; the noisy inputs are standardised by their training part."""
    total = len(data.x_train) + len(data.x_test)
    whole("samples", samples, low=2, high=total - 1)
    whole("test_samples", test_samples, low=1)
    generator = generator_for(seed, "at-init", "sweep")
    order = torch.randperm(total, generator=generator)
    split = len(data.x_train)

    def take(index: Int[Tensor, " some"]) -> tuple[Tensor, Tensor]:
        first, second = index[index < split], index[index >= split] - split
        x = torch.cat([data.x_train[first], data.x_test[second]])
        return x.float(), torch.cat([data.y_train[first], data.y_test[second]]).long()

    x, y = take(order[:samples])
    x_test, y_test = take(order[samples : samples + test_samples])
    x, x_test = _standardised(x, x_test)
    if input_noise > 0:
        x = x + input_noise * torch.randn(x.shape, generator=generator)
        x_test = x_test + input_noise * torch.randn(x_test.shape, generator=generator)
        x, x_test = _standardised(x, x_test)
    classes = int(torch.cat([data.y_train, data.y_test]).max()) + 1
    return _Problem(x, y, x_test, y_test, classes)


def _standardised(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both centred by the mean of `x` and divided by its overall deviation about it."""
    mean = x.mean(0)
    deviation = (x - mean).std().clamp_min(1e-12)
    return (x - mean) / deviation, (other - mean) / deviation


def _network(
    model: Callable[[int, int, int], nn.Module] | Sequence[int], problem: _Problem, seed: int
) -> nn.Module:
    features = problem.inputs[0].numel()
    if callable(model):
        network = built(model, features, problem.classes, seed)
    else:
        network = he_mlp(features, [whole("model", w, low=1) for w in model],
                         problem.classes, seed)  # fmt: skip
    check_stackable(network)
    return network


def _names(
    network: nn.Module, layers: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    found, refused = prunable(network, asked=layers is not None)
    return matching(found, layers, exclude, refused)


def _all_masks(
    network: nn.Module,
    names: Sequence[str],
    methods: Sequence[str],
    densities: Sequence[float],
    problem: _Problem,
    seed: int,
) -> dict[tuple[str, float], Masks]:
    batch = (problem.inputs, problem.labels)
    return {
        (method, density): mask
        for method in methods
        for density, mask in zip(
            densities,
            masks_at_init(network, method, densities, batch, names=names, seed=seed),
            strict=True,
        )
    }


def _connected(network: nn.Module, masks: Masks, inputs: Tensor) -> Connection:
    return connection(network, _by_parameter(network, masks), inputs)


def _all(network: nn.Module, names: Sequence[str], *, kept: bool) -> Masks:
    """Masks of these layers that keep all, or nothing."""
    return {
        name: torch.full(weight_at(network, name).matrix().shape, kept, dtype=torch.bool)
        for name in names
    }


def _by_parameter(network: nn.Module, masks: Masks) -> Masks:
    """The masks of layers as {parameter: mask in its shape}."""
    found: Masks = {}
    for name, mask in masks.items():
        weight_at(network, name).put_mask(found, mask)
    return found


def _stack(network: nn.Module, names: Sequence[str], scales: Sequence[float]) -> dict[str, Tensor]:
    """The same first weights for every network, those of the control scaled."""
    factors = torch.tensor(scales)
    outside = _by_parameter(network, _all(network, names, kept=False))  # of the pruned layers
    stack = {}
    for name, value in network.named_parameters():
        copies = value.detach().expand(len(scales), *value.shape).clone()
        if name in outside:
            scaled = copies * factors.reshape(-1, *[1] * value.ndim).to(copies.dtype)
            copies = torch.where(outside[name], copies, scaled)
        stack[name] = copies
    return stack


def _accuracies(
    network: nn.Module, trained: Mapping[str, Tensor], problem: _Problem, chunk: int
) -> Float[Tensor, " networks"]:
    count = len(next(iter(trained.values())))
    right = []
    with torch.no_grad():
        for start in range(0, count, chunk):
            part = {name: value[start : start + chunk] for name, value in trained.items()}
            guess = stacked_outputs(network, part, problem.test_inputs).argmax(2)
            right.append((guess == problem.test_labels).double().mean(1))
    return torch.cat(right)


def _dead_units(masks: Masks) -> float:
    """Share of hidden units of a chain of layers that have no kept weight in, or none out."""
    layers = list(masks.values())
    dead = units = 0
    for before, after in itertools.pairwise(layers):
        if after.shape[1] != before.shape[0]:
            continue  # no chain of linear layers
        alive = before.any(1) & after.any(0)
        dead, units = dead + int((~alive).sum()), units + len(alive)
    return dead / units if units else 0.0


def _alignment(first: Weight, values: Mapping[str, Tensor], problem: _Problem) -> float | None:
    """How much first-layer units look at class means: mean over live units of max |cos|."""
    matrix = first.matrix(values[first.path])
    x = problem.inputs.flatten(1)
    if matrix.shape[1] != x.shape[1]:
        return None
    onehot = torch.nn.functional.one_hot(problem.labels, problem.classes).to(x.dtype)
    means = (onehot.T @ x) / onehot.sum(0).clamp_min(1)[:, None]
    means = means[onehot.sum(0) > 0]
    means = means - means.mean(0)
    live = matrix[matrix.norm(dim=1) > 0]
    if not len(live):
        return None
    cosine = torch.nn.functional.normalize(live) @ torch.nn.functional.normalize(means).T
    return float(cosine.abs().amax(1).double().mean())
