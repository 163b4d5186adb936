"""`furcula list` and `furcula show`: which kinds of modules there are, and what each takes."""

from __future__ import annotations

from typing import Any

import click

from furcula.cli.command import Command

__all__ = ["list_kinds", "show"]


@click.command("list", cls=Command)
def list_kinds() -> None:
    """List the kinds of modules, built in and plugged in, each with a line about it."""
    from furcula import registry

    kinds = registry.kinds()
    width = max(map(len, kinds))
    for kind in sorted(kinds):
        mark = "" if kind in registry.BUILT_IN else f" (plug-in: {kinds[kind]})"
        click.echo(f"{kind:<{width}}  {_one_line(kind)}{mark}")


def _one_line(kind: str) -> str:
    import inspect

    from furcula import registry

    try:
        doc = inspect.getdoc(registry.resolve(kind)) or ""
    except Exception as error:  # a broken or half-installed plug-in must not hide the others
        return f"cannot be loaded: {error}"
    return doc.partition("\n\n")[0].replace("\n", " ")


@click.command(cls=Command)
@click.argument("kind", metavar="KIND")
@click.option("--options", is_flag=True, help="Also show the options that every module takes.")
def show(kind: str, options: bool) -> None:
    """Show what a kind of module does: its documentation, its ports, and its arguments.

    KIND is a kind that `furcula list` prints, or package.module:name of a function or class of your own.
    """
    subject = _subject(kind)
    click.echo(kind)
    click.echo(_indented(_documentation(subject)))
    for line in _ports(subject):
        click.echo(line)
    click.echo("\narguments (under with:)")
    for line in _arguments(subject):
        click.echo(line)
    if options:
        click.echo("\noptions (beside use:)")
        for line in _options():
            click.echo(line)


def _subject(kind: str) -> Any:
    from pathlib import Path

    from furcula import registry
    from furcula.config import functions
    from furcula.graph import Place

    if not functions.is_name(kind):
        return registry.resolve(kind)
    with functions.importable(Path.cwd()):
        found = functions.find(kind, Path.cwd())
    return found.subject if isinstance(found, Place) else found


def _documentation(subject: Any) -> str:
    """The docstring without its list of arguments, which is shown with their types below."""
    import inspect

    kept: list[str] = []
    inside = False
    for line in (inspect.getdoc(subject) or "(not documented)").splitlines():
        if line.strip() in ("Args:", "Arguments:"):
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            inside = False
        if not inside:
            kept.append(line)
    return "\n".join(kept).rstrip()


def _ports(subject: Any) -> list[str]:
    from furcula.module import Source

    if not isinstance(subject, type):
        return []
    inboxes = getattr(subject, "inboxes", ("inbox",))
    outboxes = getattr(subject, "outboxes", ("outbox",))
    optional = getattr(subject, "optional", ())
    named = [f"{port} (may stay unconnected)" if port in optional else port for port in outboxes]
    if hasattr(subject, "ports"):
        named.append("and those its arguments name")
    lines = ["", f"inboxes     {', '.join(inboxes) or 'none: it is a source'}"]
    lines.append(f"outboxes    {', '.join([*named, 'failed'])}")
    if issubclass(subject, Source):
        told = {
            "message": "acknowledges each message when its event is settled",
            "position": "goes on only past settled events",
            "request": "answers whoever sent the event",
        }
        how = told.get(getattr(subject, "acknowledges", "none"), "cannot be told what became of its events")
        lines.append(f"delivery    {how}")
    return lines


def _arguments(subject: Any) -> list[str]:
    from furcula.module import parameters

    if not callable(subject):
        return ["  none"]
    found = parameters(subject, skip=0 if isinstance(subject, type) else 1)
    rows = [(p.name, _type_name(p.type), "required" if p.required else _default(p.default), p.doc) for p in found]
    return _table(rows) or ["  none"]


def _options() -> list[str]:
    from furcula.config.places import option_fields
    from furcula.module import argument_docs
    from furcula.options import Options

    docs = argument_docs(Options)
    fields = option_fields().values()
    return _table([(f.name, _type_name(f.type), _default(f.default), docs.get(f.name, "")) for f in fields])


def _table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    import textwrap

    names = max((len(row[0]) for row in rows), default=0)
    lines = []
    for name, kind, default, doc in rows:
        lines.append(f"  {name:<{names}}  {kind}, {default}")
        lines += textwrap.wrap(doc, 100, initial_indent=" " * (names + 4), subsequent_indent=" " * (names + 4))
    return lines


def _default(value: Any) -> str:
    from furcula.options import Duration, Secret

    if isinstance(value, Secret):
        return "default: a secret"
    if isinstance(value, Duration):
        return f"default: {value:g}s"
    return f"default: {value!r}"


def _type_name(kind: Any) -> str:
    import types
    import typing

    members = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(member) for member in members if member is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(repr(member) for member in members)
    if kind is typing.Any:
        return "anything"
    if isinstance(kind, type) and not members:
        return kind.__name__
    return str(kind).replace("typing.", "").replace("collections.abc.", "")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())
