"""Bytes to data and back: what one value looks like (`codec`), where it ends (`framing`), both at once (`reader`).

`batch` is the form in which whole batches of events cross a wire or wait on a disk.
"""

from furcula.codecs.batch import MAX_BATCH, decode_each, decode_events, encode_each, encode_events, split_events
from furcula.codecs.codec import CODECS, MAX_DEPTH, Codec, codec
from furcula.codecs.framing import BadFrame, Framer, Framing
from furcula.codecs.reader import Reader

__all__ = [
    "CODECS",
    "MAX_BATCH",
    "MAX_DEPTH",
    "BadFrame",
    "Codec",
    "Framer",
    "Framing",
    "Reader",
    "codec",
    "decode_each",
    "decode_events",
    "encode_each",
    "encode_events",
    "split_events",
]
