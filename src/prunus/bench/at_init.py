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
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.bench.data import Dataset
from prunus.bench.models import mlp
from prunus.bench.stacked import FullBatch, check_stackable, stacked_fit, stacked_outputs
from prunus.budget import checked_density, count_of
from prunus.calibration import calibrate
from prunus.calibration.flow import ones_like_input, path_flow
from prunus.calibration.select import matching, prunable
from prunus.check import positive, unknown, whole
from prunus.presets import recipes
from prunus.progress import progress_bar
from prunus.rng import generator_for
from prunus.schedules import AtInit
from prunus.scores import grasp, snip, synflow
from prunus.selection import top_k_mask
from prunus.surgery.connected import Connection, connection

__all__ = ["CONTROL", "DENSE", "METHODS", "Cell", "Sweep", "he_mlp", "masks_at_init", "sweep"]

METHODS = ("random-init", "snip", "grasp", "synflow")
CONTROL = "dense, first weights × √density"
DENSE = "dense"
MINIMUM_SEEDS = 5

Masks = dict[str, Bool[Tensor, "..."]]


def he_mlp(features: int, widths: Sequence[int], classes: int, seed: int) -> nn.Sequential:
    """A ReLU network with biases of zero and weights N(0, 2/inputs) (He et al., 2015)."""
    model = mlp([features, *widths, classes])
    generator = generator_for(seed, "at-init", "he")
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, math.sqrt(2 / module.in_features), generator=generator)
                module.bias.zero_()
    return model


def masks_at_init(
    model: nn.Module,
    method: str,
    densities: Sequence[float],
    data: Any,
    *,
    names: Sequence[str],
    seed: int,
) -> list[Masks]:
    """The masks that the recipe of this name gives for each density, all at once.

    They are those of `prunus.prune(model, method, density, data=data, seed=seed)`; scores are
    computed once for all densities where the recipe has a single round.

    Args:
        model: the untrained network.
        method: one of `METHODS`.
        densities: in (0, 1].
        data: batches (inputs, labels).
        names: the layers that are pruned.
        seed: of random masks.
    """
    if method not in METHODS:
        raise unknown("method at initialisation", method, METHODS)
    modules = {name: model.get_submodule(name) for name in names}
    weights = {name: _weight(module) for name, module in modules.items()}
    if method == "random-init":
        return [_random_masks(weights, density, seed) for density in densities]
    if method == "synflow":
        schedule = recipes[method].schedule
        assert isinstance(schedule, AtInit)
        ones = ones_like_input(data)
        return [_synflow_masks(model, weights, d, schedule.rounds, ones) for d in densities]
    statistic = "grad" if method == "snip" else "hessian_grad"
    found = calibrate(model, data, (statistic,), layers=list(names), progress=False)
    score = snip if method == "snip" else grasp
    scores = {name: score(found[name].weight, getattr(found[name], statistic)) for name in names}
    return [_global_masks(scores, count_of(density, _total(weights))) for density in densities]


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.detach().flatten(1)


def _total(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _random_masks(weights: Mapping[str, Tensor], density: float, seed: int) -> Masks:
    """Exact counts per layer; one uniform per weight and seed, so masks are nested."""
    masks = {}
    for name, weight in weights.items():
        keys = torch.rand(
            (1, weight.numel()), dtype=torch.float64, generator=generator_for(seed, name)
        )
        kept = torch.tensor([count_of(density, weight.numel())])
        masks[name] = top_k_mask(keys, kept).reshape(weight.shape)
    return masks


def _global_masks(scores: Mapping[str, Tensor], kept: int) -> Masks:
    """The `kept` best of all layers; ties to the lower index."""
    pool = torch.cat([score.flatten() for score in scores.values()])[None]
    mask = top_k_mask(pool, torch.tensor([kept]))[0]
    parts = torch.split(mask, [score.numel() for score in scores.values()])
    return {
        name: part.reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _synflow_masks(
    model: nn.Module, weights: Mapping[str, Tensor], density: float, rounds: int, ones: Tensor
) -> Masks:
    """Rounds at densities d^(1/N), d^(2/N), … d; what a round removed ranks below all else."""
    total = _total(weights)
    masks: Masks = {name: torch.ones_like(weight).bool() for name, weight in weights.items()}
    for i in range(rounds):
        kept = {name: weights[name] * masks[name] for name in weights}
        shaped = {
            f"{name}.weight": value.abs().reshape(_parameter(model, name).shape)
            for name, value in kept.items()
        }
        _, flow = path_flow(model, shaped, ones)
        scores = {
            name: synflow(kept[name], flow[f"{name}.weight"].flatten(1)).masked_fill(
                ~masks[name], -torch.inf
            )
            for name in weights
        }
        masks = _global_masks(scores, count_of(density ** ((i + 1) / rounds), total))
    return masks


def _parameter(model: nn.Module, name: str) -> Tensor:
    module: Any = model.get_submodule(name)
    parameter: Tensor = module.weight
    return parameter


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method at one density, over seeds.

    Attributes:
        method: a recipe at initialisation, `DENSE`, or `CONTROL`.
        density: kept / total of the pruned layers' weights.
        accuracy: mean test accuracy.
        accuracy_error: its standard error.
        accuracy_interval: half its 95 % Student interval; None below 5 seeds.
        gain: mean difference to the dense network of the same seed.
        gain_error: standard error of the paired differences.
        gain_interval: half their 95 % interval; None below 5 seeds.
        boost: True where the gain is positive with a paired test that survives Holm's correction
            over the method's densities at level 0.05.
        control_gain: mean difference to the control of the same seed and density.
        control_gain_error: its standard error.
        train_loss: mean, nats.
        dead_units: mean share of hidden units without a kept weight in, or without one out.
        disconnected: share of seeds in which some output has no path from the input.
        collapsed: share of seeds in which no output has one.
        alignment: mean over live first-layer units of the largest |cosine| with a centred class
            mean, after training; None where the first layer does not see the inputs themselves.
        alignment_start: the same before training.
    """

    method: str
    density: float
    accuracy: float
    accuracy_error: float | None
    accuracy_interval: float | None
    gain: float
    gain_error: float | None
    gain_interval: float | None
    boost: bool
    control_gain: float | None
    control_gain_error: float | None
    train_loss: float
    dead_units: float
    disconnected: float
    collapsed: float
    alignment: float | None
    alignment_start: float | None


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
            inputs' deviation.
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
    table: dict[tuple[str, float], list[_Outcome]] = {key: [] for key in keys}
    reports: list[str] = []
    with progress_bar("Sweeping at initialisation", len(seed_list), progress=progress) as advance:
        for seed in seed_list:
            problem = _problem(data, seed, samples, test_samples, input_noise)
            network = _network(model, problem, seed)
            names = _names(network, layers, exclude)
            masks = _all_masks(network, names, methods, chosen, problem, seed)
            ones = {name: torch.ones_like(_weight(network.get_submodule(name))) for name in names}
            scale = {key: math.sqrt(key[1]) if key[0] == CONTROL else 1.0 for key in keys}
            by_key = [masks.get(key, {n: o.bool() for n, o in ones.items()}) for key in keys]
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
            shaped = {
                f"{name}.weight": torch.stack([own[name] for own in by_key]).reshape(
                    len(keys), *_parameter(network, name).shape
                )
                for name in names
            }
            trained, losses = stacked_fit(
                network, stack, shaped, problem.inputs, problem.labels, how
            )
            accuracies = _accuracies(network, trained, problem, how.chunk)
            for i, key in enumerate(keys):
                start = {name: value[i] * shaped[name][i] if name in shaped else value[i]
                         for name, value in stack.items()}  # fmt: skip
                end = {name: value[i] for name, value in trained.items()}
                table[key].append(
                    _Outcome(
                        accuracy=float(accuracies[i]),
                        train_loss=float(losses[i]),
                        dead_units=_dead_units(by_key[i]),
                        link=found[i],
                        alignment=_alignment(end, names[0], problem),
                        alignment_start=_alignment(start, names[0], problem),
                    )
                )
            advance(1)
    return Sweep(
        cells=_cells(table, chosen),
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
    """One split and one noise draw; inputs centred and divided by their overall deviation."""
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
    mean = x.mean(0)
    deviation = (x - mean).std().clamp_min(1e-12)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    if input_noise > 0:
        x = x + input_noise * torch.randn(x.shape, generator=generator)
        x_test = x_test + input_noise * torch.randn(x_test.shape, generator=generator)
    classes = int(torch.cat([data.y_train, data.y_test]).max()) + 1
    return _Problem(x, y, x_test, y_test, classes)


def _network(
    model: Callable[[int, int, int], nn.Module] | Sequence[int], problem: _Problem, seed: int
) -> nn.Module:
    features = problem.inputs[0].numel()
    if callable(model):
        network = model(features, problem.classes, seed)
    else:
        network = he_mlp(features, [whole("model", w, low=1) for w in model],
                         problem.classes, seed)  # fmt: skip
    check_stackable(network)
    return network


def _names(
    network: nn.Module, layers: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    found, refused = prunable(network)
    return matching(list(found), layers, exclude, refused)


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
    shaped = {
        f"{name}.weight": mask.reshape(_parameter(network, name).shape)
        for name, mask in masks.items()
    }
    return connection(network, shaped, inputs)


def _stack(network: nn.Module, names: Sequence[str], scales: Sequence[float]) -> dict[str, Tensor]:
    """The same first weights for every network, those of the control scaled."""
    factors = torch.tensor(scales)
    stack = {}
    for name, value in network.named_parameters():
        copies = value.detach().expand(len(scales), *value.shape).clone()
        if name.removesuffix(".weight") in names:
            copies *= factors.reshape(-1, *[1] * value.ndim).to(copies.dtype)
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


@dataclass(frozen=True)
class _Outcome:
    accuracy: float
    train_loss: float
    dead_units: float
    link: Connection
    alignment: float | None
    alignment_start: float | None


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


def _alignment(weights: Mapping[str, Tensor], name: str, problem: _Problem) -> float | None:
    """How much first-layer units look at class means: mean over live units of max |cos|."""
    matrix = weights[f"{name}.weight"]
    x = problem.inputs.flatten(1)
    if matrix.ndim != 2 or matrix.shape[1] != x.shape[1]:
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


def _spread(values: Float[Tensor, " seeds"]) -> tuple[float | None, float | None]:
    from scipy.stats import t

    if len(values) < 2:
        return None, None
    error = float(values.std()) / math.sqrt(len(values))
    if len(values) < MINIMUM_SEEDS:
        return error, None
    return error, error * float(t.ppf(0.975, len(values) - 1))


def _p_value(values: Float[Tensor, " seeds"]) -> float:
    """Two-sided p-value of a paired t-test; 1 where it cannot be computed."""
    from scipy.stats import t

    if len(values) < MINIMUM_SEEDS or float(values.std()) == 0:
        return 1.0
    score = float(values.mean()) / (float(values.std()) / math.sqrt(len(values)))
    return float(2 * t.sf(abs(score), len(values) - 1))


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects at `level`, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def _cells(
    table: Mapping[tuple[str, float], Sequence[_Outcome]], densities: Sequence[float]
) -> list[Cell]:
    def accuracies(key: tuple[str, float]) -> Float[Tensor, " seeds"]:
        return torch.tensor([o.accuracy for o in table[key]], dtype=torch.float64)

    dense = accuracies((DENSE, 1.0))
    boosts: dict[tuple[str, float], bool] = {}
    for method in dict.fromkeys(method for method, _ in table):
        keys = [key for key in table if key[0] == method]
        gains = [accuracies(key) - dense for key in keys]
        passed = holm([_p_value(gain) for gain in gains])
        for key, gain, ok in zip(keys, gains, passed, strict=True):
            boosts[key] = ok and float(gain.mean()) > 0
    cells = []
    for key, outcomes in table.items():
        method, density = key
        values = accuracies(key)
        error, interval = _spread(values)
        gain_error, gain_interval = _spread(values - dense)
        against = None
        if method not in (DENSE, CONTROL):
            against = values - accuracies((CONTROL, density))
        cells.append(
            Cell(
                method=method,
                density=density,
                accuracy=float(values.mean()),
                accuracy_error=error,
                accuracy_interval=interval,
                gain=float((values - dense).mean()),
                gain_error=gain_error,
                gain_interval=gain_interval,
                boost=boosts[key],
                control_gain=None if against is None else float(against.mean()),
                control_gain_error=None if against is None else _spread(against)[0],
                train_loss=_mean([o.train_loss for o in outcomes]),
                dead_units=_mean([o.dead_units for o in outcomes]),
                disconnected=_mean([float(bool(o.link.dead_outputs)) for o in outcomes]),
                collapsed=_mean([float(o.link.collapsed) for o in outcomes]),
                alignment=_mean_or_none([o.alignment for o in outcomes]),
                alignment_start=_mean_or_none([o.alignment_start for o in outcomes]),
            )
        )
    return cells


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None
