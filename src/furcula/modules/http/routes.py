"""The route table: a method and a path lead to a route, or to 404 or 405."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from furcula.errors import nearest
from furcula.modules.http.media import media_types
from furcula.options import Duration, Size
from furcula.statuses import MethodNotAllowed, NotFound, UpgradeRequired

__all__ = ["METHODS", "Route", "Routes"]

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_SOCKET: Final = "WS"

#: `{name}` one part of a path, or some of it; `{name:int}` digits, given as an int; `{name:path}` all the rest, slashes
#: too.
_PARAMETER: Final = re.compile(r"\{([A-Za-z_]\w*)(?::(\w+))?\}")
_KINDS: Final[Mapping[str, Callable[[str], Any]]] = {"str": str, "int": int, "path": str}

Reply = Literal["first", "all", "stream", "sse"]


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of the table. What it leaves out, the listener's own arguments say.

    Attributes:
        route: `POST /orders/{id:int}`, `GET,PUT /x`, `* /y` (any method), `WS /chat` (a WebSocket), or a path alone.
        outbox: Where its events leave.
        accepts: Types of body that it takes: media types, or json, msgpack, xml, text, form, multipart, bytes.
        produces: Types that it answers with, checked against the request's Accept before it enters the flow.
        timeout: Seconds until 504.
        max_body: Bytes that a body may have.
        on_drop: The status of a request whose events were all dropped.
        reply: `first`: the first answer; `all`: a list of all; `stream`, `sse`: each when it comes, until all is done.
        codec: Of a WebSocket's text messages: json or text.
    """

    route: str
    outbox: str = "outbox"
    accepts: list[str] | None = None
    produces: list[str] | None = None
    timeout: Duration | None = None
    max_body: Size | None = None
    on_drop: int | None = None
    reply: Reply = "first"
    codec: Literal["json", "text"] = "json"

    @classmethod
    def of(cls, spec: Any) -> Route:
        """From the text of a route, or a dict of its parts.

        Raises:
            ValueError: It is neither, or some part is wrong; the message says which.
        """
        if isinstance(spec, Route):
            return spec
        if isinstance(spec, str):
            spec = {"route": spec}
        if not isinstance(spec, Mapping):
            raise ValueError(f"a route is a text like 'POST /orders', or a dict with `route`, not {spec!r}")
        for name in spec:
            if name not in cls.__struct_fields__:
                known = cls.__struct_fields__
                raise ValueError(f"the route has unknown part {name!r}{nearest(str(name), known)}")
        try:
            spec = dict(spec)
            if "timeout" in spec and spec["timeout"] is not None:
                spec["timeout"] = Duration(spec["timeout"])
            if "max_body" in spec and spec["max_body"] is not None:
                spec["max_body"] = Size(spec["max_body"])
            convertible = {name: value for name, value in spec.items() if name not in ("timeout", "max_body")}
            made = msgspec.convert(convertible, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"the route {spec.get('route', spec)!r}: {error}") from None
        made = msgspec.structs.replace(made, timeout=spec.get("timeout"), max_body=spec.get("max_body"))
        made.methods, made.path  # noqa: B018 -- so that what is wrong with them is said now
        for types in (made.accepts, made.produces):
            media_types(types or ())
        if made.on_drop is not None and not 200 <= made.on_drop <= 599:
            raise ValueError(f"the route {made.route!r}: on_drop: {made.on_drop} is not a status (200 to 599)")
        return made

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, upper case; `*` for any; `WS` alone for a WebSocket."""
        words = self.route.split()
        if len(words) == 1:
            return ("*",)
        if len(words) != 2:
            raise ValueError(f"{self.route!r} is not a route; write 'POST /orders'")
        methods = tuple(method.upper() for method in words[0].split(","))
        for method in methods:
            if method not in (*METHODS, "*", _SOCKET):
                known = (*METHODS, _SOCKET)
                raise ValueError(f"the route {self.route!r}: there is no method {method!r}{nearest(method, known)}")
        if _SOCKET in methods and len(methods) > 1:
            raise ValueError(f"the route {self.route!r}: WS stands alone; give the other methods a route of their own")
        return methods

    @property
    def path(self) -> str:
        path = self.route.split()[-1]
        if not path.startswith("/"):
            raise ValueError(f"the route {self.route!r}: a path begins with '/'")
        return path


class _Entry:
    """What stands at one path: a route for each method."""

    __slots__ = ("allowed", "any", "converters", "path", "pattern", "routes", "socket")

    def __init__(self, path: str, base: str):
        self.path = base + path
        self.routes: dict[str, Any] = {}
        self.any: Any = None
        self.socket: Any = None
        self.allowed: tuple[str, ...] = ()
        self.converters: dict[str, Callable[[str], Any]] = {}
        self.pattern: re.Pattern[str] | None = None
        if "{" in path or "}" in path:
            self.pattern = self._compiled(path, base)

    def _compiled(self, path: str, base: str) -> re.Pattern[str]:
        fixed, parameters = _parsed(path)
        for name, kind in parameters:
            self.converters[name] = _KINDS[kind]
        return re.compile(_expression(base + fixed[0], parameters, fixed[1:]), re.DOTALL)

    def add(self, methods: Iterable[str], route: Any) -> None:
        for method in methods:
            if (method == "*" and self.any) or (method == _SOCKET and self.socket) or method in self.routes:
                raise ValueError(f"there are two routes {method} {self.path}")
            if method == "*":
                self.any = route
            elif method == _SOCKET:
                self.socket = route
            else:
                self.routes[method] = route
        allowed = {*self.routes, *(METHODS[:6] if self.any else ())}
        if "GET" in allowed:
            allowed.add("HEAD")
        if allowed:
            allowed.add("OPTIONS")
        self.allowed = tuple(method for method in METHODS if method in allowed)

    def params(self, found: re.Match[str]) -> dict[str, Any]:
        return {name: self.converters[name](value) for name, value in found.groupdict().items()}


def _parsed(path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The fixed texts of a path (before, between and after its parameters), and name and kind of each parameter.

    Raises:
        ValueError: Something is wrong with it.
    """
    fixed: list[str] = []
    parameters: list[tuple[str, str]] = []
    position = 0
    for found in _PARAMETER.finditer(path):
        name, kind = found[1], found[2] or "str"
        if kind not in _KINDS:
            raise ValueError(f"{path!r}: there is no kind of parameter {kind!r}{nearest(kind, _KINDS)}")
        if any(name == other for other, _ in parameters):
            raise ValueError(f"{path!r} has two parameters {name!r}")
        if parameters and position == found.start():
            raise ValueError(f"{path!r}: nothing stands between {parameters[-1][0]!r} and {name!r} to tell them apart")
        if parameters and parameters[-1][1] == "path":
            raise ValueError(f"{path!r}: {parameters[-1][0]!r} takes all the rest, so {name!r} cannot come after it")
        fixed.append(path[position : found.start()])
        parameters.append((name, kind))
        position = found.end()
    fixed.append(path[position:])
    if any("{" in text or "}" in text for text in fixed):
        raise ValueError(f"{path!r}: a parameter is written {{name}}, {{name:int}} or {{name:path}}")
    return fixed, parameters


def _expression(begin: str, parameters: list[tuple[str, str]], after: list[str]) -> str:
    """A regular expression that takes time in proportion to the path, whatever the path is.

    A stranger writes the path, so two parameters in one part of it (`/{name}.{ext}`) must not both be free to grow and
    shrink: that would try each length of one with each length of the other. The first takes as much as it can, as in
    any regular expression; a later one cannot have in it the text that stands before it. That loses next to nothing,
    since the earlier one would have taken that text. And each part of the path, with the slash at its end, is matched
    once (`(?>`): no other way to match it would let the parts behind it begin anywhere else.
    """
    text, free, before = "", True, begin.rpartition("/")[2]
    if parameters[-1][1] == "path" and after[-1]:  # so that what stands before it is not tried in vain
        text = f"(?=.*{re.escape(after[-1])}\\Z)"
    text += re.escape(begin) + "(?>"
    for (name, kind), following in zip(parameters, after, strict=True):
        if kind == "int":
            pattern = r"\d{1,18}"
        elif kind == "path":
            pattern = ".*"
        elif free:
            pattern, free = "[^/]+", False
        else:
            pattern = f"(?:(?!{re.escape(before)})[^/])+"
        text += f"(?P<{name}>{pattern})"
        head, slash, rest = following.partition("/")
        if slash and kind != "path":
            middle, _, before = f"/{rest}".rpartition("/")
            text += f"{re.escape(head)}/){re.escape(f'{middle}/'[1:])}(?>{re.escape(before)}"
            free = True
        else:
            text, before = text + re.escape(following), following
    return text + "\\Z)"


class Routes:
    """The table.

    Args:
        base: Stands before every path: `/api/v1`.
        entries: Pairs of a route and what it leads to.
    """

    def __init__(self, base: str, entries: Iterable[tuple[Route, Any]]):
        self._static: dict[str, _Entry] = {}
        self._patterns: dict[str, _Entry] = {}
        for route, target in entries:
            path = route.path
            table = self._patterns if "{" in path or "}" in path else self._static
            full = base + path
            entry = table.get(full)
            if entry is None:
                entry = table[full] = _Entry(path, base)
            entry.add(route.methods, target)
        # Those with more fixed text come first, so that `/orders/{id}` is found before `/{rest:path}`.
        self._ordered = sorted(self._patterns.values(), key=lambda entry: -len(re.sub(_PARAMETER, "", entry.path)))

    def find(self, method: str, path: str) -> tuple[Any, dict[str, Any] | None]:
        """What stands at a method and a path, and the parameters in the path.

        Raises:
            NotFound, MethodNotAllowed: Nothing does.
        """
        entry = self._static.get(path)
        if entry is not None:
            route = entry.routes.get(method)
            if route is not None:
                return route, None
        allowed: set[str] = set()
        for entry, params in self._at(path):
            route = entry.routes.get(method)
            if route is None and method == "HEAD":
                route = entry.routes.get("GET")
            if route is None and method != _SOCKET and (method != "OPTIONS" or not entry.routes):
                route = entry.any
            if route is not None:
                return route, params
            allowed.update(entry.allowed)
        if allowed:
            in_order = tuple(method for method in METHODS if method in allowed)
            raise MethodNotAllowed(f"{path} takes {', '.join(in_order)}", allow=in_order)
        if any(entry.socket is not None for entry, _ in self._at(path)):
            raise _upgrade(path)
        raise NotFound(f"there is nothing at {path}")

    def socket(self, path: str) -> tuple[Any, dict[str, Any] | None] | None:
        """What WebSocket stands at a path, if any."""
        for entry, params in self._at(path):
            if entry.socket is not None:
                return entry.socket, params
        return None

    def _at(self, path: str) -> Iterable[tuple[_Entry, dict[str, Any] | None]]:
        entry = self._static.get(path)
        if entry is not None:
            yield entry, None
        for entry in self._ordered:
            assert entry.pattern is not None
            found = entry.pattern.fullmatch(path)
            if found is not None:
                yield entry, entry.params(found)

    def allowed(self, path: str) -> tuple[str, ...]:
        """The methods that a path takes; none if nothing is there."""
        found = {method for entry, _ in self._at(path) for method in entry.allowed}
        return tuple(method for method in METHODS if method in found)


def _upgrade(path: str) -> UpgradeRequired:
    # `Connection: upgrade` belongs to it, but that field is the server's.
    return UpgradeRequired(f"{path} is a WebSocket", headers={"upgrade": "websocket"})
