"""Cooperative scheduling: greenlets that yield resume in the order in which they yielded."""

import gevent

from serve.server.event_loop import yield_to_event_loop
from tests.polling import PATIENCE


def test_two_greenlets_alternate():
    steps = []

    def work(name):
        for step in range(3):
            steps.append((step, name))
            yield_to_event_loop()

    gevent.joinall([gevent.spawn(work, name) for name in "ab"], raise_error=True)
    assert steps == [(step, name) for step in range(3) for name in "ab"]


def test_a_greenlet_that_is_killed_while_it_waits_does_not_block_another():
    first, second = gevent.spawn(yield_to_event_loop), gevent.spawn(yield_to_event_loop)
    gevent.sleep(0)  # both wait now, the second for the first
    first.kill(block=False)
    second.get(timeout=PATIENCE)
