"""What a network costs: parameters, multiply-adds, bytes and measured latency."""

from prunus.cost.anatomy import Anatomy, anatomy
from prunus.cost.files import encoding, file_bytes
from prunus.cost.latency import (
    Latency,
    Speedup,
    compared_times,
    interleaved,
    latency_of,
    measure_latency,
    speedup,
)
from prunus.cost.operations import Operations, count_operations
from prunus.cost.price import Cost, NodePrices, edge_cost, node_cost, smaller_cost, sparse_cost

__all__ = [
    "Anatomy",
    "Cost",
    "Latency",
    "NodePrices",
    "Operations",
    "Speedup",
    "anatomy",
    "compared_times",
    "count_operations",
    "edge_cost",
    "encoding",
    "file_bytes",
    "interleaved",
    "latency_of",
    "measure_latency",
    "node_cost",
    "smaller_cost",
    "sparse_cost",
    "speedup",
]
