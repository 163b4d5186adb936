"""A flow file becomes a Flow, or the list of all that is wrong with it.

A file is read in phases, and each adds what it finds to one list: YAML, `--set`, variables, modules, routes, and at
last the flow's own checks, whose findings are given their place in the file. Only a file that is not YAML ends early.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from furcula.config import functions
from furcula.config.checks import Checks, in_file_order
from furcula.config.convert import Checker
from furcula.config.nodes import Node, compose
from furcula.config.overrides import override
from furcula.config.places import is_flow_file, place_module
from furcula.config.routes import connect
from furcula.config.variables import fill_in
from furcula.errors import ConfigurationError, Problem, nearest
from furcula.flow import FlowGraph
from furcula.options import Cluster, convert_value
from furcula.run import Flow

__all__ = ["TOP_KEYS", "load", "loads", "read_text"]

#: What a flow file may say.
TOP_KEYS = ("flow", "modules", "routes", "dead_letter", "ttl", "expose", "cluster")


def load(path: str | Path, *, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> Flow:
    """The flow that a YAML file describes. Runs nothing but the imports of the functions it names.

    Args:
        path: The file. Its folder is where functions and other flow files are looked up, and what relative paths in
            modules' arguments are relative to.
        overrides: Values put over the file's: `modules.listen.with.port=1`, the value read as YAML.
        environment: The variables for `${VAR}`; default: those of the process.

    Raises:
        ConfigurationError: With every problem, each as `file:line:column: path: message`.
    """
    file = Path(path)
    return _File(str(path), file.parent, environment, (file.resolve(),)).flow(read_text(file), overrides)


def loads(
    text: str,
    *,
    folder: str | Path | None = None,
    name: str = "<text>",
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Flow:
    """The same for a text: `folder` stands for the file's folder, and `name` for its name in messages."""
    return _File(name, None if folder is None else Path(folder), environment, ()).flow(text, overrides)


def read_text(file: Path) -> str:
    """The text of a file, or the problem with it as a ConfigurationError."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"the file is not UTF-8 text (byte 0x{error.object[error.start]:02x})"
        raise ConfigurationError([Problem(message, "", f"{file}:{line}:{column}")]) from None
    except OSError as error:
        hint = ""
        if isinstance(error, FileNotFoundError) and file.parent.is_dir():
            hint = nearest(file.name, (other.name for other in file.parent.glob("*.y*ml")))
        raise ConfigurationError([Problem(f"cannot be read: {error.strerror}{hint}", "", str(file))]) from None


class _File:
    """Reads one flow file; another one for each flow inside it.

    Args:
        name: The file's name, for locations.
        folder: Where its functions and files are.
        environment: Variables.
        stack: The files being read, outermost first, this one last.
        inside: Is this a flow inside another? Then it need not be fed.
    """

    def __init__(
        self,
        name: str,
        folder: Path | None,
        environment: Mapping[str, str] | None,
        stack: tuple[Path, ...],
        inside: bool = False,
    ) -> None:
        self.name = name
        self.folder = folder
        self.environment = os.environ if environment is None else environment
        self.stack = stack
        self.problems: list[Problem] = []
        self.checker = Checker(self.problems)
        self.root = Node({}, f"{name}:1:1")
        self.checks = Checks(inside)

    def report(self, message: str, path: str, location: str) -> None:
        self.problems.append(Problem(message, path, location))

    def flow(self, text: str, overrides: Iterable[str] = ()) -> Flow:
        root = compose(text, self.name, self.problems)
        if root is None:
            raise ConfigurationError(self.problems)
        if not root.is_mapping:
            self.report("a flow file is a mapping that begins with `flow:` and `modules:`", "", root.location)
            raise ConfigurationError(self.problems)
        self.root = fill_in(override(root, overrides, self.problems), self.environment, self.problems)
        self.checks.root = self.root
        flow = self.top()
        with functions.importable(self.folder):
            self.modules(flow)
        self.routes(flow)
        self.expose(flow)
        self.problems += self.checks.run(flow)
        if self.problems:
            raise ConfigurationError(in_file_order(self.problems))
        return flow

    # ------------------------------------------------------------------ phases

    def top(self) -> Flow:
        for key in self.root.value:
            if key not in TOP_KEYS:
                hint = nearest(key, TOP_KEYS) or "; known: " + ", ".join(TOP_KEYS)
                self.report(f"there is no {str(key)!r} in a flow file{hint}", str(key), self.root.keys[key])
        default = Path(self.name).stem if self.stack else "flow"
        return Flow(
            self.value("flow", str) or default,
            dead_letter=self.value("dead_letter", str),
            ttl=self.value("ttl", int),
            folder=self.folder,
            cluster=self.cluster(),
        )

    def cluster(self) -> Cluster | None:
        node = self.root.value.get("cluster")
        if node is None or node.value is None:
            return None
        count = len(self.problems)
        given = self.checker.check(node, Cluster, "cluster")
        return None if len(self.problems) > count else convert_value(given, Cluster)

    def value(self, key: str, kind: Any) -> Any:
        node = self.root.value.get(key)
        if node is None or node.value is None:
            return None
        given = self.checker.check(node, kind, key)
        if key == "ttl" and isinstance(given, int) and given < 1:
            self.report(f"ttl must be 1 or more (given {given})", key, node.location)
        return given if isinstance(given, kind) else None

    def modules(self, flow: Flow) -> None:
        modules = self.root.value.get("modules")
        if modules is None or modules.value in (None, {}):
            self.report("the flow has no modules", "modules", (modules or self.root).location)
            return
        if not modules.is_mapping:
            self.report("expected a mapping from names to modules", "modules", modules.location)
            return
        for name, node in modules.value.items():
            path, location = f"modules.{name}", modules.keys[name]
            placed = False
            if not isinstance(name, str):
                self.report(f"{name!r} is not a name: write it in quotes, beginning with a letter", path, location)
            elif node.broken:
                pass
            elif isinstance(node.value, str):  # `out: stdout` is short for `out: {use: stdout}`
                short = Node({"use": node}, node.location, {"use": node.location})
                placed = self.module(flow, name, short, location)
            elif not node.is_mapping:
                expected = "the kind of a module, or a mapping with use, map, filter or flat_map"
                self.report(f"expected {expected}", path, node.location)
            else:
                placed = self.module(flow, name, node, location)
            if not placed:
                self.checks.broken.add(str(name))

    def module(self, flow: Flow, name: str, node: Node, location: str) -> bool:
        use = node.value.get("use")
        if use is not None and isinstance(use.value, str):
            if is_flow_file(use.value):
                return self.include(flow, name, node, use)
            if ":" in use.value and functions.is_name(use.value) and self.include_object(flow, name, node, use):
                return True
        found = place_module(flow, name, node, location, self.folder)
        for problem in found:
            self.problems.append(self.checks.located(problem))
        return name in flow.places

    def include(self, flow: Flow, name: str, node: Node, use: Node) -> bool:
        """A flow inside this one, from a file of its own."""
        path = f"modules.{name}.use"
        file = (self.folder or Path()) / use.value
        if file.resolve() in self.stack:
            self.report(f"{use.value} is being read already: a flow cannot be inside itself", path, use.location)
            return False
        inner_file = _File(str(file), file.parent, self.environment, (*self.stack, file.resolve()), True)
        try:
            text = read_text(file)
        except ConfigurationError as error:
            self.report(f"{use.value} {error.problems[0].message}", path, use.location)
            return False
        try:
            inner = inner_file.flow(text)
        except ConfigurationError as error:
            self.problems += error.problems
            return False
        return self.join(flow, name, node, inner, inner_file.checks.route_paths)

    def include_object(self, flow: Flow, name: str, node: Node, use: Node) -> bool:
        """A flow inside this one, made in Python and named `package.module:flow`."""
        try:
            inner = functions.find(use.value, self.folder)
        except ConfigurationError:
            return False  # reported where functions are looked up
        if not isinstance(inner, FlowGraph):
            return False
        return self.join(flow, name, node, inner, [f"routes[{index}]" for index in range(len(inner.routes))])

    def join(self, flow: Flow, name: str, node: Node, inner: FlowGraph, paths: list[str]) -> bool:
        before = len(self.problems)
        for key in node.value:
            if key != "use":
                message = f"{key} cannot stand beside a flow that is used; its modules have their own"
                self.report(message, f"modules.{name}.{key}", node.keys[key])
        try:
            flow.include(inner, name)
        except ConfigurationError as error:
            self.report(error.problems[0].message, f"modules.{name}", node.location)
        self.checks.included.add(name)
        self.checks.route_paths += [f"modules.{name}: {path}" for path in paths]
        self.checks.route_paths += [f"modules.{name}: dead_letter"] * (len(flow.routes) - len(self.checks.route_paths))
        return len(self.problems) == before

    def routes(self, flow: Flow) -> None:
        routes = self.root.value.get("routes")
        if routes is None:
            self.chain(flow)
            return
        if routes.value is None:
            return
        if not routes.is_list:
            self.report("expected a list of routes: - a -> b", "routes", routes.location)
            return
        for index, node in enumerate(routes.value):
            connect(flow, node, f"routes[{index}]", self.checker)
            self.checks.route_paths += [f"routes[{index}]"] * (len(flow.routes) - len(self.checks.route_paths))

    def chain(self, flow: Flow) -> None:
        """Without `routes:` the modules follow each other in file order, all but the dead-letter module."""
        modules = self.root.value.get("modules")
        if modules is None or not modules.is_mapping:
            return
        names = [str(name) for name in modules.value if name != flow.dead_letter]
        for source, target in itertools.pairwise(names):
            flow.connect(source, target, location=modules.keys[target])
            self.checks.route_paths.append(f"modules.{target}")

    def expose(self, flow: Flow) -> None:
        exposed = self.root.value.get("expose")
        if exposed is None or exposed.value is None:
            return
        ends = self.checker.check(exposed, dict[str, str], "expose")
        for port, end in ends.items() if isinstance(ends, dict) else ():
            module = str(end).partition(".")[0]
            if module not in flow.places and module not in self.checks.included and module not in self.checks.broken:
                message = f"there is no module {module!r}{nearest(module, flow.places)}"
                self.report(message, f"expose.{port}", exposed.value[port].location)
            else:
                flow.expose(**{str(port): str(end)})
