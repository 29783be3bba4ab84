"""Determinantal point processes: kernels, exact and approximate samplers, and their modes."""

from prunus.dpp.batched import sample_batch
from prunus.dpp.dual import DualKDPP, fourier_features
from prunus.dpp.exact import KDPP
from prunus.dpp.kernel import (
    KernelDiagnostics,
    diagnose,
    edge_gram,
    edge_kernel,
    gaussian_from_features,
    gaussian_kernel,
    kernel_entries,
    linear_from_features,
    linear_kernel,
    median_bandwidth,
    node_gram,
    node_kernel,
)
from prunus.dpp.marginal import poisson_odds, poisson_sample
from prunus.dpp.mcmc import swap_chain
from prunus.dpp.mode import greedy_map
from prunus.dpp.random_size import DPP
from prunus.dpp.reserve import draw_once

__all__ = [
    "DPP",
    "KDPP",
    "DualKDPP",
    "KernelDiagnostics",
    "diagnose",
    "draw_once",
    "edge_gram",
    "edge_kernel",
    "fourier_features",
    "gaussian_from_features",
    "gaussian_kernel",
    "greedy_map",
    "kernel_entries",
    "linear_from_features",
    "linear_kernel",
    "median_bandwidth",
    "node_gram",
    "node_kernel",
    "poisson_odds",
    "poisson_sample",
    "sample_batch",
    "swap_chain",
]
