"""What a folder says of a pruned network, held against the model before anything is made of it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from prunus.budget import Plan
from prunus.cost import Cost
from prunus.parts import EDGES
from prunus.reading import Count, Schema, Shape, Spread, check, validated
from prunus.recipe import Recipe, as_written
from prunus.result.example import InputFacts
from prunus.result.packing import unbits, unpacked
from prunus.rows import RowSet
from prunus.surgery.attributes import BARE, bare_widths
from prunus.surgery.following import keeps
from prunus.weights import weights_of

__all__ = [
    "Account", "check_missing", "checked_account", "compact_state", "kept_counts",
    "state_and_masks",
]  # fmt: skip


def kept_counts(value: Any) -> int | tuple[int, ...]:
    """What a plan keeps of a layer: a count, or a list of them."""
    each = value if isinstance(value, list) else [value]
    for count in each:
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"should be a count >= 0, or a list of such, has {count!r:.30}")
    return tuple(each) if isinstance(value, list) else int(value)


def _recipe(text: Any, info: Any) -> Recipe:
    if not isinstance(text, str):
        raise ValueError("should be a recipe as Python")
    return as_written(text, info.data.get("units", EDGES))


def _cost(cost: Cost) -> Cost:
    def negative(values: Mapping[str, Any]) -> list[str]:
        inner = [n for v in values.values() if isinstance(v, Mapping) for n in negative(v)]
        return [n for n, v in values.items() if isinstance(v, int | float) and v < 0] + inner

    below = negative(asdict(cost))
    if below:
        raise ValueError(f"should have no negative numbers, has them in {', '.join(below)}")
    return cost


Kept = Annotated[int | tuple[int, ...], BeforeValidator(kept_counts)]
Price = Annotated[Cost, AfterValidator(_cost)]
Rows = Annotated[Any, BeforeValidator(RowSet.from_text)]


class PlanFacts(Schema):
    """The plan."""

    kept: dict[str, Kept]
    density: Spread
    limit: Spread | None = None
    kind: str
    value: Spread
    feasible: bool
    notes: list[str]


class LayerFacts(Schema):
    """What was done to a layer."""

    error: Spread | None
    power: Spread | None = None
    ridge: Spread | None
    notes: dict[str, Any]


class Account(Schema):
    """`pruned.json`."""

    format: Count
    units: str = EDGES
    recipe: Annotated[Any, BeforeValidator(_recipe)]
    name: str
    seed: Annotated[int, Field(ge=0)]
    plan: PlanFacts
    layers: dict[str, LayerFacts]
    not_pruned: dict[str, str]
    cost_before: Price
    cost_after: Price
    data_fingerprint: str | None
    metrics: dict[str, Any]
    notes: list[str]
    dense: str | None
    shapes: dict[str, Shape]
    dtypes: dict[str, str] = Field(default_factory=dict)
    mask_shapes: dict[str, Shape]
    files: dict[str, str]
    rows: dict[Literal["data", "plan"], Rows] = Field(default_factory=dict)
    example: dict[str, InputFacts] | None = None
    compact_widths: dict[str, dict[str, int | list[int]]] | None = None
    compact_missing: dict[str, int | None] | None = None
    compact_numbers: dict[str, dict[str, Annotated[int, Field(ge=1)]]] | None = None

    def counted(self) -> Plan:
        """The plan as a value."""
        facts = self.plan
        return Plan(
            kept=facts.kept,
            density=facts.density,
            limit=facts.limit,
            kind=facts.kind,
            value=facts.value,
            feasible=facts.feasible,
            notes=tuple(facts.notes),
            rows=self.rows.get("plan"),
        )


def checked_account(raw: dict[str, Any], model: nn.Module, path: Path) -> Account:
    """The account of a pruned network, every name, shape and count of which fits the model.

    Raises:
        ValueError: a field is missing, of another type, or not of this model; it is named.
    """
    facts = validated(raw, Account, path)
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    lacking = next((key for key in own if key not in facts.shapes), None)
    if lacking is not None:
        raise _other(path, f"`shapes` lacks {lacking!r}, which the model has")
    for key, shape in facts.shapes.items():
        if own.get(key) != shape:
            theirs = f"has {own[key]}" if key in own else "lacks it"
            raise _other(path, f"`shapes.{key}` is {shape}, the model {theirs}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key, shape in facts.mask_shapes.items():
        place = f"mask_shapes.{key}"
        known = own.get(key, tuple(parameters[key].shape) if key in parameters else None)
        check(known is not None, path, place, "is no parameter of the model.")
        check(known == shape, path, place, f"is {shape}, the parameter has {known}.")
    weights = weights_of(model, facts.layers)
    for name in facts.layers:
        check(name in weights, path, f"layers.{name}", "is no layer of the model.")
    if facts.recipe.units == EDGES:
        for name, counts in facts.plan.kept.items():
            place = f"plan.kept.{name}"
            check(name in weights, path, place, "is no layer of the model.")
            total = sum(counts) if isinstance(counts, tuple) else counts
            size = weights[name].matrix().numel()
            check(total <= size, path, place, f"is {total} of {size} weights.")
    return facts


def _other(path: Path, said: str) -> ValueError:
    return ValueError(
        f"The model does not fit the network saved in {path.parent}: {path.name}: {said}. Build "
        f"the architecture that was pruned."
    )


def state_and_masks(
    facts: Account, tensors: dict[str, Tensor], model: nn.Module, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of the pruned network and its masks, of the shapes that the account says.

    Args:
        facts: checked against the model.
        tensors: of the file; they are taken out.
        model: the dense one, for the kinds of numbers.
        path: of the folder, for messages.

    Raises:
        ValueError: a tensor is missing, too much, or of another shape or kind; it is named.
    """
    own = model.state_dict()
    state = {}
    for key, shape in facts.shapes.items():
        value = state[key] = unpacked(key, tensors, shape, path)
        said = facts.dtypes.get(key, str(value.dtype))
        check(str(value.dtype) == said, path, key, f"is {value.dtype}, `dtypes` says {said}.")
        _same_kind(value, own[key], path, key)
    masks = {}
    for name, shape in facts.mask_shapes.items():
        key = f"mask|{name}"
        if key in tensors:
            masks[name] = unbits(tensors.pop(key), shape, path, key)
        else:
            there = name in state and facts.format > 1
            check(there, path, key, "is missing.")
            masks[name] = state[name] != 0
    stray = next(iter(tensors), "")
    check(not tensors, path, stray, "belongs to nothing that the account names.")
    return state, masks


def _same_kind(value: Tensor, own: Tensor, path: Path, key: str) -> None:
    """Numbers may be of another precision than the model's, but of no other kind."""
    alike = value.dtype == own.dtype or (value.is_floating_point() and own.is_floating_point())
    check(alike, path, key, f"is {value.dtype}, the model has {own.dtype}.")


def check_missing(facts: Account, model: nn.Module, path: Path) -> None:
    """Raise a ValueError where a module that the compact network lacks is none of the model's."""
    modules = dict(model.named_modules())
    for name, outputs in (facts.compact_missing or {}).items():
        place = f"compact_missing.{name}"
        check(bool(name) and name in modules, path, place, "is no module of the model.")
        home = modules[name.rpartition(".")[0]]
        good = isinstance(home, nn.ModuleList | nn.Sequential) if outputs is None else outputs >= 0
        check(good, path, place, "is no member of a list, or gives no number of outputs.")


def compact_state(
    facts: Account, tensors: dict[str, Tensor], model: nn.Module, path: Path
) -> dict[str, dict[str, Any]]:
    """The widths of norms without tensors; checks that the compact network is no larger.

    Raises:
        ValueError: a tensor or a width is not of a smaller version of the model; it is named.
    """
    own = model.state_dict()
    modules = dict(model.named_modules(remove_duplicate=False))
    for key, value in tensors.items():
        owner, _, leaf = key.rpartition(".")
        if key in own:
            small, whole = tuple(value.shape), tuple(own[key].shape)
            fits = len(small) == len(whole) and all(
                a <= b and (a > 0 or b == 0) for a, b in zip(small, whole, strict=True)
            )
            said = f"has shape {small} in the compact network, {whole} in the model."
            check(fits, path, key, said)
            _same_kind(value, own[key], path, key)
        else:  # a constant was folded into a bias that was not there
            there = leaf == "bias" and getattr(modules.get(owner), "bias", 0) is None
            check(there and value.ndim == 1, path, key, "belongs to nothing of the model.")
    bare = bare_widths(model)
    for owner, widths in (facts.compact_widths or {}).items():
        place = f"compact_widths.{owner}"
        check(owner in bare, path, place, "is no norm of the model without tensors.")
        for key, width in widths.items():
            each = width if isinstance(width, list) else [width]
            good = key in BARE and key in bare[owner] and all(w > 0 for w in each)
            check(good, path, f"{place}.{key}", f"cannot be {width}.")
    for owner, numbers in (facts.compact_numbers or {}).items():
        place = f"compact_numbers.{owner}"
        check(owner in modules, path, place, "is no module of the model.")
        for key in numbers:
            check(keeps(modules[owner], key), path, f"{place}.{key}", "is no number that it keeps.")
    return facts.compact_widths or {}
