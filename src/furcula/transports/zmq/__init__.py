"""0mq: a small hub that whoever comes first holds, and its clients. See `hub.py` for what it does, `holder.py` for who
holds it.

Native PUB and SUB are not used: they have no way to wait for a subscriber, to tell when a subscription is effective,
to count what was lost, or to give a late one the last value. A hub on a ROUTER socket can do all four, and its one hop
more is paid once a batch.
"""

from __future__ import annotations

from furcula.errors import MissingExtra

try:
    import zmq as _  # noqa: F401
except ImportError:
    raise MissingExtra("the transport over 0mq", "zmq") from None

from furcula.transports.zmq.keys import Keys
from furcula.transports.zmq.transport import ZmqTransport

__all__ = ["Keys", "ZmqTransport"]
