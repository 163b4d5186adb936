"""The flow's own checks, with every finding put in its place in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from furcula.config.nodes import Node, locate
from furcula.errors import Problem
from furcula.flow import FlowGraph
from furcula.graph import Place

__all__ = ["Checks", "in_file_order"]


class Checks:
    """What has to be known about a file to check the flow that was made from it.

    Args:
        inside: Is this a flow inside another? Then it need not be fed.

    Attributes:
        root: The file's values.
        route_paths: For every route of the flow, what it is called in the file.
        broken: Modules that are in the file and could not be placed.
        included: Names under which other flows are used.
    """

    def __init__(self, inside: bool) -> None:
        self.inside = inside
        self.root = Node({}, "")
        self.route_paths: list[str] = []
        self.broken: set[str] = set()
        self.included: set[str] = set()

    def run(self, flow: FlowGraph) -> list[Problem]:
        """All problems of the flow that the file's own problems have not caused."""
        self._stand_in(flow)
        found = []
        for problem in flow.problems():
            name = _module_in(problem.path)
            unfed = problem.message.startswith(("nobody feeds", "no source reaches"))
            if name in self.broken or (unfed and self.inside):
                continue
            if problem.path == "modules" or (self.broken and "no source reaches" in problem.message):
                continue  # reported already; or it is the broken module that would have reached it
            found.append(self.located(self._reworded(problem)))
        return found

    def _stand_in(self, flow: FlowGraph) -> None:
        """Put something in the place of every module that is broken, so that routes can still be checked."""
        for name in self.broken:
            into = tuple(dict.fromkeys(route.inbox for route in flow.routes if route.target == name))
            flow.places[name] = Place(name, None, is_source=not into, inboxes=into)

    def _reworded(self, problem: Problem) -> Problem:
        """The flow counts single arrows as routes; the file has chains of them, and routes that are implied."""

        def in_file(match: re.Match[str]) -> str:
            index = int(match[1])
            return self.route_paths[index] if index < len(self.route_paths) else match[0]

        path = re.sub(r"routes\[(\d+)\]", in_file, problem.path)
        message = re.sub(r"routes\[(\d+)\]", in_file, problem.message)
        unknown = re.search(r"there is no module '([^']+)'", message)
        if unknown and unknown[1] in self.included:
            message = (
                f"{message.partition(': ')[0]}: more than one module of the flow {unknown[1]!r} could be meant: "
                "say which with `expose:` in its file"
            )
        return Problem(message, path, problem.location)

    def located(self, problem: Problem) -> Problem:
        """The problem with the location of its path, where so far it has none better than its module's name."""
        name = _module_in(problem.path)
        modules = self.root.value.get("modules")
        known = modules.keys if modules is not None else {}
        if problem.location and (problem.location != known.get(name) or problem.path == f"modules.{name}"):
            return problem
        return Problem(problem.message, problem.path, locate(self.root, problem.path))


def _module_in(path: str) -> str:
    return path.split(".")[1] if path.startswith("modules.") else ""


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems of one file by line, so that it can be mended from top to bottom; files in the order of finding."""
    unique = list(dict.fromkeys(problems))
    files = list(dict.fromkeys(problem.location.rsplit(":", 2)[0] for problem in unique))

    def place(problem: Problem) -> tuple[int, int, int]:
        found = re.fullmatch(r"(.*?):(\d+):(\d+)", problem.location)
        if found is None:
            return (-1, 0, 0)
        return (files.index(found[1]), int(found[2]), int(found[3]))

    return sorted(unique, key=place)
