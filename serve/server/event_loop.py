"""Cooperative scheduling: long computations yield to gevent's event loop, so that it serves other requests, too."""

import gevent
from gevent.event import Event
from gevent.hub import Hub

ABOVE_SOCKETS = 1  # a priority of libev, gevent's event loop; sockets have priority 0, which is lower

_polls: dict[Hub, Event] = {}  # for the hub of each thread, an event that is set after the next poll of the sockets


def yield_to_event_loop() -> None:
    """Return after the event loop has polled the sockets. Waiting greenlets resume in the order in which they yielded.

    A greenlet whose socket is ready runs before the calling greenlet yields again. `gevent.sleep(0)` does not ensure
    this: while greenlets are ready to run, gevent runs at least 50 of them before it polls the sockets. gevent.idle()
    waits for the next poll. With the priority of sockets, it would wait until no socket is ready.
    """
    hub = gevent.get_hub()
    if hub in _polls:
        _polls[hub].wait()
        return
    _polls[hub] = polled = Event()
    try:
        gevent.idle(ABOVE_SOCKETS)
    finally:
        del _polls[hub]
        polled.set()
