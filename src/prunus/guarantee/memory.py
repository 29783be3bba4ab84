"""Which values of a graph lie in one memory, and who sees it when an operation writes there."""

from dataclasses import dataclass, field

from torch import fx, nn

from prunus.guarantee.functions import FLATTEN, RESHAPE, changes_in_place
from prunus.guarantee.rules import AVAILABLE, Unsupported

__all__ = ["Memory"]


@dataclass(eq=False)
class Memory:
    """Where the numbers of the nodes lie.

    Attributes:
        places: (memory, form) of each node so far: nodes of one memory may show the same numbers,
            those of one form too show them in the same shape.
    """

    places: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)

    def note(self, node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
        """Take in a node; the answer is the nodes that from now on show what it shows.

        Raises:
            Unsupported: it writes into memory that is read later in another shape.
        """
        source = node.args[0] if node.args else None
        fresh = len(self.places)
        changes = changes_in_place(node, module)
        if not isinstance(source, fx.Node) or source not in self.places:
            self.places[node] = (fresh, fresh)
        elif changes or _same_object(node, module):
            self.places[node] = self.places[source]
        elif _is_view(node, module):
            self.places[node] = (self.places[source][0], fresh)
        else:
            self.places[node] = (fresh, fresh)
        if not changes:
            return []
        memory, form = self.places[node]
        later, found = _after(node), []
        for other, (where, shape) in self.places.items():
            if where != memory or other is node:
                continue
            if shape == form:
                found.append(other)
            elif any(user in later for user in other.users):
                raise Unsupported(
                    f"{str(node.target)!r} writes into its input, which {other.name!r} shows in "
                    f"another shape and is read later: no rule. Use inplace=False. {AVAILABLE}"
                )
        return found


def _after(node: fx.Node) -> set[fx.Node]:
    found, current = set[fx.Node](), node.next
    while current.op != "root":
        found.add(current)
        current = current.next
    return found


def _same_object(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a call hands its input back as it is."""
    name = getattr(node.target, "__name__", "")
    return isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) or name == "dropout"


def _is_view(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a call may show its input's memory in another shape."""
    return isinstance(module, nn.Flatten) or node.target in (*FLATTEN, *RESHAPE)
