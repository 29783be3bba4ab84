"""The modules that can be seen as matrices: those we know, and those a user registers."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from prunus.views.attention import AttentionView
from prunus.views.convolution import ConvView
from prunus.views.linear import LinearView
from prunus.views.protocol import Matrix, ModuleView, View
from prunus.views.recurrent import CellView, RecurrentView
from prunus.views.transposed import TransposedConvView

__all__ = [
    "VIEWS",
    "holds_width",
    "known_exactly",
    "known_view",
    "matrices_of",
    "register_view",
    "view_of",
]

VIEWS: dict[type, View | ModuleView] = {
    nn.Linear: LinearView(),
    nn.Conv1d: ConvView(),
    nn.Conv2d: ConvView(),
    nn.Conv3d: ConvView(),
    nn.MultiheadAttention: AttentionView(),
    nn.LSTM: RecurrentView(),
    nn.GRU: RecurrentView(),
    nn.RNN: RecurrentView(),
    nn.LSTMCell: CellView(),
    nn.GRUCell: CellView(),
    nn.RNNCell: CellView(),
    nn.ConvTranspose1d: TransposedConvView(),
    nn.ConvTranspose2d: TransposedConvView(),
    nn.ConvTranspose3d: TransposedConvView(),
}
OURS = dict(VIEWS)
# Classes of other libraries, known without importing them: {(module, class): view}.
FOREIGN: dict[tuple[str, str], View] = {
    ("transformers.pytorch_utils", "Conv1D"): LinearView(transposed=True),
    # nn.Linear with a forward of its own, which multiplies and adds in two roundings
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"): LinearView(),
}


def register_view(module_type: type, view: View | ModuleView) -> Callable[[], None]:
    """Teach prunus a module type; the returned function takes it back.

    Args:
        module_type: a class whose instances hold one matrix-like `weight` and maybe a `bias`, or
            several such weights.
        view: how that weight is a matrix; see `View`. For a module with several weights, an
            object whose `matrices(module)` lists them; see `Matrix`.
    """
    before = VIEWS.get(module_type)
    VIEWS[module_type] = view

    def undo() -> None:
        if before is None:
            VIEWS.pop(module_type, None)
        else:
            VIEWS[module_type] = before

    return undo


def known_view(module: nn.Module) -> View | ModuleView | None:
    """What the table says of a module's type, or None.

    A subclass that inherits `forward` is the known type; one with a forward of its own may
    compute something else. Some classes of other libraries are known by their names.
    """
    kind = type(module)
    foreign = _foreign(kind)
    if foreign is not None and kind not in VIEWS:
        return foreign
    for known in kind.__mro__:
        if known in VIEWS:
            same = all(
                getattr(kind, name, None) is getattr(known, name, None)
                for name in ("forward", "__call__", "_conv_forward")
            )
            return VIEWS[known] if same else None
    return None


def _foreign(kind: type) -> View | None:
    return FOREIGN.get((kind.__module__, kind.__name__))


def known_exactly(module: nn.Module) -> bool:
    """Whether a module is of a type of ours, seen by our own view, with the forward we know."""
    kind = type(module)
    ours = kind in OURS and VIEWS.get(kind) is OURS[kind]
    foreign = kind not in VIEWS and _foreign(kind) is not None
    return (ours or foreign) and "forward" not in vars(module)


def holds_width(module: nn.Module) -> bool:
    """Whether a module's class keeps its inputs' width as a number of its own, as a view says."""
    return any(getattr(VIEWS.get(kind), "holds_width", False) for kind in type(module).__mro__)


def view_of(module: nn.Module) -> View | None:
    """The view of a module's only weight, or None where it has several or we do not know it."""
    known = known_view(module)
    return None if known is None or hasattr(known, "matrices") else known


def matrices_of(module: Any) -> Sequence[Matrix]:
    """The weights of a module that are matrices; none where we do not know its type."""
    known = known_view(module)
    if known is None:
        return ()
    if hasattr(known, "matrices"):
        return tuple(known.matrices(module))
    view: Any = known
    bias = None if getattr(module, "bias", None) is None else "bias"
    if isinstance(view, ConvView | TransposedConvView):
        taps = 1
        for size in module.kernel_size:
            taps *= size
        return (Matrix(view=view, bias=bias, groups=module.groups, taps=taps),)
    return (Matrix(view=view, bias=bias),)
