"""Cooperative scheduling. That it polls the sockets is tested in test_hostile.py, by pipelined requests."""

import gevent

from serve.server.event_loop import yield_to_event_loop
from tests.polling import PATIENCE


def test_a_greenlet_that_is_killed_while_it_waits_does_not_block_another():
    first, second = gevent.spawn(yield_to_event_loop), gevent.spawn(yield_to_event_loop)
    gevent.sleep(0)  # both wait now, the second for the first
    first.kill(block=False)
    second.get(timeout=PATIENCE)
