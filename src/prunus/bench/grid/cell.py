"""One cell of a grid: what is pruned how, its identity, and the null baselines it must beat."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import prunus
from prunus.allocation import Uniform
from prunus.bench.data.tasks import task
from prunus.bench.grid.budgets import budget_of, words
from prunus.bench.grid.tickets import CONTROLS
from prunus.bench.record import content_id
from prunus.budget import Budget
from prunus.compensation import NoCompensation
from prunus.courses import Static
from prunus.granularity import Edge, EdgePerRow, Node
from prunus.parts import NODES
from prunus.presets import recipes, resolve
from prunus.recipe import Recipe, parse
from prunus.schedules import OneShot, Schedule, steps_of
from prunus.scores import Constant
from prunus.selection import RandomK

__all__ = ["BASELINES", "RESCORES", "Cell", "Settings", "baselines", "recipe_of", "schedule_of"]

BASELINES = {
    "random": "a random mask of equal density",
    "random-layers": "a random mask with as many weights in every layer",
    "small-dense": "a dense network with as many parameters, trained from the start",
    "no-compensation": "the same masks without compensation",
    "no-retraining": "the same pruning without retraining",
    **CONTROLS,
}


RESCORES = {
    "bare": "masks without compensation or any other update",
    "emitting": "removed nodes lose their incoming weights alone and go on emitting f(bias)",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for all cells of a grid and decides their results.

    Attributes:
        calibration: number of training samples that calibrate.
        layers: globs of the layers to prune; None for all.
        exclude: globs of layers to leave alone.
        top_k: also score how often the label is among so many largest logits; None leaves it out.
        latency: time the dense and the pruned network (nodes: compact).
        certificate: certify the final network on so many test samples; None leaves it out.
        network: the seed of the one dense network of all cells, whose seeds then draw the samples
            that calibrate; None gives each seed a network of its own.
        equal_training: all trainings of a schedule together take as many epochs as one.
        train: False ends schedules of several rounds that need no training without one.
        distil: temperature and weight with which trainings after the dense network's own ask for
            its outputs; None asks for the labels alone.
        rescore: names in `RESCORES`: also score the same masks applied to the dense network in
            these ways; the scores are called NAME_….
        compress: ways to compress the final network, as `grid.compressed.way_of` reads them.
        device: where pruning, retraining and scoring run; dense networks are trained on the CPU.
        threads: torch threads of the process that runs the cell.
    """

    calibration: int = 1000
    layers: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    top_k: int | None = None
    latency: bool = False
    device: str = "cpu"
    threads: int = 1
    certificate: int | None = None
    rescore: tuple[str, ...] = ()
    compress: tuple[str, ...] = ()
    network: int | None = None
    equal_training: bool = False
    distil: tuple[float, float] | None = None
    train: bool = True


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: everything is text, so that any process can be told to do it.

    Attributes:
        task: name or import path.
        label: what tables call the recipe.
        recipe: as Python.
        budget: as Python.
        schedule: "none" (prune once), "retrain" (and train on), or a schedule as Python.
        seed: of the dense network's training and of every draw in pruning and retraining.
        role: "prune", or the baseline that is no pruning by a recipe of its own:
            "random-layers" (`recipe` is the one whose layer counts are taken) or "small-dense".
        settings: what holds for all cells.
    """

    task: str
    label: str
    recipe: str
    budget: str
    schedule: str
    seed: int
    role: str = "prune"
    settings: Settings = field(default_factory=Settings)

    @property
    def id(self) -> str:
        """Hash of all that decides the result; the label does not."""
        settings = asdict(self.settings)
        for newer in ("certificate", "rescore", "compress", "equal_training", "distil"):
            if not settings[newer]:  # records from before keep their identity
                del settings[newer]
        if self.settings.network is None:
            del settings["network"]
        if self.settings.train:
            del settings["train"]
        return content_id(
            task=self.task,
            definition=task(self.task).definition,
            recipe=recipe_of(self.recipe).digest,
            budget=self.budget,
            schedule=self.schedule,
            seed=self.seed,
            role=self.role,
            settings=settings,
            version=prunus.__version__,
        )

    @property
    def model_seed(self) -> int:
        """The seed of the dense network."""
        own = self.settings.network
        return self.seed if own is None else own

    def __str__(self) -> str:
        asked = words(self.budget).replace("=", " ")
        return f"{self.task}  {self.label}  {asked}  {self.schedule}  seed {self.seed}"


@functools.lru_cache(maxsize=1024)
def recipe_of(text: str) -> Recipe:
    """The recipe of a name in `prunus.recipes` or of its form as Python.

    Raises:
        ValueError: an unknown name (near matches are suggested), or no recipe.
    """
    if "(" not in text:
        return resolve(text)[1]
    found = parse(text)
    if not isinstance(found, Recipe):
        raise ValueError(f"{text!r} is a part of a recipe. Write Recipe(score=…, …).")
    return found


def schedule_of(text: str) -> tuple[Schedule, bool, bool]:
    """The schedule; whether it trains after pruning; whether it starts from untrained weights.

    Raises:
        ValueError: neither `none`, `retrain` nor a schedule as Python.
    """
    if text in ("none", "retrain"):
        return OneShot(), text == "retrain", False
    if "(" not in text:
        raise ValueError(
            f"Unknown schedule {text!r}. Write none, retrain, or for example Iterative(rounds=3)."
        )
    found = parse(text)
    if not callable(found) or not hasattr(found, "trains"):
        raise ValueError(f"{text!r} is no schedule. Write for example Iterative(rounds=3).")
    if found.inside:
        return found, True, True
    dense_first = steps_of(found)[0].budget is None  # a training before anything is pruned
    return found, True, found.before_training or dense_first


def rewound_to(schedule: Schedule) -> float | None:
    """The share of a training that kept weights return to, so that fresh ones compare; or None."""
    steps = [] if schedule.inside else steps_of(schedule)
    if not any(step.rewind for step in steps):
        return None
    return next((step.span[1] for step in steps if step.snapshot), 0.0)


def random_twin(recipe: Recipe) -> Recipe:
    """Uniform random choice with the granularity of `recipe`."""
    if isinstance(recipe.granularity, Edge | EdgePerRow):
        return recipes["random-edge"]
    if recipe.granularity == Node():
        return recipes["random-node"]
    return Recipe(granularity=recipe.granularity, score=Constant(), selection=RandomK())


def baselines(cell: Cell) -> Mapping[str, Cell]:
    """The null baselines of a pruning, by name; what does not apply is left out.

    - `random`: a uniform random mask of equal density, every layer alike.
    - `random-layers`: a random mask with as many weights in every layer, for recipes that split
      the budget unevenly (else, and where the budget says itself what each layer keeps, it is
      `random`).
    - `small-dense`: a dense network with as many parameters, trained from the start and, where the
      cell retrains, as long again.
    - `no-compensation`: the recipe with `NoCompensation()`; a joint method has no such twin.
    - `re-initialised`, `shuffled`: of a lottery ticket, where weights are rewound: its masks on
      fresh weights, and its weights under other masks, trained once in full.
    - `no-retraining`: the recipe on the trained network, without training afterwards. For the
      schedule `retrain` that is the score of the very same run before it trains on, so the cell
      itself is named.

    Inside training, random masks are drawn at its start and stay (`Static()`), and there is no
    pruning without it.
    """
    recipe = recipe_of(cell.recipe)
    schedule, _, _ = schedule_of(cell.schedule)
    twin = random_twin(recipe)
    found = {"random": replace(cell, label=resolve(twin)[0], recipe=repr(twin))}
    if schedule.inside:
        name = f"static {found['random'].label}"
        found["random"] = replace(found["random"], label=name, schedule=repr(Static()))
    shared = isinstance(budget_of(cell.budget), Budget) and recipe.granularity.fixed is None
    if shared and not isinstance(recipe.allocation, Uniform):
        found["random-layers"] = replace(
            cell, label=f"random in the layers of {cell.label}", role="random-layers"
        )
    once = cell.schedule == "none" or schedule.inside or cell.settings.equal_training
    once = once or not cell.settings.train
    found["small-dense"] = replace(
        cell,
        label="small dense" + (" (for nodes)" if recipe.granularity.units == NODES else ""),
        recipe=repr(twin),
        schedule="none" if once else "retrain",
        role="small-dense",
    )
    if not isinstance(recipe.compensation, NoCompensation):
        bare = replace(recipe, compensation=NoCompensation())
        name = resolve(bare)[0]
        label = name if not name.startswith("recipe-") else f"{cell.label}, not compensated"
        found["no-compensation"] = replace(cell, label=label, recipe=repr(bare))
    if rewound_to(schedule) is not None and not recipe.granularity.shrinks:
        for role in CONTROLS:
            found[role] = replace(cell, label=f"{cell.label}, {role}", role=role)
    if cell.schedule == "retrain":
        found["no-retraining"] = cell
    elif cell.schedule != "none" and not schedule.inside and cell.settings.train:
        found["no-retraining"] = replace(cell, schedule="none")
    return found
