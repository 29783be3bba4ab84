"""The trainings of `frankle2019-mnist`: tickets round by round, and what they are held against."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import fresh_model, task
from prunus.bench.data.train import Training, evaluate, fit
from prunus.bench.grid.tickets import OTHER, shuffled
from prunus.engine import prune
from prunus.files import Row
from prunus.recipe import Recipe
from prunus.rng import generator_for
from prunus.surgery.masked import apply_masks, hold
from prunus.training import connection

__all__ = ["BARRIER", "ROLES", "Protocol", "Trainings", "densities"]

ROLES = ("ticket", "late-rewound", "rate-rewound", "one shot", "re-initialised", "shuffled")
BARRIER = "barrier"
CHAINS = ("ticket", "late-rewound", "rate-rewound")  # every round prunes what the last one trained
Masks = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is trained, and how.

    Attributes:
        task: whose network and data.
        epochs: of every training.
        check: steps between two looks at the validation loss.
        exponents: after each round a layer keeps 0.8ⁿ of its weights, the output layer 0.9ⁿ.
        reported: those of them at which one shot, controls and barriers are trained too.
        seeds: of initial weights and orders.
        early: share of a training to which the late-rewound ticket returns.
        batch: samples per step.
        rate: of Adam.
        held: one in so many training samples validates.
    """

    task: str
    epochs: int
    check: int
    exponents: tuple[int, ...]
    reported: tuple[int, ...] = (3, 7, 9, 12, 15)
    seeds: int
    early: float = 0.02
    batch: int = 60
    rate: float = 1.2e-3
    held: int = 12


@dataclass(frozen=True, eq=False, kw_only=True)
class _Trained:
    """One training: where its validation loss was least, and what it left."""

    stop: int
    error: float
    last_error: float
    state: Mapping[str, Tensor]
    snapshot: Mapping[str, Tensor]

    @property
    def numbers(self) -> Row:
        """What a record holds."""
        return {"stop": self.stop, "error": self.error, "last_error": self.last_error}


def densities(protocol: Protocol, n: int) -> dict[str, float]:
    """What each layer keeps after the round `n`; the output layer loses half as fast."""
    names = [name for name, m in task(protocol.task).model().named_modules() if _linear(m)]
    return {name: (0.9 if name == names[-1] else 0.8) ** n for name in names}


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


class Trainings:
    """All trainings of one seed, made when they are asked for and remembered."""

    def __init__(self, protocol: Protocol, seed: int, data: Dataset) -> None:
        self._protocol, self._seed = protocol, seed
        self._train = _Trainer(protocol, data, seed)
        self._known: dict[tuple[str, int], _Trained] = {}

    def row(self, role: str, n: int) -> Row:
        """The record of a training, or of the barrier between two of a ticket."""
        own = {"seed": self._seed, "role": role, "n": n}
        if role == "dense":
            return {**own, "density": 1.0, **self._of("dense", 0).numbers}
        density = self._masks(role, n)[1]
        if role == BARRIER:
            one, other = (self._train.model(self._of(r, n).state) for r in ("ticket", "twin"))
            line = connection(one, other, self._train.error)
            return {**own, "density": density, "barrier": line.barrier}
        return {**own, "density": density, **self._of(role, n).numbers}

    def _before(self, role: str, n: int) -> _Trained:
        """The training whose end is pruned for round `n`."""
        rounds = self._protocol.exponents
        at = rounds.index(n)
        if role == "one shot" or at == 0:
            return self._of("dense", 0)
        return self._of(role if role in CHAINS else "ticket", rounds[at - 1])

    def _masks(self, role: str, n: int) -> tuple[Masks, float]:
        return self._train.masks(self._before(role, n).state, n)

    def _of(self, role: str, n: int) -> _Trained:
        if (role, n) not in self._known:
            self._known[role, n] = self._made(role, n)
        return self._known[role, n]

    def _made(self, role: str, n: int) -> _Trained:
        if role == "dense":
            return self._train(self._train.fresh(self._seed), {}, "dense")
        masks, _ = self._masks(role, n)
        early = self._protocol.early if role in ("late-rewound", "rate-rewound") else 0.0
        if role == "shuffled":
            masks = shuffled(masks, generator_for(self._seed, "shuffled masks", n))
        if role == "late-rewound":
            start = self._of("dense", 0).snapshot
        elif role == "rate-rewound":
            start = self._before(role, n).state
        else:
            start = self._train.fresh(self._seed + (OTHER if role == "re-initialised" else 0))
        return self._train(start, masks, f"{role} {n}", early=early)


class _Trainer:
    """Trains from given weights under given masks, watching the validation loss."""

    def __init__(self, protocol: Protocol, data: Dataset, seed: int) -> None:
        """Set every `held`-th training sample apart, drawn by the seed."""
        self.protocol, self.data, self.seed = protocol, data, seed
        order = torch.randperm(len(data.x_train), generator=generator_for(seed, "validation"))
        cut = len(order) // protocol.held
        apart, rest = order[:cut], order[cut:]
        self._train = replace(data, x_train=data.x_train[rest], y_train=data.y_train[rest])
        self._valid = replace(data, x_test=data.x_train[apart], y_test=data.y_train[apart])
        self._training = Training(
            epochs=protocol.epochs, learning_rate=protocol.rate, batch=protocol.batch,
            decay="constant",
        )  # fmt: skip
        self._net = fresh_model(task(protocol.task), seed)

    def fresh(self, seed: int) -> dict[str, Tensor]:
        """Initial weights: Gaussian Glorot, biases zero."""
        generator = generator_for(seed, "Glorot", self.protocol.task)
        for module in self._net.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        return copy.deepcopy(self._net.state_dict())

    def model(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A network with these weights."""
        model = copy.deepcopy(self._net)
        model.load_state_dict(dict(state))
        return model

    def error(self, model: nn.Module) -> float:
        """On the test part, in %."""
        return 100 * evaluate(model, self.data)["test_error"]

    def masks(self, state: Mapping[str, Tensor], n: int) -> tuple[Masks, float]:
        """Masks of the largest trained weights; those that are zero already go first."""
        found = prune(self.model(state), Recipe(), densities(self.protocol, n), progress=False)
        return found.masks, found.cost_after.density

    def __call__(
        self, start: Mapping[str, Tensor], masks: Masks, name: str, *, early: float = 0.0
    ) -> _Trained:
        """Train the share from `early` on; the order of the samples follows `name`."""
        model = self.model(start)
        apply_masks(model, masks)
        steps = self.protocol.epochs * (len(self._train.x_train) // self.protocol.batch)
        keep = round(self.protocol.early * steps)
        done, best, stop, error = 0, float("inf"), 0, float("nan")
        snapshot: Mapping[str, Tensor] = {}

        def look(model: nn.Module) -> None:
            nonlocal done, best, stop, error, snapshot
            done += 1
            if done == keep:
                snapshot = copy.deepcopy(model.state_dict())
            if done % self.protocol.check == 0:
                loss = evaluate(model, self._valid)["cross_entropy"]
                if loss < best:
                    best, stop = loss, done
                    error = self.error(model)

        fit(
            model, self._train, self._training,
            generator=generator_for(self.seed, "order", name),
            hold=lambda optimizer: hold(model, masks, optimizer) if masks else None,
            after_step=look, span=(early, 1.0), progress=False,
        )  # fmt: skip
        last = self.error(model)
        state = copy.deepcopy(model.state_dict())
        return _Trained(stop=stop, error=error, last_error=last, state=state, snapshot=snapshot)
