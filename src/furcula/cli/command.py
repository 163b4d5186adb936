"""What all commands share: how they log, and how they tell a mistake without a traceback."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from typing import Any, TextIO

import click

from furcula.correlation import Correlation
from furcula.errors import ConfigurationError, FurculaError, ModuleError

__all__ = ["FAILED", "INTERRUPTED", "REFUSED", "Command", "ending", "say"]

#: Exit codes. They are part of the interface: scripts rely on them.
FAILED, REFUSED, INTERRUPTED = 1, 2, 130

_LEVELS = ("debug", "info", "warning", "error")


def say(text: str) -> None:
    """Print to stderr, where everything goes that is not the product of a command.

    What was done is done, also if nobody can be told.
    """
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def ending(message: str, exit_code: int) -> click.exceptions.Exit:
    """Say `message` (which may be empty); what is returned, raised, ends the command with `exit_code`."""
    if message:
        say(message)
    return click.exceptions.Exit(exit_code)


class Command(click.Command):
    """A command with `--log-level` and `--traceback`, whose errors are told in a line or two."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        levels = click.Choice(_LEVELS, case_sensitive=False)
        self.params += [
            click.Option(["--log-level"], type=levels, default="info", help="What to log on stderr."),
            click.Option(["-v", "--traceback"], is_flag=True, help="Show the traceback of an error."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        with_traceback = ctx.params.pop("traceback")
        _log_to_stderr(ctx.params.pop("log_level"))
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise ending("", INTERRUPTED) from None
        except Exception as error:
            if with_traceback:
                say("".join(traceback.format_exception(error)).rstrip())
            raise _told(error) from None


def _told(error: Exception) -> click.exceptions.Exit:
    if isinstance(error, ConfigurationError):
        return ending(str(error), REFUSED)
    text = str(error) if isinstance(error, FurculaError) else f"{type(error).__name__}: {error}"
    return ending(text if _says_all(error) else f"{text}\n--traceback shows where it was raised", FAILED)


def _says_all(error: BaseException) -> bool:
    """Is there nothing more to learn from its traceback?

    An error of ours says what is wrong and what to do. What a module raised, and we only pass on, is anybody's.
    """
    if isinstance(error, ModuleError) and error.__cause__ is not None:
        return _says_all(error.__cause__)
    return isinstance(error, FurculaError)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at the time: the live table puts itself there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


class _Line(logging.Formatter):
    """`12:30:01 WARNING orders/price: … [request 7]`: flow, module and request where the record has them."""

    def format(self, record: logging.LogRecord) -> str:
        flow, place = getattr(record, "flow", ""), getattr(record, "furcula_module", "")
        where = "/".join(part for part in (flow, place) if part) or record.name
        time = self.formatTime(record, "%H:%M:%S")
        text = f"{time} {record.levelname} {where}: {record.getMessage()}{getattr(record, 'request', '')}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _log_to_stderr(level: str) -> None:
    logger = logging.getLogger("furcula")
    logger.setLevel(level.upper())
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(_Line())
        handler.addFilter(Correlation())
        logger.addHandler(handler)
        logger.propagate = False
