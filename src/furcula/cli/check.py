"""`furcula check`: is the flow as written one that can run?"""

from __future__ import annotations

import click

from furcula.cli.command import REFUSED, Command, ending, say
from furcula.cli.target import open_flow
from furcula.errors import ConfigurationError

__all__ = ["check"]


@click.command(cls=Command)
@click.argument("flows", metavar="FLOW...", nargs=-1, required=True)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Put a value over the file's.")
def check(flows: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check flows without running anything. All problems are printed, each with its place.

    Exit code 0: every flow may run (warnings go to stderr). 2: at least one may not.
    """
    refused = False
    for target in flows:
        try:
            flow = open_flow(target, overrides)
        except ConfigurationError as error:
            refused = True
            click.echo(str(error))
            continue
        for warning in flow.warnings():
            say(f"warning: {warning}")
        click.echo(f"{target}: ok ({_count(flow.places, 'module')}, {_count(flow.routes, 'route')})")
    if refused:
        raise ending("", REFUSED)


def _count(things: object, noun: str) -> str:
    number = len(things)  # type: ignore[arg-type]
    return f"{number} {noun}{'' if number == 1 else 's'}"
