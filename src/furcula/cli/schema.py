"""`furcula schema`: the JSON Schema of flow files."""

from __future__ import annotations

import click

from furcula.cli.command import Command

__all__ = ["schema"]


@click.command(cls=Command)
def schema() -> None:
    """Print the JSON Schema of flow files, with the kinds installed here, for editors.

    Save it and begin a flow file with: # yaml-language-server: $schema=flow.schema.json
    """
    import json

    from furcula import config

    click.echo(json.dumps(config.schema(), indent=2))
