"""`furcula explain`: what the flow promises, path by path."""

from __future__ import annotations

import click

from furcula.cli.command import Command
from furcula.cli.target import open_flow

__all__ = ["explain"]


@click.command(cls=Command)
@click.argument("flow", metavar="FLOW")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Put a value over the file's.")
def explain(flow: str, overrides: tuple[str, ...]) -> None:
    """Say for each path of a flow what is delivered, in which order, and where it may be lost or come twice."""
    from furcula import explain as explaining

    click.echo(str(explaining.explain(open_flow(flow, overrides))))
