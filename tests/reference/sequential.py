"""Sequential pruning from its definition: whole passes of both networks for every layer.

Quadratic in the number of layers, and nothing is kept between passes.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunus.calibration.batches import call
from prunus.engine.edges import edge_result
from prunus.layer import Layer
from prunus.modes import evaluating
from prunus.nodes import class_view, parameter_masks
from prunus.recipe import Recipe
from prunus.rng import generator_for
from prunus.scores import class_scores
from prunus.surgery.masked import apply_masks
from prunus.weights import weight_at


def inputs_of(model: nn.Module, names: list[str], batch: Tensor) -> dict[str, list[Tensor]]:
    """The input vectors (groups, positions, in) of each call of some layers, one whole pass."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    for name in names:
        weight = weight_at(model, name)

        def note(m, args, kwargs, weight=weight):
            vectors = weight.view.vectors(m, weight.inputs(args, kwargs).clone())
            found[weight.name].append(vectors.double().transpose(0, 1))

        hooks.append(weight.module.register_forward_pre_hook(note, with_kwargs=True))
    with evaluating(model), torch.no_grad():
        call(model, batch.clone())
    for hook in hooks:
        hook.remove()
    return found


def sequential(
    dense: nn.Module, work: nn.Module, names: list[str], batches: list
) -> dict[str, Layer]:
    """The dense layers with the means over both networks' inputs as they are now."""
    seen = {name: ([], []) for name in names}
    for batch in batches:
        for side, model in enumerate((dense, work)):
            for name, calls in inputs_of(model, names, batch).items():
                seen[name][side].extend(calls)
    layers = {}
    for name, (before, after) in seen.items():
        d, p = torch.cat(before, dim=1), torch.cat(after, dim=1)
        count = d.shape[1]
        layer = weight_at(dense, name).layer()
        values = {
            "gram": p.mT @ p / count,
            "mean": p.mean(1),
            "cross": d.mT @ p / count,
            "dense_gram": d.mT @ d / count,
            "dense_mean": d.mean(1),
            "max": p.abs().amax(1),
            "zeros": (p == 0).double().mean(1),
        }
        one = layer.groups == 1
        values = {key: value[0] if one else value for key, value in values.items()}
        layers[name] = replace(layer, samples=count, **values)
    return layers


def prune_edges(
    model: nn.Module, recipe: Recipe, kept: dict, scopes: list, batches: list, seed: int = 0
) -> tuple[nn.Module, dict]:
    """Scope after scope: scored, chosen and refitted on what the pruned network gives it."""
    dense, work = copy.deepcopy(model), copy.deepcopy(model)
    results = {}
    for scope in scopes:
        for name, layer in sequential(dense, work, list(scope), batches).items():
            scores = recipe.granularity.pool(name, recipe.score(layer))
            results[name] = edge_result(layer, scores, kept[name], recipe, seed=seed)
        for name in scope:
            weight_at(work, name).put(results[name].weight, results[name].bias)
    return work, results


def prune_nodes(
    model: nn.Module,
    recipe: Recipe,
    groups: list,
    kept: dict,
    order: list[str],
    batches: list,
    seed: int = 0,
) -> tuple[nn.Module, dict]:
    """In order of layers: choose the groups first read there, then refit the layer.

    A group's classes are chosen with all before its first consumer pruned. Each layer's statistics
    are taken once, when its turn comes: before what is chosen in that turn leaves the network.
    """
    dense, work = copy.deepcopy(model), copy.deepcopy(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    choices: dict[str, Tensor] = {}
    place = {name: i for i, name in enumerate(order)}
    involved = {n for g in groups for n in (*g.producers, *g.consumers)}
    for name in [n for n in order if n in involved]:
        due = [g for g in groups if min(g.consumers, key=place.get) == name]
        read = dict.fromkeys([name, *(n for g in due for n in (*g.producers, *g.consumers))])
        layers = sequential(dense, work, list(read), batches)
        for group in due:
            view = class_view(group, layers)
            scores = class_scores(view, recipe.score)[None]
            generator = generator_for(seed, group.name)
            choice = recipe.selection(scores, kept[group.name], layer=view, generator=generator)
            choices[group.name] = choice.mask[0]
        for group in due:
            for key, mask in parameter_masks(group, choices[group.name], shapes).items():
                masks[key] = masks[key] & mask if key in masks else mask
        apply_masks(work, masks)
        reads = [g for g in groups if name in g.consumers]
        own = weight_at(work, name)
        if reads:
            weight, bias = recipe.compensation(layers[name], own.mask(masks))
            own.put(weight, bias)
        apply_masks(work, masks)
    return work, choices
