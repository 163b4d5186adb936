"""The stages of a flow in processes of one machine, joined by 0mq over ipc.

Each worker binds one socket; every other connects to it, and sends its events there directly. The near end keeps what
it has sent until the far end has reported what became of it, so the events' shares stay open, and what a dead worker
had is sent again to the one that takes its place.

Each cut to each worker is a *lane*: parcels with running numbers, accepted in that order, a few at a time before the
next has to wait. Lanes do not wait for each other, or two branches that meet again behind a cut could block each other.
A worker that starts draws a *session*; a lane that hears of a new one sends again, in order, what is not reported.

Where a worker is replaced, the old one and the new one run side by side for a while, and only one of them has the
place. So each also binds a socket of its very own, its *home*: what is an answer goes there, to the process that has
who asked.
"""

from furcula.workers.lines.joints import Lines

__all__ = ["Lines"]
