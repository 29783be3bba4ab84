"""Scores at initialisation by finite differences and by enumerating paths."""

import itertools

import torch
from torch import nn


def total_loss(model, batches, temperature=1.0):
    """The mean cross-entropy over all samples, however they are batched."""
    return sum(
        nn.functional.cross_entropy(model(x) / temperature, y, reduction="sum") for x, y in batches
    ) / sum(len(y) for _, y in batches)


def connection_sensitivity(model, parameter, batches, step=1e-6):
    """|∂L/∂c| at c = 1 for L(c ∘ w), one central difference per weight."""
    scores = torch.zeros_like(parameter)
    flat, out = parameter.data.view(-1), scores.view(-1)
    with torch.no_grad():
        for i in range(flat.numel()):
            kept = flat[i].item()
            values = []
            for sign in (1, -1):
                flat[i] = kept * (1 + sign * step)
                values.append(float(total_loss(model, batches)))
            flat[i] = kept
            out[i] = abs(values[0] - values[1]) / (2 * step)
    return scores


def gradient(parameters, model, batches, temperature):
    return torch.autograd.grad(total_loss(model, batches, temperature), parameters)


def hessian_gradient(model, parameters, batches, temperature, step=1e-3):
    """H g by a central difference of the gradient along g."""
    g = gradient(parameters, model, batches, temperature)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, direction in zip(parameters, g, strict=True):
                p += sign * step * direction
        ends.append(gradient(parameters, model, batches, temperature))
        with torch.no_grad():
            for p, direction in zip(parameters, g, strict=True):
                p -= sign * step * direction
    return [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]


def path_sums(weights):
    """Σ over paths of Π|w| through each weight of a chain of matrices (out, in), by enumeration."""
    sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    sums = [torch.zeros_like(w) for w in weights]
    for path in itertools.product(*(range(n) for n in sizes)):
        product = 1.0
        for layer, w in enumerate(weights):
            product *= abs(float(w[path[layer + 1], path[layer]]))
        for layer in range(len(weights)):
            sums[layer][path[layer + 1], path[layer]] += product
    return sums
