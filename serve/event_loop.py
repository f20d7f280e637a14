"""Yield to gevent's event loop between the parts of a long computation, so that a worker's other requests go on."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.hub import Hub

if TYPE_CHECKING:
    from numpy.typing import NDArray

BELOW_SOCKETS = 1  # a priority of libev; sockets have 0, the higher one

_rounds: dict[Hub, Event] = {}  # by hub (one a thread): set once its event loop has polled the sockets


def yield_to_event_loop() -> None:
    """Return once the event loop has polled the sockets; greenlets that have yielded go on in the order they did.

    A request whose socket is ready by then goes on before this one yields again. `gevent.sleep(0)` is not enough: as
    long as any greenlet is ready to run, the event loop polls the sockets once in fifty iterations. An idle watcher
    makes it poll in every iteration; with the sockets' priority it would be called only once they are all silent.
    """
    hub = gevent.get_hub()
    if hub in _rounds:
        _rounds[hub].wait()
        return
    _rounds[hub] = over = Event()
    try:
        gevent.idle(BELOW_SOCKETS)
    finally:
        del _rounds[hub]
        over.set()


def chunks(images: "NDArray[Any]", size: int) -> "Iterator[tuple[int, NDArray[Any]]]":
    """Yield `images` [N, …] in slices of at most `size`, each with its start; yield to the event loop between them."""
    for start in range(0, len(images), size):
        if start:
            yield_to_event_loop()
        yield start, images[start : start + size]
