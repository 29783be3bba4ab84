"""A user's own function or object as a part of a recipe, and how parts are written down."""

import functools
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, cast

__all__ = ["Own", "Written", "as_part", "shown"]

Family = TypeVar("Family")
LATER = "later"  # in a field's metadata: added to a part whose older form is written in records
FORMERLY = "formerly"  # the default until now: digests write it in place of the new one


class Own:
    """A user's own part, with its family's defaults for what it does not say.

    Equal to the part itself and to another wrapping of it, hashed and written like it.

    Attributes:
        wrapped: what the user gave.
    """

    wrapped: Callable[..., Any]

    def __init__(self, part: Any, family: type) -> None:
        """Take over what the part says, and the family's defaults for the rest."""
        self.wrapped = part
        self._family = family.__name__.lower()
        for name in _declared(family):
            if hasattr(part, name):
                setattr(self, name, getattr(part, name))
                continue
            default: Any = getattr(family, name)
            fact = isinstance(default, property) and default.fget is not None
            setattr(self, name, default.fget(self) if fact else functools.partial(default, self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's part answers; where it fails, a note says what may be missing."""
        try:
            return self.wrapped(*args, **kwargs)
        except Exception as error:
            given = ", ".join([*(type(a).__name__ for a in args), *(f"{k}=" for k in kwargs)])
            error.add_note(
                f"In your own {self._family} {self!r}, which is called with ({given}). A statistic "
                f"such as `layer.gram` is None unless the part asks for it: "
                f"statistics = ('gram',)."
            )
            raise

    def __eq__(self, other: object) -> bool:
        return bool(self.wrapped == (other.wrapped if isinstance(other, Own) else other))

    def __hash__(self) -> int:
        try:
            return hash(self.wrapped)
        except TypeError:  # a dataclass that is not frozen
            return hash(repr(self))

    def __repr__(self) -> str:
        return shown(self.wrapped)


class Written:
    """A user's own part of which a saved recipe keeps the text.

    Attributes:
        text: what `shown` gave of it.
        units: of a granularity.
    """

    def __init__(self, text: str, units: str) -> None:
        self.text, self.units = text, units

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing: the code is the user's."""
        raise ValueError(
            f"This recipe was read from a file, and {self.text} is a part of your own, of which "
            f"files keep the name alone. Put the part itself in its place, by dataclasses.replace."
        )

    pool = unpool = __call__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Written) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text


def as_part(
    name: str, value: Any, family: type[Family], methods: tuple[str, ...] = ("__call__",)
) -> Family:
    """`value` as a member of its family: itself where it says everything, else wrapped.

    Args:
        name: of the field, for the message.
        value: a part, or a user's function, lambda, `functools.partial` or object.
        family: its Protocol, whose properties and methods have defaults.
        methods: what the family cannot do without.

    Raises:
        TypeError: a class instead of an instance, or something that cannot be called.
    """
    if isinstance(value, type) or not all(callable(getattr(value, m, None)) for m in methods):
        what = "that can be called" if "__call__" in methods else "such as Edge()"
        raise TypeError(
            f"`{name}` must be an instance {what}, got {value!r}. Write it with its parentheses."
        )
    if family in type(value).__mro__:  # as of a table; to ask a Protocol takes far longer
        return cast(Family, value)
    if isinstance(value, Own):  # `dataclasses.replace` hands a wrapped part over again
        return cast(Family, value)
    return value if isinstance(value, family) else cast(Family, Own(value, family))


def shown(part: Any, *, formerly: bool = False) -> str:
    """A part as text that is the same in every process, valid Python for parts of the tables.

    A dataclass shows its fields, but for those added later that hold their default: so the text,
    and the digest of a recipe, stay what they were. A function is its module and name; a
    `functools.partial` shows what it binds; an object without a `__repr__` of its own its class and
    attributes.

    Args:
        part: what is written.
        formerly: with defaults as they were, for digests: where the new default gives the values of
            the old one, records of either are found by the other.
    """
    written: Any = type(part).__repr__
    if is_dataclass(part) and not isinstance(part, type):
        if written is not shown:
            return repr(part)
        pairs = [
            f"{f.name}={_formerly(f, getattr(part, f.name), formerly)!r}"
            for f in fields(part)
            if f.repr and not (f.metadata.get(LATER) and getattr(part, f.name) == _default(f))
        ]
        return f"{type(part).__qualname__}({', '.join(pairs)})"
    if isinstance(part, functools.partial):
        bound = [shown(part.func), *(_value(a) for a in part.args)]
        bound += [f"{key}={_value(value)}" for key, value in part.keywords.items()]
        return f"functools.partial({', '.join(bound)})"
    if hasattr(part, "__qualname__"):
        return f"{part.__module__}.{part.__qualname__}"
    if not callable(part) or written is not object.__repr__:
        return repr(part)
    own = sorted(getattr(part, "__dict__", {}).items())
    pairs = [f"{key}={_value(value)}" for key, value in own]
    return f"{type(part).__module__}.{type(part).__qualname__}({', '.join(pairs)})"


def _value(value: Any) -> str:
    return shown(value) if callable(value) else repr(value)


def _formerly(field: Any, value: Any, asked: bool) -> Any:
    return (
        field.metadata[FORMERLY]
        if asked and FORMERLY in field.metadata and (value == _default(field))
        else value
    )


def _default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _declared(family: type) -> list[str]:
    """The public properties and methods that a family's Protocols declare."""
    names: dict[str, None] = {}
    for base in family.__mro__:
        if getattr(base, "_is_protocol", False):
            names |= {name: None for name in vars(base) if not name.startswith("_")}
    return list(names)
