"""`package.module:name` in a flow file: the function, class or other thing of that name.

Functions come from the flow file's folder or from what is installed. The folder stands on the import path only while
names are looked up, after the standard library and before installed packages: a `json.py` beside the flow can never
take the place of Python's. Modules stay imported, as Python wants it, so a function that imports a neighbour only when
it is called does not find it any more: import at the top of the file.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from furcula.errors import ConfigurationError, nearest
from furcula.naming import MAIN, import_name

__all__ = ["find", "importable", "is_name", "name_of"]

_NAME = re.compile(r"([A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")


def is_name(text: str) -> bool:
    """Has `text` the form `package.module:name`?"""
    return _NAME.fullmatch(text) is not None


#: By folder, its modules that gave way again to others of the same name. Like `sys.modules` there can be only one such
#: table: a file that is loaded twice must name the same functions twice.
_kept: dict[str, dict[str, ModuleType]] = {}


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Make the Python modules of `folder` importable inside the block."""
    if folder is None:
        yield
        return
    entry = str(folder.resolve())
    hidden = _hide_strangers(folder.resolve())
    sys.modules.update(_kept.get(entry, {}))
    added = entry not in sys.path
    if added:
        installed = (i for i, path in enumerate(sys.path) if re.search(r"\b(site|dist)-packages\b", path))
        sys.path.insert(next(installed, len(sys.path)), entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if added and entry in sys.path:
            sys.path.remove(entry)
        if hidden:
            shared = {name.partition(".")[0] for name in hidden}
            own = [name for name in sys.modules if name.partition(".")[0] in shared]
            _kept[entry] = {name: sys.modules.pop(name) for name in own}
            sys.modules.update(hidden)


def _hide_strangers(folder: Path) -> dict[str, ModuleType]:
    """Take out modules of other folders that have the name of one in `folder`, so that two flows may have one each.

    Only plain scripts' modules are meant: the standard library and installed packages are left alone.
    """
    hidden: dict[str, ModuleType] = {}
    own = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/*.py")}
    for name in own - sys.stdlib_module_names - {"furcula", "__main__", "conftest"}:
        places = _places_of(sys.modules.get(name))
        if not places or any(Path(p).resolve().is_relative_to(folder) or "-packages" in p for p in places):
            continue
        for loaded in [other for other in sys.modules if other == name or other.startswith(f"{name}.")]:
            hidden[loaded] = sys.modules.pop(loaded)
    return hidden


def _places_of(module: ModuleType | None) -> list[str]:
    """Where a module was found: its file, or the folders of a package that has none."""
    file = getattr(module, "__file__", None)
    return [file] if file is not None else [str(path) for path in getattr(module, "__path__", ())]


def find(text: str, folder: Path | None) -> Any:
    """What `package.module:name` names. Call inside `importable(folder)`.

    Raises:
        ConfigurationError: There is no such module or name (with the nearest one), or the module cannot be imported;
            then the message has the line of the module where it failed.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not the name of a function; write package.module:name")
    module_name, attribute = match.groups()
    found: Any = _import(module_name, folder)
    walked = module_name
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            hint = nearest(part, (name for name in dir(found) if not name.startswith("__")))
            if (
                folder is not None
                and module_name in sys.stdlib_module_names
                and (folder / f"{module_name}.py").exists()
            ):
                hint = f"; {module_name} is Python's own, so rename {folder / module_name}.py"
            raise ConfigurationError(f"{walked} has no {part!r}{hint}") from None
        walked += f".{part}"
    return found


def _import(name: str, folder: Path | None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            beside = _modules_in(folder)
            where = f"beside the flow ({folder})" if folder is not None else "on the import path"
            raise ConfigurationError(
                f"there is no Python module {error.name!r} {where} or among the installed packages"
                f"{nearest(name, beside)}"
            ) from error
        raise ConfigurationError(_blame(name, error, folder)) from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(_blame(name, error, folder)) from error


def _modules_in(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    top = [path.stem for path in folder.glob("*.py")]
    return top + [".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.glob("*/*.py")]


def _blame(name: str, error: BaseException, folder: Path | None) -> str:
    """Where importing failed: the deepest line that is the user's own, else the deepest of all."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
        return f"{name} cannot be imported: {place}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    frames = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
    own = [frame for frame in frames if folder is not None and Path(frame.filename).is_relative_to(folder.resolve())]
    place = "".join(f"{frame.filename}:{frame.lineno}: " for frame in (own or frames)[-1:])
    text = str(error) if not isinstance(error, SystemExit) else f"exit({error.code})"
    return f"{name} cannot be imported: {place}{type(error).__name__}: {text}"


def name_of(subject: Any) -> str | None:
    """`package.module:name` by which `subject` can be found again, or None."""
    try:
        found = import_name(subject)
    except ValueError:
        return None
    return None if found.module == MAIN else f"{found.module}:{found.name}"
