"""YAML that is read as data: without repeated keys, and no larger unfolded than it is written."""

from typing import Any

import yaml

__all__ = ["NoYaml", "read_yaml"]

LARGEST = 2**20  # bytes of a grid
NODES = 100_000  # with every alias in full


class NoYaml(ValueError):
    """A text that is no YAML, or more than anybody writes."""


def read_yaml(data: bytes, source: object) -> tuple[Any, yaml.Node | None]:
    """The values of a YAML text, and its nodes for their places.

    Args:
        data: of the file.
        source: its name, for messages.

    Raises:
        NoYaml: it is none; or a key stands twice, aliases unfold to more than `NODES` nodes or
            hold themselves, or it is too large or too deep. The line is named where there is one.
    """
    if len(data) > LARGEST:
        raise NoYaml(f"{source} has more than the {LARGEST} bytes of any grid.")
    try:
        text = data.decode("utf-8")
        tree = yaml.compose(text, yaml.SafeLoader)
        if tree is None:
            return {}, None
        _unfolded(tree, source, {})
        loader = yaml.SafeLoader("")
        return loader.construct_document(tree), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NoYaml(f"{source} is no YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise NoYaml(f"{source} is no YAML that is read: it is nested too deeply.") from None
    except NoYaml:
        raise
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError) as error:
        raise NoYaml(f"{source} is no YAML: {' '.join(str(error).split())[:300]}") from None


def _unfolded(node: yaml.Node, source: object, known: dict[int, int | None]) -> int:
    """The number of nodes, those behind an alias as often as it stands."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise NoYaml(f"{source}: {_line(node)} holds an alias of itself.")
        return size
    known[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise NoYaml(f"{source}: {_line(key)} has the key {key.value!r:.60} again.")
                keys.add((key.tag, key.value))
            size += _unfolded(key, source, known) + _unfolded(value, source, known)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_unfolded(part, source, known) for part in node.value)
    if size > NODES:
        raise NoYaml(f"{source}: {_line(node)} unfolds to more than {NODES} values.")
    known[id(node)] = size
    return size


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
