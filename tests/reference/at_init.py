"""Brute-force references for pruning at initialisation, written from the definitions."""

import math

import torch


def forward(weight, inputs, classes):
    """F_k(x) = Σ_r relu(⟨w_kr, x⟩)."""
    hidden = torch.relu(inputs @ weight.T)
    return hidden.reshape(len(inputs), classes, -1).sum(2)


def masked_descent(problem, density, steps, step_size):
    """Masked gradient descent on the mean cross-entropy, gradients by autograd."""
    mask = problem.mask(density).to(problem.weight.dtype)
    weight = (problem.weight * mask).clone()
    for _ in range(steps):
        weight.requires_grad_(True)
        output = forward(weight, problem.inputs, problem.setting.classes)
        loss = torch.nn.functional.cross_entropy(output, problem.labels)
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - step_size * gradient * mask).detach()
    return weight


def top_curvature(problem, density):
    """λ_max over classes of Σ_r X diag(m_kr) Xᵀ, one neuron after another."""
    setting, mask = problem.setting, problem.mask(density)
    best = 0.0
    for k in range(setting.classes):
        total = torch.zeros(setting.samples, setting.samples, dtype=torch.float64)
        for r in range(k * setting.neurons, (k + 1) * setting.neurons):
            kept = problem.inputs[:, mask[r]]
            total += kept @ kept.T
        best = max(best, float(torch.linalg.eigvalsh(total)[-1]))
    return best


def fresh_points(setting, per_class, generator):
    """Test points drawn in the full dimension."""
    s, k = setting.support, setting.classes
    labels = torch.arange(k).repeat_interleave(per_class)
    points = setting.noise * torch.randn(
        len(labels), setting.dimension, generator=generator, dtype=torch.float64
    )
    if not setting.noise_on_signal:
        points[:, : k * s] = 0
    for i, y in enumerate(labels.tolist()):
        points[i, y * s : (y + 1) * s] += setting.signal / math.sqrt(s)
    return points, labels


def tie_aware_score(output, labels):
    """Per point 1/(tied maxima) if the label is among them."""
    scores = []
    for row, y in zip(output.tolist(), labels.tolist(), strict=True):
        best = [k for k, value in enumerate(row) if value == max(row)]
        scores.append(1 / len(best) if y in best else 0.0)
    return torch.tensor(scores, dtype=torch.float64)


def path_is_lost(density, widths, support, generator):
    """Sample all masks of a multilayer network; is no path from the s inputs to one output live?"""
    live = torch.ones(support, dtype=torch.bool)
    for width in [*widths, 1]:
        kept = torch.rand(width, len(live), generator=generator) < density
        live = (kept & live).any(1)
    return not bool(live.any())


def lipschitz_squared(weight, classes, y, j):
    """Largest ‖Σ b_r w_yr − Σ b'_r w_jr‖² over all 0/1 choices, by enumeration."""
    blocks = weight.reshape(classes, -1, weight.shape[1])
    neurons = blocks.shape[1]
    choices = torch.tensor(
        [[(i >> bit) & 1 for bit in range(2 * neurons)] for i in range(4**neurons)],
        dtype=weight.dtype,
    )
    signed = torch.cat([blocks[y], -blocks[j]])
    return float((choices @ signed).square().sum(1).max())


def ridge_leave_one_out(kernel, target, penalty):
    """Kernel ridge refitted without each point in turn."""
    n = len(kernel)
    outputs = torch.empty(n, dtype=torch.float64)
    for i in range(n):
        rest = torch.tensor([j for j in range(n) if j != i])
        system = kernel[rest][:, rest] + penalty * torch.eye(n - 1, dtype=torch.float64)
        outputs[i] = kernel[i, rest] @ torch.linalg.solve(system, target[rest])
    return outputs
