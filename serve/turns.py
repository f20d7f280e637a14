"""A worker's requests take turns: between the steps of its work, each lets the others have theirs."""

import gevent
from gevent.event import Event

ABOVE_SOCKETS = 1  # whose priority is 0

_round: Event | None = None  # over once the event loop has looked at the sockets


def give_way() -> None:
    """Return once this worker's other requests that can go on have gone on, in the order in which they came.

    `gevent.sleep(0)` is not enough: as long as any request goes on without waiting, the event loop looks at the sockets
    once in fifty turns. An idle watcher makes it look every time; one that is not above the sockets' priority would be
    called only once they are all silent.
    """
    global _round
    if _round is not None:
        _round.wait()
        return
    _round = over = Event()
    try:
        gevent.idle(ABOVE_SOCKETS)
    finally:
        _round = None
        over.set()
