"""A worker's requests take turns: between the steps of its work, each lets the others have theirs."""

import gevent
from gevent.event import Event
from gevent.hub import Hub

ABOVE_SOCKETS = 1  # whose priority is 0

_rounds: dict[Hub, Event] = {}  # by the event loop, which is a thread's own: over once it has looked at the sockets


def give_way() -> None:
    """Return once the event loop has looked at the sockets; those who have given way go on in the order they did.

    A request whose socket is ready by then goes on before this one gives way again. `gevent.sleep(0)` is not enough:
    as long as any request goes on without waiting, the event loop looks at the sockets once in fifty turns. An idle
    watcher makes it look every time; one that is not above the sockets' priority would be called only once they are
    all silent.
    """
    hub = gevent.get_hub()
    if hub in _rounds:
        _rounds[hub].wait()
        return
    _rounds[hub] = over = Event()
    try:
        gevent.idle(ABOVE_SOCKETS)
    finally:
        del _rounds[hub]
        over.set()
