"""`furcula`: the commands. Every file here imports click alone at its top; what a command needs, it imports itself."""

from __future__ import annotations

import click

from furcula.cli.check import check
from furcula.cli.cluster import cluster
from furcula.cli.dlq import dlq
from furcula.cli.explain import explain
from furcula.cli.graph import graph
from furcula.cli.kinds import list_kinds, show
from furcula.cli.new import new
from furcula.cli.profiles import profiles
from furcula.cli.run import run
from furcula.cli.schema import schema
from furcula.cli.stop import stop
from furcula.cli.streams import secure_streams
from furcula.cli.test import test

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="furcula", message="furcula %(version)s")
def main() -> None:
    """Asynchronous event pipelines: small modules joined into flows.

    FLOW is a flow file (flow.yaml) or a flow in Python (package.module:flow).
    """
    secure_streams()


for _command in (run, stop, check, explain, graph, list_kinds, show, schema, test, new):
    main.add_command(_command)
main.add_command(cluster)
main.add_command(dlq)
main.add_command(profiles)
