"""Online gradient descent of real students, many seeds at once: what the theory is checked with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Generator, Tensor

from prunus.check import positive, whole
from prunus.progress import progress_bar
from prunus.theory.teacher_student.activation import Activation, activation_of
from prunus.theory.teacher_student.order import OrderParameters, Weights
from prunus.theory.teacher_student.solve import Rate, output_times, schedule

__all__ = ["Draw", "Simulation", "simulate", "simulated_order"]

Draw = Callable[[int], Tensor]  # number of samples → inputs, seeds × samples × N
BLOCK = 64  # samples whose fields are propagated through their Gram matrix


@dataclass(frozen=True, eq=False, kw_only=True)
class Simulation:
    """Learning curves of simulated students.

    Attributes:
        times: α = steps/N of the snapshots.
        Q: student overlaps, times × seeds × K × K.
        R: student–teacher overlaps, times × seeds × K × M.
        T: teacher overlaps, seeds × M × M.
        v: readouts, times × seeds × K.
        v_star: teacher readout, M.
        errors: ε_g of the snapshots in closed form from their overlaps, times × seeds.
        weights: the final weights, shaped as those given.
        steps: gradient steps taken.
    """

    times: Float[Tensor, " times"]
    Q: Float[Tensor, "times seeds K K"]
    R: Float[Tensor, "times seeds K M"]
    T: Float[Tensor, "seeds M M"]
    v: Float[Tensor, "times seeds K"]
    v_star: Float[Tensor, " M"]
    errors: Float[Tensor, "times seeds"]
    weights: Weights
    steps: int


def simulated_order(simulation: Simulation, snapshot: int = -1, seed: int = 0) -> OrderParameters:
    """The order parameters of one snapshot of one seed."""
    return OrderParameters(
        simulation.Q[snapshot, seed],
        simulation.R[snapshot, seed],
        simulation.T[seed],
        simulation.v[snapshot, seed],
        simulation.v_star,
    )


def simulate(
    start: Weights,
    *,
    until: float,
    generator: Generator,
    rate: Rate = 0.5,
    readout_rate: Rate = 0.5,
    noise: float = 0.0,
    activation: str | Activation = "erf",
    times: Any = None,
    batch: int = 1,
    decay: float = 0.0,
    mask: Tensor | None = None,
    draw: Draw | None = None,
    progress: bool | None = False,
) -> Simulation:
    """Train real students by online gradient descent, one fresh sample (or batch) per step.

    w_k −= (η_w/√N) v_k g′(λ_k) Δ x and v_k −= (η_v/N) g(λ_k) Δ, both with the old w and v. Samples
    go in blocks: the fields of a block follow from those at its start and from the Gram matrix of
    its inputs, which is exact and needs no product over all N inputs per step. Seeds are advanced
    together, each with its own samples.

    Args:
        start: initial weights, of one seed or with one seeds axis.
        until: last α = steps/N; steps are floor(until · N + 1/2).
        generator: source of inputs and label noise.
        rate: η_w of the first layer, or a function of α.
        readout_rate: η_v of the readout; 0 for a soft committee machine.
        noise: σ of the labels.
        activation: "erf", "relu", "linear", or an `Activation`.
        times: α of the snapshots, increasing in [0, until]; default 0 and `until`.
        batch: B fresh samples per step, whose gradient is averaged.
        decay: κ: each step also takes (η_w κ/N) w off.
        mask: K × N or seeds × K × N; where False a weight is zero and stays so.
        draw: inputs to use instead of standard normal ones.
        progress: as in `prunus.progress.progress_bar`.

    Raises:
        ValueError: a bad argument.
        RuntimeError: the weights diverged.
    """
    unit = activation_of(activation)
    horizon = positive("until", until)
    sigma = positive("noise", noise, zero=True)
    kappa = positive("decay", decay, zero=True)
    size = whole("batch", batch, low=1)
    first, second = schedule("rate", rate), schedule("readout_rate", readout_rate)
    if start.student.ndim > 3:
        raise ValueError(
            f"`start` must have at most one seeds axis, got student weights of shape "
            f"{tuple(start.student.shape)}. Flatten the seeds."
        )
    single = start.student.ndim == 2
    student = (start.student[None] if single else start.student).numpy().copy()
    teacher = (start.teacher[None] if single else start.teacher).numpy()
    readout = (start.v[None] if single else start.v).numpy().copy()
    target = start.v_star.numpy()
    seeds, students, inputs = student.shape
    gates = _gates(mask, (seeds, students, inputs))
    if gates is not None:
        student *= gates
    stored = output_times([0.0, horizon] if times is None else times, horizon)
    moments = [int(t * inputs + 0.5) for t in stored]
    root = np.sqrt(inputs)

    def samples(count: int) -> ndarray:
        if draw is None:
            drawn = torch.randn(seeds, count, inputs, generator=generator, dtype=torch.float32)
        else:
            drawn = draw(count)
            if tuple(drawn.shape) != (seeds, count, inputs):
                raise ValueError(
                    f"`draw` must give shape {(seeds, count, inputs)}, got {tuple(drawn.shape)}."
                )
        return drawn.numpy().astype(np.float64)

    snapshots = []
    quiet = np.errstate(over="ignore", invalid="ignore")  # divergence has its own message below
    with quiet, progress_bar("training", moments[-1], progress=progress) as advance:
        for begin, end, snapshot in _stretches(moments, max(1, BLOCK // size)):
            if snapshot:
                snapshots.append(_overlaps(student, teacher, readout))
                continue
            count = (end - begin) * size
            x = samples(count)
            across = x.transpose(0, 2, 1)
            labels = np.einsum("m,smn->sn", target, unit.value(teacher @ across / root))
            if sigma:
                labels += (
                    sigma
                    * torch.randn(seeds, count, generator=generator, dtype=torch.float64).numpy()
                )
            fields = student @ across / root
            if gates is None:
                gram = x @ across / root
            else:
                gram = np.stack([(x * gates[:, k, None]) @ across for k in range(students)], 1)
                gram /= root
            moved = np.zeros((seeds, students, count))
            shrink = 1.0
            for step in range(end - begin):
                now = slice(step * size, (step + 1) * size)
                alpha = (begin + step) / inputs
                local = fields[:, :, now] - _propagate(moved, gram, now)
                if shrink != 1.0:
                    local *= shrink
                output = unit.value(local)
                error = np.matmul(readout[:, None], output)[:, 0] - labels[:, now]
                rate_now = first(alpha)
                if kappa:
                    shrink *= 1 - rate_now * kappa / inputs
                scaled = error * (rate_now / (root * size * shrink))
                moved[:, :, now] = readout[:, :, None] * unit.slope(local) * scaled[:, None]
                readout -= (second(alpha) / (inputs * size)) * (output @ error[:, :, None])[:, :, 0]
            change = moved @ x
            if gates is not None:
                change *= gates
            student -= change
            student *= shrink
            advance(end - begin)
            if not np.isfinite(readout).all() or np.abs(readout).max() > 1e9:
                raise RuntimeError(
                    f"The simulated student diverged before alpha = {end / inputs:.4g}. Lower the "
                    f"learning rate."
                )
    q, r, v = (torch.from_numpy(np.stack(part)) for part in zip(*snapshots, strict=True))
    t = torch.from_numpy(teacher @ teacher.transpose(0, 2, 1) / inputs)
    final, last = torch.from_numpy(student), torch.from_numpy(readout)
    return Simulation(
        times=torch.from_numpy(stored),
        Q=q,
        R=r,
        T=t,
        v=v,
        v_star=start.v_star,
        errors=_errors(q, r, t, v, start.v_star, unit),
        weights=Weights(
            final[0] if single else final, start.teacher, last[0] if single else last, start.v_star
        ),
        steps=moments[-1],
    )


def _propagate(
    moved: Float[ndarray, "seeds K count"], gram: ndarray, now: slice
) -> Float[ndarray, "seeds K batch"]:
    """What earlier steps of the block took off the fields of the samples `now`."""
    past = slice(0, now.start)
    if gram.ndim == 3:
        result: ndarray = moved[:, :, past] @ gram[:, past, now]
        return result
    result = (moved[:, :, None, past] @ gram[:, :, past, now])[:, :, 0]
    return result


def _stretches(moments: list[int], longest: int) -> Iterator[tuple[int, int, bool]]:
    """(begin, end, False) for each block of steps, and (at, at, True) for each snapshot."""
    at = 0
    for moment in moments:
        while at < moment:
            end = min(at + longest, moment)
            yield at, end, False
            at = end
        yield at, at, True


def _gates(mask: Tensor | None, shape: tuple[int, int, int]) -> ndarray | None:
    if mask is None:
        return None
    given = torch.as_tensor(mask)
    if tuple(given.shape) not in (shape, shape[1:]):
        raise ValueError(
            f"`mask` must have shape {shape[1:]} or {shape}, got {tuple(given.shape)}."
        )
    result: ndarray = np.broadcast_to(given.numpy().astype(np.float64), shape)
    return result


def _overlaps(student: ndarray, teacher: ndarray, readout: ndarray) -> tuple[ndarray, ...]:
    inputs = student.shape[-1]
    across = student.transpose(0, 2, 1)
    return (
        student @ across / inputs,
        student @ teacher.transpose(0, 2, 1) / inputs,
        readout.copy(),
    )


def _errors(
    q: Tensor, r: Tensor, t: Tensor, v: Tensor, v_star: Tensor, unit: Activation
) -> Float[Tensor, "times seeds"]:
    values = torch.empty(q.shape[:2], dtype=torch.float64)
    for n in range(q.shape[0]):
        for s in range(q.shape[1]):
            bottom = torch.cat([r[n, s].T, t[s]], 1)
            pair = unit.pair(torch.cat([torch.cat([q[n, s], r[n, s]], 1), bottom]).numpy())
            readout = torch.cat([v[n, s], -v_star]).numpy()
            values[n, s] = 0.5 * float(readout @ pair @ readout)
    return values
