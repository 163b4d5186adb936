"""Syslog messages as data: RFC 5424, RFC 3164, and what is really sent.

RFC 5424 is a format. RFC 3164 is a description of what was found in the wild, and the wild has gone on: the time may be
missing, or be in ISO form; the host may be missing; Python's SysLogHandler sends a priority, the text and a NUL. So
only a priority is asked for. What stands behind it is taken apart as far as its form is clear, and the rest of it is
the message: nothing is thrown away, and nothing is guessed from words alone.
"""

from __future__ import annotations

import datetime
import functools
import re
from typing import Any

from furcula.errors import InputError

__all__ = ["FACILITIES", "SEVERITIES", "parse"]

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip

_PRIORITY = re.compile(r"<(0|[1-9][0-9]{0,2})>")
_ISO = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
_RFC5424 = re.compile(rf"1 (-|{_ISO}) (\S+) (\S+) (\S+) (\S+) (?=[-\[])")
_ELEMENT = re.compile(r'\[([^\s=\]"]+)((?: +[^\s=\]"]+="(?:[^"\\\]]|\\.)*")*) *\]', re.DOTALL)
_PARAMETER = re.compile(r' +([^\s=\]"]+)="((?:[^"\\\]]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\\]])')

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CLOCK = r"([0-2][0-9]):([0-5][0-9]):([0-5][0-9])(\.[0-9]{1,6})?"
_RFC3164_TIME = re.compile(rf"({'|'.join(_MONTHS)}) ([ 0-3]?[0-9])(?: ([0-9]{{4}}))? {_CLOCK}(?: |$)")
_ISO_TIME = re.compile(rf"({_ISO})(?: |$)")
_TAG = re.compile(r"([^\s:\[\]]{1,64})(?:\[([^\]\s]{0,64})\])?:(?: |$)")
_TAG_WITH_PID = re.compile(r"([^\s:\[\]]{1,64})\[([^\]\s]{1,64})\]:(?: |$)")
_BOM = "\ufeff"


def parse(raw: bytes, today: datetime.date | None = None) -> dict[str, Any]:
    """What a syslog message says.

    Args:
        raw: One message, without its framing.
        today: RFC 3164 leaves the year out; it is the one that brings the message nearest to this day.

    Returns:
        `facility` and `severity` by name, `priority` as the number, `timestamp` in ISO 8601 as sent (without a zone
        where RFC 3164 names none), `host`, `app`, `pid`, `msgid`, `structured` as `{id: {name: value}}`, a list of
        values where a name comes twice, and `message`. What is not said is None.

    Raises:
        InputError: It is not UTF-8, has no valid priority, or is RFC 5424 with malformed structured data.
    """
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8") from None
    text = text.rstrip("\x00\r\n")
    found = _PRIORITY.match(text)
    if found is None:
        raise InputError("no priority (<0> to <191>) at the beginning")
    priority = int(found[1])
    if priority > 191:
        raise InputError(f"the priority <{priority}> is above <191>")
    data: dict[str, Any] = {
        "facility": FACILITIES[priority >> 3],
        "severity": SEVERITIES[priority & 7],
        "priority": priority,
        "timestamp": None,
        "host": None,
        "app": None,
        "pid": None,
        "msgid": None,
        "structured": {},
        "message": "",
    }
    start = found.end()
    header = _RFC5424.match(text, start)
    if header is None:
        _old(data, text[start:], today)
    else:
        _new(data, header, text)
    return data


def _new(data: dict[str, Any], header: re.Match[str], text: str) -> None:
    for name, value in zip(("timestamp", "host", "app", "pid", "msgid"), header.groups(), strict=True):
        data[name] = None if value == "-" else value
    if data["timestamp"] is not None:
        _check_date(data["timestamp"])
    at = header.end()
    if text[at] == "-":
        at += 1
    else:
        at = _structured(data["structured"], text, at)
    if at < len(text) and text[at] != " ":
        raise InputError("the structured data is malformed")
    data["message"] = text[at + 1 :].removeprefix(_BOM)


def _structured(found: dict[str, dict[str, Any]], text: str, at: int) -> int:
    """Read the elements of structured data that begin at `at` into `found`. Returns where they end."""
    while at < len(text) and text[at] == "[":
        element = _ELEMENT.match(text, at)
        if element is None:
            raise InputError("the structured data is malformed")
        parameters = found.setdefault(element[1], {})
        for name, value in _PARAMETER.findall(element[2]):
            if "\\" in value:
                value = _ESCAPED.sub(r"\1", value)
            existing = parameters.get(name)
            if existing is None:
                parameters[name] = value
            elif isinstance(existing, list):
                existing.append(value)
            else:
                parameters[name] = [existing, value]
        at = element.end()
    return at


def _old(data: dict[str, Any], text: str, today: datetime.date | None) -> None:
    text = text.removeprefix(_BOM)
    at = 0
    if time := _RFC3164_TIME.match(text):
        data["timestamp"] = _dated(time.groups(), today or datetime.date.today())
    elif (time := _ISO_TIME.match(text)) is not None:
        _check_date(time[1])
        data["timestamp"] = time[1]
    if data["timestamp"] is None:
        # Without a time there is no header; only the unmistakable `name[pid]:` is taken for a tag.
        tag = _TAG_WITH_PID.match(text)
    else:
        assert time is not None
        at = time.end()
        tag = _TAG.match(text, at)
        if tag is None:  # a host stands first, as RFC 3164 has it; `logger` leaves it out on its own machine
            host, _, _ = text[at:].partition(" ")
            data["host"] = host or None
            at = min(len(text), at + len(host) + 1)
            tag = _TAG.match(text, at)
    if tag is not None:
        data["app"], data["pid"] = tag[1], tag[2] or None
        at = tag.end()
    data["message"] = text[at:].removeprefix(_BOM)


def _check_date(text: str) -> None:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"the timestamp {text} is no date") from None


# Messages come many in a second, and a date takes longer to make than all the rest of a message.
@functools.lru_cache(maxsize=1024)
def _dated(parts: tuple[str | None, ...], today: datetime.date) -> str | None:
    """The ISO form of an RFC 3164 time, in the year that brings it nearest to today; None if it is no date."""
    month, day, year, hour, minute, second, fraction = (part or "" for part in parts)
    microsecond = int(fraction[1:].ljust(6, "0"))
    nearest: datetime.datetime | None = None
    for candidate in (int(year),) if year else (today.year - 1, today.year, today.year + 1):
        try:
            found = datetime.datetime(
                candidate, _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), microsecond
            )
        except ValueError:  # the 29th of February of another year
            continue
        if nearest is None or abs(found.date() - today) < abs(nearest.date() - today):
            nearest = found
    return nearest.isoformat() if nearest is not None else None
