"""Cooperative scheduling: long computations yield to gevent's event loop, so that other requests are not starved."""

import gevent
from gevent.event import Event
from gevent.hub import Hub

ABOVE_SOCKETS = 1  # libev priority; sockets have 0, which is lower

_polls: dict[Hub, Event] = {}  # one event per hub (thread), set after the next poll of the sockets


def yield_to_event_loop() -> None:
    """Return after the event loop has polled the sockets. Waiting greenlets resume in the order in which they yielded.

    A request whose socket became ready resumes before this greenlet yields again. `gevent.sleep(0)` does not ensure
    that: while any greenlet is ready to run, the event loop polls the sockets only once per 50 iterations. An idle
    watcher makes it poll in every iteration. Its priority is above the sockets', or it waits until no socket is ready.
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
