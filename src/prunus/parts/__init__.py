"""What the parts of a recipe declare, and how a user's own parts come to declare it."""

from prunus.parts.facts import (
    BLOCKS,
    EDGES,
    EXPERTS,
    NODES,
    UNITS,
    AllocationFacts,
    BasisFacts,
    CompensationFacts,
    Composition,
    GranularityFacts,
    PartFacts,
    ScheduleFacts,
    ScoreFacts,
    SelectionFacts,
    reason_against,
)
from prunus.parts.own import FORMERLY, LATER, Own, Written, as_part, shown

__all__ = [
    "BLOCKS",
    "EDGES",
    "EXPERTS",
    "FORMERLY",
    "LATER",
    "NODES",
    "UNITS",
    "AllocationFacts",
    "BasisFacts",
    "CompensationFacts",
    "Composition",
    "GranularityFacts",
    "Own",
    "PartFacts",
    "ScheduleFacts",
    "ScoreFacts",
    "SelectionFacts",
    "Written",
    "as_part",
    "reason_against",
    "shown",
]
