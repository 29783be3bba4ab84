"""The state of one call of `prune`, and its steps: statistics, plan, choice, compensation."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration import Calibration, calibrate, collect
from prunus.calibration.batches import Batches, call, first_of, size_of, to_device
from prunus.calibration.place import device_of
from prunus.calibration.select import matching, prunable
from prunus.calibration.sequential import sequential_layers
from prunus.calibration.statistics import combined, names_of
from prunus.compensation import NoCompensation
from prunus.cost import Anatomy, Cost, anatomy, edge_cost, node_cost
from prunus.coupling import Coupling, Group, couple
from prunus.engine.edges import EdgeCost, drawn, edge_result, filled_in, pools_of
from prunus.engine.latency import latency_share
from prunus.engine.nodes import (
    NodeCost,
    choose_classes,
    class_masks,
    class_pools,
    living,
    node_results,
    selected_groups,
    tried_groups,
)
from prunus.engine.planned import NodeFamily, edge_family
from prunus.engine.settled import settled
from prunus.engine.target import Target
from prunus.guarantee.family import Family
from prunus.guarantee.plan import measured_curves, plan_family
from prunus.layer import Layer
from prunus.modes import copied, evaluating
from prunus.nodes import class_view
from prunus.parts import NODES
from prunus.recipe import Recipe
from prunus.result import LayerResult, Pruned
from prunus.rows import RowSet
from prunus.surgery.connected import connection
from prunus.surgery.masked import apply_masks
from prunus.weights import weight_at

__all__ = ["Run"]


@dataclass(eq=False)
class Run:
    """The state of one call of `prune`: the copy that is worked on, and what was found so far."""

    dense: nn.Module
    work: nn.Module
    recipe: Recipe
    name: str
    target: Target
    source: Any
    verifying: list[Any] | None
    layers: Any
    exclude: Any
    loss: Any
    seed: int
    device: torch.device
    progress: bool | None
    memo: dict[Any, Any] | None
    masks: dict[str, Tensor] = field(default_factory=dict)
    kept_classes: dict[str, Tensor] = field(default_factory=dict)
    results: dict[str, LayerResult] = field(default_factory=dict)
    not_pruned: dict[str, str] = field(default_factory=dict)
    plan: Any = None
    cost_before: Cost | None = None
    groups: Sequence[Group] | None = None
    notes: tuple[str, ...] = ()
    steps: int = 0
    fingerprint: str | None = None
    rows: RowSet | None = None

    def __post_init__(self) -> None:
        self.planner = self.recipe  # with the error curves, where its allocation measures them
        weights, refused = prunable(self.dense)
        self.names = matching(list(weights), self.layers, self.exclude, refused)
        for weight in weights.values():
            weight.layer()  # NaN or infinite weights are named before any work
        self.not_pruned.update(refused)
        for name in weights:
            if name not in self.names:
                self.not_pruned[name] = "not selected"
        self.calibration = self.source if isinstance(self.source, Calibration) else None
        self.batches = (
            Batches(self.source) if self.source is not None and self.calibration is None else None
        )
        self.example = None
        if self.calibration is not None:
            if self.recipe.inputs == "pruned":
                raise ValueError(
                    "A recipe with inputs='pruned' reads the data again for every layer, which a "
                    "finished Calibration cannot. Pass batches as data."
                )
            self.example = self.calibration.example
            self._same_weights(self.calibration)
        elif self.batches is not None:
            self.example = first_of(self.batches.peek(), 8)
        if any(module.training for module in self.dense.modules()):
            self.notes += (
                "the model came in training mode; statistics were collected in evaluation mode and "
                "every module's mode was restored",
            )
        self.sizes: Anatomy = anatomy(
            self.dense, self._run_example if self.example is not None else None
        )
        self.order = list(self.sizes.order or weights)

    def prune(self, part: float) -> None:
        """One pruning step that goes the share `part` of the way."""
        if self.steps and isinstance(self.source, Calibration) and self.recipe.statistics:
            raise ValueError(
                "A schedule of several steps collects statistics anew at each, which a finished "
                "Calibration cannot. Pass batches as data."
            )
        if self.recipe.units == NODES:
            self._prune_nodes(part)
        else:
            self._prune_edges(part)
        self.steps += 1
        apply_masks(self.work, self.masks)

    def report_disconnection(self) -> None:
        """Warn before training where the masks leave a layer or an output without a path."""
        paths = {weight_at(self.work, name).path: name for name in self.results}
        masks = {key: mask for key, mask in self.masks.items() if key in paths}
        said = None
        if self.example is not None:
            inputs = self.example[0] if isinstance(self.example, tuple | list) else self.example
            if isinstance(inputs, Tensor) and inputs.is_floating_point():
                found = connection(self.work, masks, to_device(self.example, self.device))
                said = None if found.whole else found.summary()
        else:
            empty = [paths[key] for key, m in masks.items() if not bool(m.any())]
            said = f"no weight is kept in {', '.join(empty)}" if empty else None
        if said is not None:
            self.notes += (said,)
            warnings.warn(
                f"Pruning at initialisation: {said}. Raise the density.",
                RuntimeWarning,
                stacklevel=3,
            )

    def answer(
        self, work: nn.Module, model: nn.Module, name: str, metrics: Mapping[str, Any]
    ) -> Pruned:
        """The account of it all."""
        assert self.cost_before is not None
        cost_after, said = settled(
            work, self.sizes, tuple(self.results), self.masks, self.groups, self.example,
            inexact=self.recipe.units == NODES and self.recipe.granularity.inexact,
        )  # fmt: skip
        self.notes += said
        home = device_of(model)
        return Pruned(
            model=work,
            layers={
                key: replace(
                    r,
                    mask=r.mask.to(home),
                    weight=r.weight.to(home),
                    bias=None if r.bias is None else r.bias.to(home),
                )
                for key, r in self.results.items()
            },
            not_pruned={k: v for k, v in self.not_pruned.items() if k not in self.results},
            plan=self.plan,
            recipe=self.recipe,
            name=name,
            seed=self.seed,
            cost_before=self.cost_before,
            cost_after=cost_after,
            data_fingerprint=self.fingerprint,
            data_rows=self.rows,
            metrics=dict(metrics),
            notes=self.notes,
            masks={key: mask.to(home) for key, mask in self.masks.items()},
            dense=model,
            example=self.example,
        )

    def _prune_edges(self, part: float) -> None:
        # Before training, weights stay as they are until the last of several rounds, which is
        # measured and compensated against the dense network.
        at_init = self.recipe.schedule.before_training
        recipe = self.recipe
        if at_init and part < 1:
            recipe = replace(recipe, compensation=NoCompensation())
        layers = self._statistics(self.names, measure=not at_init or part == 1)
        names = [name for name in self.names if name in layers]
        targets = layers
        if at_init and part == 1 and self.steps:
            targets = self._statistics(names, of=self.dense)
        weights = {name: weight_at(self.work, name) for name in names}
        before = {
            name: mask
            for name, weight in weights.items()
            if (mask := weight.mask(self.masks)) is not None
        }
        pools = pools_of({name: layers[name] for name in names}, self.recipe, before)
        filled = {name: filled_in(self.recipe, layers[name]).sum(1).cpu() for name in names}
        cost = EdgeCost(self.sizes, filled)
        self._plan_ahead(
            lambda: edge_family(
                self.dense, layers, pools, self.recipe, name=self.name, seed=self.seed
            )
        )
        self.plan, kept = self._plan(pools, cost, part)
        dense = copied(self.work) if self.recipe.inputs == "pruned" else None
        for name in sorted(names, key=_position(self.order)):
            layer, scores = targets[name], pools[name]
            if dense is not None:
                assert self.batches is not None
                layer = sequential_layers(
                    dense, self.work, (name,), self.batches,
                    statistics=self.recipe.statistics, before=layers, device=self.device,
                )[name]  # fmt: skip
                scores = pools_of({name: layer}, self.recipe, before)[name]
            result = edge_result(
                layer,
                scores,
                kept[name],
                recipe,
                seed=self.seed,
                choose=self._remembered(name, layers[name], scores, kept[name])
                if dense is None and not self.recipe.joint
                else None,
            )
            weights[name].put(result.weight, result.bias)
            self.results[name] = result
            weights[name].put_mask(self.masks, result.mask)
        self.cost_before = edge_cost(
            self.sizes, {name: self.sizes.layers_filled[name] for name in names}
        )
        self.groups = None

    def _prune_nodes(self, part: float) -> None:
        coupling = self._coupling()
        inexact = self.recipe.granularity.inexact
        groups, refused = selected_groups(self.dense, coupling, self.names, inexact=inexact)
        budget = self.target.budget
        small = to_device(first_of(self.example, 2), self.device)
        groups, more, alike = tried_groups(
            self.dense, groups, small, level=budget is None or budget.gap is None
        )
        refused.update(more)
        self.not_pruned.update(refused)
        involved = list(
            dict.fromkeys(name for g in groups for name in (*g.producers, *g.consumers))
        )
        layers = self._statistics(involved)
        views = [class_view(group, layers) for group in groups]
        alive = living(self.work, groups, small)
        pools = class_pools(views, self.recipe, self.kept_classes, alive)
        multiple = self.recipe.granularity.multiple_of
        latency = None
        if budget is not None and budget.target == "latency":
            latency = latency_share(self.dense, groups, to_device(budget.example, self.device))
        cost = NodeCost(
            self.sizes, groups, multiple, latency=latency, refused=refused, alike=alike,
            alive={name: int(units.sum()) for name, units in alive.items()},
        )  # fmt: skip
        self._plan_ahead(
            lambda: NodeFamily(
                self.dense, layers, views, pools, self.recipe, self.sizes,
                name=self.name, seed=self.seed,
            )
        )  # fmt: skip
        self.plan, kept = self._plan(pools, cost, part)
        if alike:
            kept = cost.level(kept)
            counts = {name: int(k.sum()) for name, k in kept.items()}
            self.plan = replace(self.plan, kept={**self.plan.kept, **counts})
        choices = {
            view.name: self._remembered_classes(view, pools[view.name], kept[view.name])
            for view in views
        }
        if self.recipe.inputs == "pruned":
            self.results = self._sequential_nodes(views, choices, layers)
        else:
            masks = class_masks(self.work, views, choices)
            self.results = node_results(self.work, layers, views, choices, self.recipe, masks)
            self.masks.update(masks)
            for name, result in self.results.items():
                weight_at(self.work, name).put(result.weight, result.bias)
        self.kept_classes = {name: choice.mask[0].cpu() for name, choice in choices.items()}
        self.cost_before = node_cost(self.sizes, groups, {g.name: g.size for g in groups})
        self.groups = groups

    def _sequential_nodes(
        self, views: Sequence[Any], choices: Mapping[str, Any], layers: Mapping[str, Layer]
    ) -> dict[str, LayerResult]:
        """Groups in order of execution; consumers aim at the dense outputs."""
        assert self.batches is not None
        dense = copied(self.work)
        masks = class_masks(self.work, views, choices)
        consumers = {name for view in views for name in view.consumers}
        results: dict[str, LayerResult] = {}
        involved = dict.fromkeys(n for v in views for n in (*v.group.producers, *v.group.consumers))
        for name in sorted(involved, key=_position(self.order)):
            layer = layers[name]
            if name in consumers:
                layer = sequential_layers(
                    dense, self.work, (name,), self.batches,
                    statistics=self.recipe.statistics, before=layers, device=self.device,
                )[name]  # fmt: skip
            own = node_results(
                self.work, {**layers, name: layer}, views, choices, self.recipe, masks, only=name
            )
            results[name] = own[name]
            weight_at(self.work, name).put(own[name].weight, own[name].bias)
            # What does not lie in this layer's weight: its bias and the norms behind it.
            apply_masks(self.work, {k: m for k, m in masks.items() if not k.endswith(".weight")})
        self.masks.update(masks)
        return results

    def _plan_ahead(self, family: Callable[[], Family]) -> None:
        """Turn a gap budget into a plan; measure the error curves that `Planned()` lacks."""
        budget, allocation = self.target.budget, self.recipe.allocation
        if budget is not None and budget.gap is not None:
            found = plan_family(
                self.dense,
                family(),
                budget.gap,
                kind=budget.kind,
                delta=budget.delta,
                data=self.batches,
                verify=self.verifying,
            )
            self.target = Target(plan=found)
        elif budget is not None and allocation.measures_curves:
            curves = measured_curves(self.dense, family(), self.batches)
            self.planner = replace(self.recipe, allocation=allocation.measured(curves))

    def _plan(self, pools: Any, cost: Any, part: float) -> Any:
        dense: dict[str, float] = {}
        full = {name: torch.full((s.shape[0],), s.shape[1]) for name, s in pools.items()}
        if part < 1:
            whole_cost = cost(full)
            dense = {
                key: float(value)
                for key in ("parameters", "macs", "bytes")
                if (value := getattr(whole_cost, key)) is not None
            }
        return self.target.plan_for(pools, cost, self.planner, part, dense)

    def _statistics(
        self, names: Sequence[str], *, of: nn.Module | None = None, measure: bool = True
    ) -> dict[str, Layer]:
        """The layers of the present model (or `of`), with statistics where data are given.

        `measure` adds the Gram matrix, from which layer errors are read.
        """
        model = self.work if of is None else of

        def bare(chosen: Sequence[str]) -> dict[str, Layer]:
            return {name: weight_at(model, name).layer() for name in chosen}

        if self.calibration is not None:
            missing = [name for name in names if name not in self.calibration]
            if missing:
                raise ValueError(
                    f"The calibration lacks layer {missing[0]!r}, which this recipe needs. "
                    f"Calibrate without `layers`, or name it too."
                )
            self.fingerprint, self.rows = self.calibration.fingerprint, self.calibration.rows
            layers = {name: self.calibration[name] for name in names}
            if self.steps and of is None:
                layers = bare(names)
            return {n: layer.to(self.device) for n, layer in layers.items()}
        if self.batches is None:
            return bare(names)
        wanted = list(self.recipe.statistics)
        if not measure and not wanted:
            return bare(names)
        widest = max(layer.weight.shape[1] for layer in bare(names).values())
        if measure and "gram" not in names_of(wanted) and widest**2 * 8 > collect.GRAM_BYTES:
            self.notes += (
                f"layer errors were not measured: a Gram matrix of width {widest} exceeds the "
                f"memory limit",
            )
            if not wanted:
                return bare(names)
        elif measure:
            wanted.append("gram")
        found = calibrate(
            model,
            self.batches,
            combined(wanted),
            layers=list(names),
            loss=self.loss,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
        self.fingerprint, self.rows = found.fingerprint, found.rows
        for name in names:
            if name not in found:
                self.not_pruned[name] = found.refused[name]
        return {name: found[name] for name in names if name in found}

    def _coupling(self) -> Coupling:
        if self.calibration is not None:
            return self.calibration.coupling(self.dense)
        return couple(self.dense, to_device(first_of(self.example, 2), self.device))

    def _run_example(self) -> int:
        with evaluating(self.dense), torch.no_grad():
            call(self.dense, to_device(self.example, self.device))
        return size_of(self.example) or 1

    def _same_weights(self, calibration: Calibration) -> None:
        for name, layer in calibration.items():
            try:
                own = weight_at(self.dense, name).layer()
            except ValueError:
                raise ValueError(
                    f"The calibration has layer {name!r}, which the model lacks."
                ) from None
            for part in ("weight", "bias"):
                if not _equal(getattr(own, part), getattr(layer, part)):
                    shown = "weights" if part == "weight" else "biases"
                    raise ValueError(
                        f"Layer {name!r} has other {shown} than when it was calibrated. Calibrate "
                        f"the model again."
                    )

    def _remembered(self, name: str, layer: Layer, scores: Tensor, kept: Tensor) -> Any:
        """The layer's choice, drawn once for all recipes that share masks."""
        if self.memo is None or self.steps:
            return None
        key = self._key(name, kept)

        def choose() -> Any:
            if key not in self.memo:  # type: ignore[operator]
                self.memo[key] = drawn(  # type: ignore[index]
                    self.recipe.selection, scores, kept, layer, self.seed
                )
            return self.memo[key]  # type: ignore[index]

        return choose

    def _remembered_classes(self, view: Any, scores: Tensor, kept: Tensor) -> Any:
        if self.memo is None or self.steps:
            return choose_classes(view, scores, kept, self.recipe, self.seed)
        key = self._key(view.name, kept)
        if key not in self.memo:
            self.memo[key] = choose_classes(view, scores, kept, self.recipe, self.seed)
        return self.memo[key]

    def _key(self, name: str, kept: Tensor) -> Any:
        r = self.recipe
        parts = (r.granularity, r.score, r.selection, self.seed, name)
        return (*parts, tuple(kept.tolist()))


def _position(order: Sequence[str]) -> Callable[[str], int]:
    place = {name: i for i, name in enumerate(order)}
    return lambda name: place.get(name, len(place))


def _equal(own: Tensor | None, stored: Tensor | None) -> bool:
    if own is None or stored is None:
        return own is stored
    return own.shape == stored.shape and torch.equal(own.cpu(), stored.cpu().to(own.dtype))
