"""`furcula test`: run the cases beside a flow."""

from __future__ import annotations

from pathlib import Path

import click

from furcula.cli.command import FAILED, REFUSED, Command, ending
from furcula.cli.target import open_flow

__all__ = ["test"]


@click.command(cls=Command)
@click.argument("flow", metavar="FLOW")
@click.option("--cases", type=click.Path(exists=True, dir_okay=False), help="The cases, if not beside the flow.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Put a value over the file's.")
def test(flow: str, cases: str | None, overrides: tuple[str, ...]) -> None:
    """Run the cases in flow.test.yaml (or flow_test.yaml): inputs in, and what comes out compared.

    Exit code 0: all pass. 1: at least one fails. 2: the flow or its cases cannot be read.
    """
    from furcula.config.cases import case_file, read_cases, run_case

    found = open_flow(flow, overrides)
    file = Path(cases) if cases else case_file(flow)
    if file is None:
        stem = Path(flow).stem
        raise ending(
            f"there are no cases for {flow}: write them to {stem}.test.yaml, or name a file by --cases", REFUSED
        )
    failed = 0
    all_cases = read_cases(file, found)
    for case in all_cases:
        differences = run_case(found, case, file.parent)
        failed += bool(differences)
        click.echo(
            f"{'FAIL' if differences else 'pass'}  {case.name}" + (f"  ({case.location})" if differences else "")
        )
        for line in differences:
            click.echo(f"      {line}")
    click.echo(f"{len(all_cases) - failed} of {len(all_cases)} passed")
    if failed:
        raise ending("", FAILED)
