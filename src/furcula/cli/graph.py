"""`furcula graph`: the flow as a diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from furcula.cli.command import Command
from furcula.cli.target import open_flow

if TYPE_CHECKING:
    from furcula.flow import FlowGraph
    from furcula.graph import Place, Route

__all__ = ["dot", "graph", "mermaid"]


@click.command(cls=Command)
@click.argument("flow", metavar="FLOW")
@click.option("--format", "form", type=click.Choice(["mermaid", "dot"]), default="mermaid", help="Whose language.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Put a value over the file's.")
def graph(flow: str, form: str, overrides: tuple[str, ...]) -> None:
    """Draw a flow for Mermaid or Graphviz. Dashed arrows carry failures, dotted boxes nothing but them."""
    found = open_flow(flow, overrides)
    click.echo(mermaid(found) if form == "mermaid" else dot(found))


def mermaid(flow: FlowGraph) -> str:
    """The flow as a Mermaid flowchart."""
    numbers = {name: f"m{index}" for index, name in enumerate(flow.places)}
    lines = ["flowchart LR"]
    for name, place in flow.places.items():
        label = f'"{_mermaid_text(name)}<br/><small>{_mermaid_text(_kind(place))}</small>"'
        shape = f"([{label}])" if place.is_source else f"[{label}]"
        lines.append(f"  {numbers[name]}{shape}")
    for route in flow.routes:
        arrow = "-.->" if _is_failure(route) or route.branch == "best-effort" else "-->"
        label = f"|{_mermaid_text(_label(route))}|" if _label(route) else ""
        lines.append(f"  {numbers[route.source]} {arrow}{label} {numbers[route.target]}")
    if flow.dead_letter in numbers:
        lines.append(f"  {numbers[str(flow.dead_letter)]}:::dead")
        lines.append("  classDef dead stroke-dasharray: 3 3")
    return "\n".join(lines)


def dot(flow: FlowGraph) -> str:
    """The flow in Graphviz' language."""
    lines = [f"digraph {_quoted(flow.name)} {{", "  rankdir=LR;", "  node [shape=box];"]
    for name, place in flow.places.items():
        style = ', style="rounded"' if place.is_source else ""
        style = ', style="dashed"' if name == flow.dead_letter else style
        lines.append(f"  {_quoted(name)} [label={_quoted(name, _kind(place))}{style}];")
    for route in flow.routes:
        settings = [f"label={_quoted(_label(route))}"] if _label(route) else []
        settings += ["style=dashed"] if _is_failure(route) or route.branch == "best-effort" else []
        suffix = f" [{', '.join(settings)}]" if settings else ""
        lines.append(f"  {_quoted(route.source)} -> {_quoted(route.target)}{suffix};")
    return "\n".join([*lines, "}"])


def _kind(place: Place) -> str:
    if place.use is not None:
        return place.use
    name = getattr(place.subject, "__qualname__", type(place.subject).__name__)
    return name if place.role == "module" else f"{place.role} {name}"


def _label(route: Route) -> str:
    outbox = "" if route.outbox == "outbox" else route.outbox
    inbox = "" if route.inbox == "inbox" else f"to {route.inbox}"
    branch = "" if route.branch == "required" else route.branch
    return ", ".join(part for part in (outbox, inbox, branch) if part)


def _is_failure(route: Route) -> bool:
    return route.outbox in ("failed", "invalid", "expired")


def _mermaid_text(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _quoted(*lines: str) -> str:
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
