"""What an unquoted word in a flow file means, and where YAML 1.1 would take it for something else.

Numbers, true, false and null are read as YAML 1.2 reads them. Words that YAML 1.1 turns into something their writer
rarely meant (`no` into false, `22:30` into 1350, `010` into 8, `2024-01-01` into a date) are marked as traps: the file
is refused with advice to quote them, so that nobody has to know which YAML the reader follows.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

__all__ = ["Scalar", "read_scalar"]


class Scalar(NamedTuple):
    """The value of an unquoted word.

    Attributes:
        value: The value.
        trap: Why it may not be what was meant, or empty. A trap with a boolean value is harmless where a boolean is
            expected; any other trap is always an error.
    """

    value: Any
    trap: str = ""


_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_OLD_BOOLEANS = {
    **{word: True for yes in ("yes", "on") for word in (yes, yes.capitalize(), yes.upper())},
    **{word: False for no in ("no", "off") for word in (no, no.capitalize(), no.upper())},
}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_BASED = re.compile(r"[-+]?0(?:x[0-9a-fA-F_]+|o[0-7_]+|b[01_]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?")


def read_scalar(text: str) -> Scalar:
    """The value of the unquoted word `text`."""
    if text in _WORDS:
        return Scalar(_WORDS[text])
    if text in _OLD_BOOLEANS:
        value = _OLD_BOOLEANS[text]
        return Scalar(value, f"YAML reads a bare {text} as {str(value).lower()}: write '{text}' in quotes")
    if text[0] not in "+-.0123456789":
        return Scalar(text)
    try:
        if _INT.fullmatch(text):
            return Scalar(int(text))
        if _BASED.fullmatch(text):
            return Scalar(int(text, 0))
        if _OCTAL.fullmatch(text):
            return Scalar(
                text,
                f"some readers take {text} for an octal number, others for {text.lstrip('0') or '0'}: "
                f"write '{text}' in quotes, or the number without the leading 0",
            )
        if _FLOAT.fullmatch(text):
            return Scalar(float(text))
    except ValueError:  # more digits than an int may have, or an underscore out of place: then it is only text
        return Scalar(text)
    if _BASE_60.fullmatch(text):
        return Scalar(text, f"YAML reads {text} as a number in base 60: write '{text}' in quotes")
    if _DATE.fullmatch(text):
        return Scalar(text, f"YAML reads {text} as a date: write '{text}' in quotes")
    return Scalar(text)
