"""Train masked networks at many densities and seeds at once, and record what they learn."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.check import positive, unknown, whole
from prunus.progress import progress_bar
from prunus.rng import generator_for
from prunus.theory.at_init.data import Setting, as_densities, as_seeds, draw_problem
from prunus.theory.at_init.dynamics import (
    Dual,
    Dynamics,
    Primal,
    Reduced,
    nested_grams,
    reduced_draws,
)
from prunus.theory.at_init.evaluate import accuracy_with_ties, certificate_of, performance
from prunus.theory.at_init.thresholds import (
    InformationBounds,
    information_bounds,
    own_signal_neurons,
)

__all__ = ["ENGINES", "Simulation", "simulate"]

ENGINES = ("dual", "primal", "reduced")
MEMORY = 2 * 2**30  # bytes of Gram matrices that the dual engine accepts
TRAJECTORIES = (
    "test_accuracy",
    "test_loss",
    "certificate",
    "signal_own",
    "signal_other",
    "noise_signal_neurons",
    "noise_only_neurons",
    "norm",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Simulation:
    """What training at every density and seed gave; axes are densities × seeds.

    Attributes:
        setting: sizes and strengths.
        engine: "dual", "primal" or "reduced".
        densities: in the caller's order.
        seeds: one seed fixes data, first weights, mask uniforms and test draws for all densities,
            so differences between densities are paired and masks are nested.
        test_accuracy: exact in law up to the Monte-Carlo error of the test draws.
        test_loss: cross-entropy, nats.
        train_accuracy: at the end.
        train_loss: at the end, nats; it goes to 0 in every regime, so read it beside the test loss.
        step_size: η of the run.
        signal_neurons: S_k, neurons of class k that keep a coordinate of their own signal.
        visible: a, classes that any neuron of the network sees.
        accuracy_bound: (a+1)/K, proved.
        loss_bound: ((K−a)/K) log(K−a), proved.
        certificate: proved upper bound on the test error of the trained weights ("reduced": of
            weights with the modelled law).
        loss_curve: train loss before each step and at the end.
        accuracy_curve: train accuracy, likewise.
        checkpoints: iterations at which `trajectory` is recorded; the last is the end.
        trajectory: per name a tensor densities × seeds × checkpoints: test accuracy and loss,
            certificate, mean signal coefficient μ⟨w, e⟩ of signal neurons (own) and of kept other
            classes' coordinates (other), mean noise coefficient ⟨w, ξ_i⟩ over own-class
            points for signal neurons and for noise-only neurons, norm of all noisy weights.
            NaN where there is no such neuron.
        weights: final masked weights per (density index, seed index), if asked for.
    """

    setting: Setting
    engine: str
    densities: list[float]
    seeds: list[int]
    test_accuracy: Float[Tensor, "densities seeds"]
    test_loss: Float[Tensor, "densities seeds"]
    train_accuracy: Float[Tensor, "densities seeds"]
    train_loss: Float[Tensor, "densities seeds"]
    step_size: Float[Tensor, "densities seeds"]
    signal_neurons: Int[Tensor, "densities seeds classes"]
    visible: Int[Tensor, "densities seeds"]
    accuracy_bound: Float[Tensor, "densities seeds"]
    loss_bound: Float[Tensor, "densities seeds"]
    certificate: Float[Tensor, "densities seeds"]
    loss_curve: Float[Tensor, "densities seeds times"]
    accuracy_curve: Float[Tensor, "densities seeds times"]
    checkpoints: list[int]
    trajectory: Mapping[str, Float[Tensor, "densities seeds checkpoints"]]
    weights: Mapping[tuple[int, int], Float[Tensor, "rows dimension"]] | None = None


def simulate(
    setting: Setting,
    densities: Any,
    *,
    seeds: int | Sequence[int] = 10,
    engine: Literal["dual", "primal", "reduced"] = "dual",
    steps: int = 150,
    learning_rate: float = 2.0,
    step_size: float | None = None,
    test_draws: int = 1000,
    checkpoints: int = 12,
    keep_weights: bool = False,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> Simulation:
    """Prune at random at initialisation, train by full-batch gradient descent, test.

    The gradient of the mean cross-entropy is masked, relu'(0) = 0. With `step_size` None every run
    takes η = lr · n/λ_max, λ_max the largest eigenvalue over classes of Σ_r X diag(m_kr) Xᵀ: lr in
    (0, 4) is stable, and equal lr · steps compares densities fairly (η grows like 1/p).

    Args:
        setting: sizes and strengths of the model.
        densities: fractions kept, any order, each in (0, 1]; masks are Bernoulli and nested.
        seeds: a count, or the seeds themselves.
        engine: "dual" is exact and costs 2 n² R flops a step; "primal" is exact for n too large
            for n × n matrices per neuron; "reduced" does not depend on d [HEURISTIC].
        steps: T, gradient steps.
        learning_rate: lr in (0, 4).
        step_size: a fixed η instead.
        test_draws: test points per class, shared by all classes and densities.
        checkpoints: about this many log-spaced iterations at which test performance, coefficients
            and the certificate are recorded; 0 records the end only and is several times faster.
        keep_weights: whether to return the final weights ("dual" and "primal").
        dtype: of the training; float32 halves the time.
        generator: draws the seeds where `seeds` is a count; None takes 0, 1, 2, ….
        progress: see `prunus.progress.progress_bar`.

    Raises:
        ValueError: a bad argument, an unknown engine, or more memory than the dual engine takes.

    Warns:
        RuntimeWarning: a run that did not memorise its training set, a fully masked network, or a
            reduced engine outside its range (n > d p / 3).
    """
    wanted = as_densities(densities)
    seed_list = as_seeds(seeds, generator)
    if engine not in ENGINES:
        raise unknown("engine", str(engine), ENGINES)
    whole("steps", steps, low=1)
    whole("test_draws", test_draws, low=1)
    whole("checkpoints", checkpoints, low=0)
    positive("learning_rate", learning_rate)
    if learning_rate >= 4:
        raise ValueError(f"`learning_rate` must lie in (0, 4), got {learning_rate!r}: unstable.")
    if step_size is not None:
        positive("step_size", step_size)
    if keep_weights and engine == "reduced":
        raise ValueError("`keep_weights` needs the engine 'dual' or 'primal', got 'reduced'.")
    if engine == "dual":
        _check_memory(setting, dtype)
    if engine == "reduced":
        _check_range(setting, min(wanted))
    ascending = sorted(set(wanted))
    times = _checkpoint_times(steps, checkpoints)
    runs: dict[tuple[float, int], _Run] = {}
    with progress_bar(
        "Training pruned networks", len(ascending) * len(seed_list), progress=progress
    ) as advance:
        for seed in seed_list:
            normals = torch.randn(
                setting.rows,
                test_draws,
                generator=generator_for(seed, "at-init", "test"),
                dtype=torch.float64,
            ).to(dtype)
            for density, dynamics in _networks(setting, seed, ascending, engine, dtype):
                eta = step_size
                if eta is None:
                    top = dynamics.curvature
                    eta = learning_rate * setting.samples / top if top > 0 else 0.0
                runs[density, seed] = _train(setting, dynamics, eta, steps, times, normals)
                if keep_weights:
                    assert isinstance(dynamics, Dual | Primal)
                    runs[density, seed].weight = dynamics.weight.clone()
                advance(1)
    result = _gather(setting, engine, wanted, seed_list, times, runs)
    _warn_about(result)
    return result


def _check_memory(setting: Setting, dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size() * setting.rows * setting.samples**2
    if size > MEMORY:
        raise ValueError(
            f"`engine` 'dual' would need {size / 2**30:.1f} GiB for {setting.rows} Gram matrices "
            f"of {setting.samples} × {setting.samples}, above {MEMORY / 2**30:.0f} GiB. Use "
            f"engine='primal', or engine='reduced' for a large dimension."
        )


def _check_range(setting: Setting, lowest: float) -> None:
    if setting.samples > setting.dimension * lowest / 3:
        warnings.warn(
            f"samples = {setting.samples} exceeds dimension · density / 3 = "
            f"{setting.dimension * lowest / 3:.3g} at density {lowest:g}: the reduced level is "
            f"outside its range there.",
            RuntimeWarning,
            stacklevel=3,
        )


def _checkpoint_times(steps: int, count: int) -> list[int]:
    """About `count` log-spaced iterations, and the end."""
    spaced = [round(steps ** (i / max(count - 1, 1))) for i in range(count)]
    return sorted({*spaced, steps})


def _networks(
    setting: Setting, seed: int, ascending: Sequence[float], engine: str, dtype: torch.dtype
) -> Iterator[tuple[float, Dynamics]]:
    """One untrained network per density; the draws are shared."""
    if engine == "reduced":
        draws = reduced_draws(setting, seed, dtype)
        for density in ascending:
            yield density, Reduced(draws, density)
        return
    problem = draw_problem(setting, seed, dtype)
    if engine == "primal":
        for density in ascending:
            yield density, Primal(problem, density)
        return
    for density, grams in zip(ascending, nested_grams(problem, ascending), strict=True):
        yield density, Dual(problem, density, grams)


@dataclass
class _Run:
    """Everything recorded of one density and seed."""

    loss: Float[Tensor, " times"]
    accuracy: Float[Tensor, " times"]
    step_size: float
    signal_neurons: Int[Tensor, " classes"]
    visible: int
    trajectory: dict[str, list[float]]
    weight: Tensor | None = None


def _train(
    setting: Setting,
    dynamics: Dynamics,
    eta: float,
    steps: int,
    times: Sequence[int],
    normals: Float[Tensor, "rows draws"],
) -> _Run:
    """Gradient descent of one network; a step size of 0 (all masked) changes nothing."""
    k, m, n = setting.classes, setting.neurons, setting.samples
    labels = torch.arange(n) % k
    dtype = dynamics.preactivations.dtype
    target = torch.nn.functional.one_hot(labels, k).T.to(dtype)
    outputs = torch.empty(steps + 1, k, n, dtype=dtype)
    trajectory: dict[str, list[float]] = {name: [] for name in TRAJECTORIES}
    for step in range(steps + 1):
        active = dynamics.preactivations.reshape(k, m, n)
        torch.sum(active.clamp_min(0), 1, out=outputs[step])
        if step in times:
            _record(setting, dynamics, labels, normals, trajectory)
        if step == steps or eta == 0:
            continue
        residual = (target - outputs[step].softmax(0)) * (eta / n)
        dynamics.advance((residual[:, None] * (active > 0)).reshape(k * m, n))
    log_odds = outputs.log_softmax(1)
    index = labels[None, None].expand(steps + 1, 1, n)
    kept = dynamics.kept_signal
    seen = kept.reshape(len(kept), k, -1).any(2).any(0)
    return _Run(
        loss=-log_odds.gather(1, index).squeeze(1).mean(1, dtype=torch.float64),
        accuracy=accuracy_with_ties(outputs, labels.expand(steps + 1, n)).mean(
            1, dtype=torch.float64
        ),
        step_size=eta,
        signal_neurons=own_signal_neurons(kept, k, setting.support),
        visible=int(seen.sum()),
        trajectory=trajectory,
    )


def _record(
    setting: Setting,
    dynamics: Dynamics,
    labels: Int[Tensor, " samples"],
    normals: Float[Tensor, "rows draws"],
    trajectory: dict[str, list[float]],
) -> None:
    """Append one checkpoint of every trajectory."""
    k, m = setting.classes, setting.neurons
    law = dynamics.law()
    accuracy, loss = performance(setting, law, normals)
    kept = dynamics.kept_signal.reshape(k * m, k, -1).any(2)  # neuron × class
    own = torch.arange(k).repeat_interleave(m)
    is_own = torch.nn.functional.one_hot(own, k).bool()
    sees = kept.gather(1, own[:, None])[:, 0]
    noise = dynamics.preactivations - law.shift[:, labels]
    match = own[:, None] == labels
    values = {
        "test_accuracy": accuracy,
        "test_loss": loss,
        "certificate": certificate_of(setting, law),
        "signal_own": _mean(law.shift[kept & is_own]),
        "signal_other": _mean(law.shift[kept & ~is_own]),
        "noise_signal_neurons": _mean(noise[match & sees[:, None]]),
        "noise_only_neurons": _mean(noise[match & ~sees[:, None]]),
        "norm": float(law.covariance.diagonal().sum().clamp_min(0).sqrt() / setting.noise),
    }
    for name in TRAJECTORIES:
        trajectory[name].append(values[name])


def _mean(values: Float[Tensor, " count"]) -> float:
    return float(values.double().mean()) if len(values) else math.nan


def _gather(
    setting: Setting,
    engine: str,
    densities: list[float],
    seeds: list[int],
    times: list[int],
    runs: Mapping[tuple[float, int], _Run],
) -> Simulation:
    """Put the runs into tensors, densities in the caller's order."""
    grid = [[runs[p, seed] for seed in seeds] for p in densities]

    def table(value: Callable[[_Run], Any]) -> Tensor:
        return torch.tensor([[value(run) for run in row] for row in grid], dtype=torch.float64)

    def bound(run: _Run) -> InformationBounds:
        return information_bounds(run.visible, setting.classes)

    stacked = table(lambda run: [run.trajectory[name] for name in TRAJECTORIES])
    trajectory = {name: stacked[:, :, i] for i, name in enumerate(TRAJECTORIES)}
    curves = torch.stack([torch.stack([run.loss for run in row]) for row in grid])
    accuracies = torch.stack([torch.stack([run.accuracy for run in row]) for row in grid])
    kept = {
        (i, j): run.weight
        for i, row in enumerate(grid)
        for j, run in enumerate(row)
        if run.weight is not None
    }
    return Simulation(
        setting=setting,
        engine=engine,
        densities=densities,
        seeds=seeds,
        test_accuracy=trajectory["test_accuracy"][..., -1],
        test_loss=trajectory["test_loss"][..., -1],
        train_accuracy=accuracies[..., -1],
        train_loss=curves[..., -1],
        step_size=table(lambda run: run.step_size),
        signal_neurons=torch.stack(
            [torch.stack([run.signal_neurons for run in row]) for row in grid]
        ),
        visible=table(lambda run: run.visible).long(),
        accuracy_bound=table(lambda run: bound(run).accuracy),
        loss_bound=table(lambda run: bound(run).loss),
        certificate=trajectory["certificate"][..., -1],
        loss_curve=curves,
        accuracy_curve=accuracies,
        checkpoints=times,
        trajectory=trajectory,
        weights=kept or None,
    )


def _warn_about(result: Simulation) -> None:
    """Say which densities masked everything and which did not memorise their training set."""
    dead = [p for i, p in enumerate(result.densities) if bool((result.step_size[i] == 0).any())]
    if dead:
        warnings.warn(
            f"At density {', '.join(f'{p:g}' for p in dead)} a seed's mask kept no weight: its "
            f"network was not trained and scores chance.",
            RuntimeWarning,
            stacklevel=3,
        )
    slow = [
        p
        for i, p in enumerate(result.densities)
        if bool(((result.train_loss[i] > 0.1) | (result.train_accuracy[i] < 1)).any())
    ]
    if slow:
        warnings.warn(
            f"At density {', '.join(f'{p:g}' for p in slow)} a run did not memorise its training "
            f"set (train loss > 0.1 or train accuracy < 1). Raise `steps`.",
            RuntimeWarning,
            stacklevel=3,
        )
