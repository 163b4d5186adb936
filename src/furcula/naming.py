"""The name by which another Python process finds a function or class again, and what it is told of its arguments."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from furcula.options import Secret

__all__ = ["MAIN", "ImportName", "encode_arguments", "import_name", "import_path", "names_of", "secret_back"]

#: The module that Python was started with.
MAIN = "__main__"


class ImportName(msgspec.Struct, frozen=True):
    """Where a function or class is found.

    Attributes:
        module: The module to import; `__main__` for what is defined in the program itself.
        name: The dotted name in it.
        root: The folder in which the import of the module begins, or empty where it is not known.
        main_name: For `__main__`: the module that `python -m` was given, or empty.
        main_path: For `__main__`: the script's path, or empty.
    """

    module: str
    name: str
    root: str = ""
    main_name: str = ""
    main_path: str = ""


def import_name(subject: Any) -> ImportName:
    """The name by which `subject` can be found in another process.

    Raises:
        ValueError: There is none; the message says why, and what to do.
    """
    if isinstance(subject, functools.partial):
        raise ValueError("is a functools.partial, which has no name: give the function, and its arguments beside it")
    owner = getattr(subject, "__objclass__", None)  # `str.upper` says no module of its own
    module = getattr(subject, "__module__", None) or getattr(owner, "__module__", None)
    name = getattr(subject, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError(
            f"is an object of type {type(subject).__name__}, which has no name: give a function or a class"
        )
    if "<lambda>" in name:
        raise ValueError("is a lambda, which has no name: write it as a function with `def` in a module")
    if "<locals>" in name:
        raise ValueError("is defined inside a function: move it to the top of its module")
    if not _is_at(subject, name, names_of(subject, module)):
        raise ValueError(f"is not what {module}:{name} stands for: give it under the name that it has in its module")
    if module == MAIN:
        return _of_main(name)
    return ImportName(module, name, _root(module))


def _is_at(subject: Any, name: str, names: Mapping[str, Any]) -> bool:
    first, *rest = name.split(".")
    found: Any = names.get(first)
    for part in rest:
        found = getattr(found, part, None)
    # A decorated function's name stands for its place in the flow that decorated it. A classmethod is made anew each
    # time that it is asked for.
    same = found is subject or getattr(found, "subject", None) is subject
    return same or (inspect.ismethod(subject) and inspect.ismethod(found) and bool(found == subject))


def names_of(subject: Any, module: str) -> Mapping[str, Any]:
    """The names of the module that `subject` was made in, which need not be the one now imported under its name."""
    candidates = [subject, *vars(subject).values()] if isinstance(subject, type) else [subject]
    for candidate in candidates:
        names = getattr(candidate, "__globals__", None)
        if isinstance(names, dict) and names.get("__name__") == module:
            return names
    return vars(sys.modules[module]) if module in sys.modules else {}


def _of_main(name: str) -> ImportName:
    main = sys.modules[MAIN]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return ImportName(MAIN, name, main_name=spec.name)
    path = getattr(main, "__file__", None)
    if path is None or not os.path.exists(path):
        raise ValueError("is defined in an interactive session, which has no file: move it to a module")
    return ImportName(MAIN, name, main_path=os.path.abspath(path))


def import_path(find: ImportName) -> list[str]:
    """`sys.path` for a process that is to find it: this one's, and the folder it came from where that is not in it.

    A folder that is added stands after the standard library and before installed packages, as it does for flow files.
    """
    paths = [path or os.getcwd() for path in sys.path]
    if find.root and find.root not in paths:
        installed = (i for i, path in enumerate(paths) if re.search(r"\b(site|dist)-packages\b", path))
        paths.insert(next(installed, len(paths)), find.root)
    return paths


def _root(module: str) -> str:
    path: str | None = getattr(sys.modules.get(module), "__file__", None)
    if not path:
        return ""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.basename(path).partition(".")[0] == "__init__":
        folder = os.path.dirname(folder)
    for _ in range(module.count(".")):
        folder = os.path.dirname(folder)
    return folder


# ------------------------------------------------------------------ arguments

_SECRET = 1


def _enc_hook(value: Any) -> Any:
    # It crosses to a child of ours, over a pair of sockets that nobody else has. Anywhere else it stays hidden.
    if isinstance(value, Secret):
        return msgspec.msgpack.Ext(_SECRET, value.reveal().encode())
    if isinstance(value, int):  # a Size
        return int(value)
    if isinstance(value, float):  # a Duration
        return float(value)
    raise TypeError(f"values of type {type(value).__name__} are not supported")


#: Arguments (or what holds them) as MessagePack, secrets among them. To be read with `secret_back` as the hook for
#: extensions. Raises TypeError or ValueError for what cannot be said.
encode_arguments = msgspec.msgpack.Encoder(enc_hook=_enc_hook).encode


def secret_back(code: int, data: memoryview) -> Any:
    """The secret that was told as an argument."""
    if code != _SECRET:
        raise ValueError(f"extension type {code} is unknown")
    return Secret(bytes(data).decode())
