"""Documents that mean harm: they grow when read, or have something fetched. For the tests of every entrance for XML."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HOSTILE", "SECRET", "hostile"]

#: What stands in the file that they would like to read.
SECRET = "the-secret-of-this-house"

_LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))

#: name -> the document; `{file}` and `{url}` are what it is after.
_DOCUMENTS = {
    "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "lol">{_LAUGHS}]><a>&l9;</a>',
    "billion laughs in an attribute": f'<!DOCTYPE a [<!ENTITY l0 "lol">{_LAUGHS}]><a b="&l9;"/>',
    "quadratic blow-up": f'<!DOCTYPE a [<!ENTITY x "{"x" * 50_000}">]><a>{"&x;" * 50_000}</a>',
    "entity of a file": '<!DOCTYPE a [<!ENTITY x SYSTEM "file://{file}">]><a>&x;</a>',
    "entity of a server": '<!DOCTYPE a [<!ENTITY x SYSTEM "{url}/entity">]><a>&x;</a>',
    "parameter entity of a file": '<!DOCTYPE a [<!ENTITY % x SYSTEM "file://{file}">%x;]><a/>',
    "parameter entity of a server": '<!DOCTYPE a [<!ENTITY % x SYSTEM "{url}/parameter">%x;]><a/>',
    "type in a file": '<!DOCTYPE a SYSTEM "file://{file}"><a/>',
    "type on a server": '<!DOCTYPE a SYSTEM "{url}/type"><a/>',
    "type with a public name": '<!DOCTYPE a PUBLIC "-//X//Y" "{url}/public"><a/>',
    "default attribute": '<!DOCTYPE a [<!ATTLIST a b CDATA "given">]><a/>',
}
HOSTILE = tuple(_DOCUMENTS)


def hostile(name: str, folder: Path, url: str = "http://127.0.0.1:9") -> bytes:
    """The document of that name, after a file in `folder` (which is written) or after `url`."""
    secret = folder / "secret"
    secret.write_text(SECRET)
    return _DOCUMENTS[name].replace("{file}", str(secret)).replace("{url}", url).encode()
