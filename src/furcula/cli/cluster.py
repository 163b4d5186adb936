"""`furcula cluster`: see and steer a flow whose workers are joined by a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from furcula.cli.command import FAILED, REFUSED, Command, ending, say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from furcula.cluster.client import Access
    from furcula.cluster.operating import DeadLetter, Operator, Status
    from furcula.store import Letter

__all__ = ["access_options", "access_to", "cluster", "reached"]

#: Seconds after which it is said that the server does not answer.
WAITS_S = 1.0

_FLOW = click.argument("flow", metavar="FLOW")
_HELD = "Sources admit nothing until `furcula cluster resume {flow}`."
_STAGE = click.argument("stage", required=False, metavar="[STAGE]")


def access_options(command: Any) -> Any:
    """Where the cluster is, and who we are."""
    for option in reversed(
        (
            click.option(
                "--cluster",
                "url",
                envvar="FURCULA_CLUSTER",
                metavar="URL",
                help="nats://host:port[,...], or embedded. Default: $FURCULA_CLUSTER.",
            ),
            click.option("--credentials", envvar="FURCULA_CREDENTIALS", metavar="FILE", help="A .creds file."),
            click.option("--tls-ca", metavar="FILE", help="Certificates to trust."),
            click.option("--tls-cert", metavar="FILE", help="Our own certificate."),
            click.option("--tls-key", metavar="FILE", help="Its key."),
            click.option(
                "--data",
                envvar="FURCULA_DATA",
                default=".furcula",
                show_default=True,
                metavar="FOLDER",
                help="Where an embedded cluster keeps its data.",
            ),
        )
    ):
        command = option(command)
    return command


def access_to(settings: dict[str, Any]) -> Access:
    """What `access_options` were given, taken out of `settings`. An embedded cluster must be running."""
    from pathlib import Path

    from furcula.cluster.client import Access
    from furcula.cluster.embedded import Embedded

    url, data = settings.pop("url"), settings.pop("data")
    rest = {name: settings.pop(name) for name in ("credentials", "tls_ca", "tls_cert", "tls_key")}
    if not url:
        raise ending("say where the cluster is: --cluster nats://host:port, or $FURCULA_CLUSTER", REFUSED)
    if url == "embedded":
        return Embedded(Path(data)).running()
    return Access(url, **rest)


@contextmanager
def reached(settings: dict[str, Any]) -> Iterator[Access]:
    """The cluster that `access_options` name; an embedded one is started, and ended with the block."""
    from pathlib import Path

    if settings["url"] != "embedded":
        yield access_to(dict(settings))
        return
    from furcula.cluster.embedded import Embedded

    server = Embedded(Path(settings["data"]).absolute())
    server.start()
    try:
        say(f"an embedded cluster runs on 127.0.0.1:{server.port}, with its data in {settings['data']}")
        yield server.access
    finally:
        server.stop()


@click.group()
def cluster() -> None:
    """See and steer a flow whose stages are joined by a cluster (`furcula run --cluster`)."""


def _operate(flow: str, settings: dict[str, Any], work: Callable[[Operator], Awaitable[Any]]) -> Any:
    import asyncio

    from furcula.cli.target import open_flow
    from furcula.cluster.operating import operating

    found = open_flow(flow, ())
    access = access_to(settings)

    async def tell() -> None:
        await asyncio.sleep(WAITS_S)
        say(f"waiting for {access.shown}")

    async def within() -> Any:
        telling = asyncio.create_task(tell())
        try:
            async with operating(found, access) as operator:
                telling.cancel()
                return await work(operator)
        finally:
            telling.cancel()

    return asyncio.run(within())


@cluster.command(cls=Command)
@_FLOW
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "prometheus"]),
    default="table",
    help="prometheus: the text that a scraper takes.",
)
@access_options
def status(flow: str, form: str, **settings: Any) -> None:
    """Stages, workers, lag, redeliveries, rates.

    Lag is in messages, of many events each: those that wait, and those that workers have in hand.
    """
    import msgspec

    found: Status = _operate(flow, settings, lambda operator: operator.status())
    if form == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    elif form == "prometheus":
        click.echo(_prometheus(found), nl=False)
    else:
        _table(found)


def _table(status: Status) -> None:
    import time

    held = " (draining: sources admit nothing)" if status.draining else ""
    click.echo(f"{status.flow} on {status.cluster}{held}")
    for stage in status.stages:
        lag = ", ".join(f"{module} {count}" for module, count in stage.lag.items()) or "nothing is sent to it"
        paused = ", PAUSED" if stage.paused else ""
        click.echo(
            f"{stage.name}: {len(stage.workers)} worker(s){paused}; lag: {lag}; in hand {stage.in_hand}, "
            f"redelivered {stage.redelivered}; {stage.rate:,.0f} events/s"
        )
        for worker in stage.workers:
            has = ", ".join(f"{module} {count}" for module, count in worker.has.items()) or "no partition"
            runs = f"; runs {', '.join(worker.runs)}" if worker.runs else ""
            version = f" {worker.version}" if worker.version else ""
            up = time.strftime("%H:%M:%S", time.gmtime(max(0, time.time() - worker.since)))
            click.echo(
                f"  {worker.id}  {worker.host}:{worker.pid}{version}  {worker.state} for {up}  {has}{runs}  "
                f"{worker.open} open"
            )
    if status.dead_letters:
        click.echo(f"{status.dead_letters} dead letter(s): furcula cluster dlq list")


def _prometheus(status: Status) -> str:
    """https://prometheus.io/docs/instrumenting/exposition_formats/"""
    lines: list[str] = []

    def family(name: str, text: str, values: list[tuple[dict[str, str], float]]) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} gauge"))
        for labels, value in values:
            said = ",".join(f'{key}="{_escaped(one)}"' for key, one in {"flow": status.flow, **labels}.items())
            lines.append(f"{name}{{{said}}} {value:g}")

    stages = status.stages
    lags = [({"stage": s.name, "module": m}, float(count)) for s in stages for m, count in s.lag.items()]
    family("furcula_stage_lag_messages", "Messages that wait for a module or are in hand.", lags)
    family("furcula_stage_workers", "Workers of a stage.", [({"stage": s.name}, len(s.workers)) for s in stages])
    in_hand = [({"stage": s.name}, float(s.in_hand)) for s in stages]
    family("furcula_stage_in_hand_messages", "Messages that workers have not acknowledged.", in_hand)
    redelivered = [({"stage": s.name}, float(s.redelivered)) for s in stages]
    family("furcula_stage_redelivered_messages", "Messages in hand that were handed out before.", redelivered)
    family("furcula_stage_events_per_second", "Events taken.", [({"stage": s.name}, s.rate) for s in stages])
    family("furcula_dead_letters", "Dead letters.", [({}, float(status.dead_letters))])
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@cluster.command(cls=Command)
@_FLOW
@access_options
def plan(flow: str, **settings: Any) -> None:
    """Say what `apply` would make or change."""
    changes = _operate(flow, settings, lambda operator: operator.changes())
    for change in changes:
        click.echo(change)
    if not changes:
        say("all is as the flow says")


@cluster.command(cls=Command)
@_FLOW
@access_options
def apply(flow: str, **settings: Any) -> None:
    """Set up the streams as the flow says. Workers make what is missing by themselves, and change nothing."""
    for change in _operate(flow, settings, lambda operator: operator.apply()):
        click.echo(change)


@cluster.command(cls=Command)
@_FLOW
@click.option("--within", default=None, metavar="DURATION", help="Wait no longer than this; exit code 1 then.")
@access_options
def drain(flow: str, within: str | None, **settings: Any) -> None:
    """Let all sources admit nothing, and wait until no stage has anything left. `resume` lets them go on."""
    from furcula.options import Duration

    try:
        limit = None if within is None else float(Duration(within))
    except ValueError as error:
        raise ending(f"--within: {error}", REFUSED) from None
    try:
        left = _operate(flow, settings, lambda operator: operator.drain(limit))
    except KeyboardInterrupt:
        say(_HELD.format(flow=flow))
        raise
    if left:
        raise ending(
            f"{left} left: messages that wait, or events in hand of a worker. {_HELD.format(flow=flow)}", FAILED
        )
    say("drained: nothing waits, and nothing is in hand")


@cluster.command(cls=Command)
@_FLOW
@_STAGE
@access_options
def pause(flow: str, stage: str | None, **settings: Any) -> None:
    """Let the workers of a stage (default: of all) take and admit nothing more, those too that start later."""
    _operate(flow, settings, lambda operator: operator.pause(stage))


@cluster.command(cls=Command)
@_FLOW
@_STAGE
@access_options
def resume(flow: str, stage: str | None, **settings: Any) -> None:
    """Let a stage (default: all) go on."""
    _operate(flow, settings, lambda operator: operator.resume(stage))


# ------------------------------------------------------------------ dead letters


@cluster.group()
def dlq() -> None:
    """Look at the cluster's dead letters, try them again, or throw them away."""


_NUMBERS = click.argument("numbers", nargs=-1, type=int, metavar="[ID]...")
_ALL = click.option("--all", "everything", is_flag=True, help="All of them.")


def _numbered(found: DeadLetter) -> Letter:
    import msgspec

    return msgspec.structs.replace(found.letter, id=found.number)


@dlq.command("list", cls=Command)
@_FLOW
@click.option("--most", default=100, show_default=True, help="So many at most.")
@access_options
def list_letters(flow: str, most: int, **settings: Any) -> None:
    """List them, oldest first."""
    from furcula.cli.dlq import line_of

    async def some(operator: Operator) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        async for one in operator.letters():
            found.append(one)
            if len(found) > most:
                break
        return found

    letters: list[DeadLetter] = _operate(flow, settings, some)
    for one in letters[:most]:
        click.echo(line_of(_numbered(one)))
    if not letters:
        say("there are no dead letters")
    elif len(letters) > most:
        say(f"... and more; --most {most * 10} shows them")


@dlq.command(cls=Command)
@_FLOW
@click.argument("number", type=int, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@access_options
def show(flow: str, number: int, as_json: bool, **settings: Any) -> None:
    """Show one: the event, its error, path and attempts."""
    from furcula.cli.dlq import show_letter

    found = _operate(flow, settings, lambda operator: operator.letter(number))
    if found is None:
        raise ending(f"there is no dead letter {number}", FAILED)
    show_letter(_numbered(found), as_json=as_json)


@dlq.command(cls=Command)
@_FLOW
@_NUMBERS
@_ALL
@access_options
def replay(flow: str, numbers: tuple[int, ...], everything: bool, **settings: Any) -> None:
    """Send their events once more to the module that they failed on the way to, and remove the letters."""
    _said(
        _operate(flow, settings, lambda operator: _each(operator, numbers, everything, operator.replay)), "sent again"
    )


@dlq.command(cls=Command)
@_FLOW
@_NUMBERS
@_ALL
@click.option("--yes", is_flag=True, help="Do not ask.")
@access_options
def discard(flow: str, numbers: tuple[int, ...], everything: bool, yes: bool, **settings: Any) -> None:
    """Throw them away, for good."""
    if everything and not yes:
        click.confirm("Throw away all dead letters?", abort=True, err=True)
    _said(_operate(flow, settings, lambda operator: _each(operator, numbers, everything, operator.drop)), "thrown away")


async def _each(
    operator: Operator, numbers: tuple[int, ...], everything: bool, work: Callable[[int], Awaitable[None]]
) -> tuple[int, list[str]]:
    """Do it to each; one that fails does not keep the others from it. Returns how many, and what failed."""
    from furcula.errors import FurculaError

    if everything == bool(numbers):
        raise ending("give the ids of letters, or --all", REFUSED)
    wanted = list(numbers) or [one.number async for one in operator.letters()]
    failed = []
    for number in wanted:
        try:
            await work(number)
        except FurculaError as error:
            failed.append(str(error))
    return len(wanted) - len(failed), failed


def _said(done: tuple[int, list[str]], what: str) -> None:
    count, failed = done
    for one in failed:
        say(one)
    say(f"{count} {what}")
    if failed:
        raise ending(f"{len(failed)} failed, and stay where they are", FAILED)
