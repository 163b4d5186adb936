"""Data as frames, each by itself: one that cannot be written fails alone."""

from __future__ import annotations

from typing import Any

from furcula.codecs import Codec, Framing

__all__ = ["encode_each"]


def encode_each(datas: list[Any], codec: Codec, framing: Framing) -> tuple[list[bytes], dict[int, BaseException]]:
    """The frames of those `datas` that can be written, and an error by index for each that cannot."""
    encode, frame = codec.encode, framing.frame
    try:
        return [frame(encode(data)) for data in datas], {}
    except ValueError:
        pass  # rare enough to do it again with a look at each
    frames: list[bytes] = []
    errors: dict[int, BaseException] = {}
    for index, data in enumerate(datas):
        try:
            frames.append(frame(encode(data)))
        except ValueError as error:
            errors[index] = error
    return frames, errors
