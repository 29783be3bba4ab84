"""Weights of modules as matrices: which a module has, their order, and their input vectors."""

from prunus.views.convolution import ConvView, batched
from prunus.views.known import (
    VIEWS,
    holds_width,
    known_exactly,
    known_view,
    matrices_of,
    register_view,
    view_of,
)
from prunus.views.linear import LinearView
from prunus.views.protocol import Inputs, Matrix, ModuleView, Unclear, View, first_argument
from prunus.views.raw import raw_matrices
from prunus.views.transposed import TransposedConvView

__all__ = [
    "VIEWS",
    "ConvView",
    "Inputs",
    "LinearView",
    "Matrix",
    "ModuleView",
    "TransposedConvView",
    "Unclear",
    "View",
    "batched",
    "first_argument",
    "holds_width",
    "known_exactly",
    "known_view",
    "matrices_of",
    "raw_matrices",
    "register_view",
    "view_of",
]
