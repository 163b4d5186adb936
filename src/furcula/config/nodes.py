"""A YAML file as plain values that know where they stand.

The tree is built from the parser's events, without recursion and without YAML's tags, so a file can say neither which
class to make nor how deep the reader's stack must be. Aliases share one node, and what they would expand to is counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import msgspec
import yaml

from furcula.config.scalars import read_scalar
from furcula.errors import Problem

__all__ = ["MAX_DEPTH", "MAX_NODES", "Node", "compose", "join_path", "locate"]

#: Mappings and lists inside each other.
MAX_DEPTH = 100
#: Values in a file, each alias counted as all that it stands for.
MAX_NODES = 100_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq")}


class Node(msgspec.Struct):
    """One value of a file.

    Attributes:
        value: A dict of nodes, a list of nodes, or a plain scalar.
        location: `file:line:column` of the value.
        keys: For a mapping, the location of each key.
        size: How many values it holds, itself included, with aliases written out.
        trap: What YAML 1.1 would misread here, as advice; empty where all is well.
        text: A scalar as written, where it was not in quotes.
        variable: The text of a string in which a `${VAR}` was filled in; empty elsewhere.
        broken: It was reported already, and nothing more is to be said about it.
    """

    value: Any
    location: str
    keys: dict[Any, str] = {}
    size: int = 1
    trap: str = ""
    text: str = ""
    variable: str = ""
    broken: bool = False

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    def plain(self) -> Any:
        """The value as dicts, lists and scalars, sharing nothing with the file."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def leaves(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """Every scalar below, with its path."""
        if isinstance(self.value, dict):
            for key, node in self.value.items():
                yield from node.leaves(join_path(path, key))
        elif isinstance(self.value, list):
            for index, node in enumerate(self.value):
                yield from node.leaves(f"{path}[{index}]")
        else:
            yield path, self


def join_path(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def locate(root: Node, path: str) -> str:
    """The location of what stands at `path` (`modules.out.with.path`, `routes[2]`), or of the nearest thing above."""
    node, location = root, root.location
    for part in path.replace("[", ".").replace("]", "").split("."):
        if node.is_mapping and part in node.value:
            node = node.value[part]
        elif node.is_list and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
        else:
            break
        location = node.location
    return location


class _Open:
    """A mapping or a list that is being read."""

    __slots__ = ("anchor", "key", "key_location", "location", "merges", "node", "waits_for_key")

    def __init__(self, node: Node, anchor: str | None):
        self.node = node
        self.anchor = anchor
        self.key: Any = None
        self.key_location = ""
        self.waits_for_key = node.is_mapping
        self.merges: list[Node] = []


class _Stop(Exception):
    """Reading on makes no sense; the reason is among the problems."""


def compose(text: str, file: str, problems: list[Problem]) -> Node | None:
    """Read YAML. Whatever is wrong with it as YAML is added to `problems`; None: there is no tree.

    Args:
        text: The file's text.
        file: Its name, for locations.
        problems: Where problems are added.
    """
    return _Composer(file, problems).compose(text)


class _Composer:
    def __init__(self, file: str, problems: list[Problem]):
        self.file = file
        self.problems = problems
        self.open: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.root: Node | None = None

    def compose(self, text: str) -> Node | None:
        try:
            for event in yaml.parse(text, Loader=_Loader):
                self.take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.report(_advice(error, text, mark), self.at(mark) if mark else self.file)
            return None
        except yaml.YAMLError as error:  # a character that YAML does not allow
            self.report(f"this is not YAML: {str(error).splitlines()[0]}", self.file)
            return None
        except _Stop:
            return None
        if self.root is None:
            self.report("the file is empty; a flow needs `modules:`", f"{self.file}:1:1")
        return self.root

    def at(self, mark: Any) -> str:
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}"

    def report(self, message: str, location: str, path: str = "") -> None:
        self.problems.append(Problem(message, path, location))

    def path(self) -> str:
        path = ""
        for frame in self.open:
            if frame.node.is_list:
                path += f"[{len(frame.node.value)}]"
            elif not frame.waits_for_key:
                path = join_path(path, frame.key)
        return path

    def take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self.add(self.scalar(event), event.anchor)
        elif kind is yaml.AliasEvent:
            self.add(self.aliased(event), None)
        elif kind in (yaml.MappingStartEvent, yaml.SequenceStartEvent):
            self.begin(event, {} if kind is yaml.MappingStartEvent else [])
        elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
            self.end()
        elif kind is yaml.DocumentStartEvent and self.root is not None:
            self.report("a second document begins here; a flow file holds one", self.at(event.start_mark))
            raise _Stop

    def scalar(self, event: Any) -> Node:
        location = self.at(event.start_mark)
        self.check_tag(event, location)
        if not event.implicit[0] or event.tag is not None:
            return Node(event.value, location)
        value, trap = read_scalar(event.value)
        if trap and not isinstance(value, bool):
            self.report(trap, location, self.path())
            return Node(value, location, broken=True)
        return Node(value, location, trap=trap, text=event.value)

    def aliased(self, event: Any) -> Node:
        location = self.at(event.start_mark)
        node = self.anchors.get(event.anchor)
        if node is None:
            inside = any(frame.anchor == event.anchor for frame in self.open)
            wrong = "stands inside what it is an alias of" if inside else "is the alias of nothing above it"
            self.report(f"*{event.anchor} {wrong}", location, self.path())
            raise _Stop
        return node

    def check_tag(self, event: Any, location: str) -> None:
        if event.tag not in (None, "!", *_TAGS):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.report(f"the tag {tag!r} is not understood: a flow file has plain values only", location)
            raise _Stop

    def begin(self, event: Any, value: Any) -> None:
        location = self.at(event.start_mark)
        self.check_tag(event, location)
        if len(self.open) >= MAX_DEPTH:
            self.report(f"nested deeper than {MAX_DEPTH} levels", location)
            raise _Stop
        if self.open and self.open[-1].waits_for_key:
            self.report("a key must be a plain word, not a mapping or a list", location, self.path())
            raise _Stop
        self.open.append(_Open(Node(value, location, {}), event.anchor))

    def end(self) -> None:
        frame = self.open.pop()
        for merged in frame.merges:
            for key, node in merged.value.items():
                if key not in frame.node.value:
                    frame.node.value[key] = node
                    frame.node.keys[key] = merged.keys[key]
                    frame.node.size += node.size + 1
        self.add(frame.node, frame.anchor)

    def add(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self.anchors[anchor] = node
        if not self.open:
            self.root = node
            return
        frame = self.open[-1]
        if frame.waits_for_key:
            self.take_key(frame, node)
            return
        frame.node.size += node.size
        if frame.node.size > MAX_NODES:
            self.report(f"with its aliases written out this holds more than {MAX_NODES:,} values", frame.node.location)
            raise _Stop
        if frame.node.is_list:
            frame.node.value.append(node)
            return
        frame.waits_for_key = True
        if frame.key == "<<":
            self.merge(frame, node)
        elif frame.key in frame.node.value:
            first = frame.node.keys[frame.key].removeprefix(f"{self.file}:").partition(":")[0]
            path = join_path(self.path(), frame.key)
            self.report(f"{frame.key!r} stands here twice; first in line {first}", frame.key_location, path)
        else:
            frame.node.value[frame.key] = node
            frame.node.keys[frame.key] = frame.key_location

    def take_key(self, frame: _Open, node: Node) -> None:
        if node.trap:
            self.report(node.trap, node.location, self.path())
        # A trapped key goes on as the text it most likely was meant to be, so that only one problem comes of it.
        frame.key = node.text if node.trap else node.value
        if not isinstance(frame.key, Hashable):
            self.report("a key must be a plain word, not a mapping or a list", node.location, self.path())
            raise _Stop
        frame.key_location = node.location
        frame.waits_for_key = False

    def merge(self, frame: _Open, node: Node) -> None:
        merged = node.value if node.is_list else [node]
        for one in merged:
            if not one.is_mapping:
                self.report("<< takes a mapping or a list of mappings", one.location, self.path())
                raise _Stop
        frame.merges += merged


def _advice(error: yaml.MarkedYAMLError, text: str, mark: Any) -> str:
    message = ", ".join(part for part in (error.context, error.problem) if part)
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line[: mark.column + 1 if mark is not None else 0]:
        message += "; indent with spaces, not tabs"
    elif "mapping values are not allowed" in message:
        message += "; if the value holds ': ', write it in quotes"
    elif "cannot start any token" in message:
        message += "; write the value in quotes"
    elif "flow mapping" in message and "${" in line:
        message += "; between { and }, write a value with ${...} in quotes"
    return f"this is not YAML: {message}"
