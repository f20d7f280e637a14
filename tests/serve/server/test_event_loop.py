"""Cooperative scheduling: greenlets that yield resume in the order in which they yielded."""

import gevent
import numpy as np

from serve.server.event_loop import chunks, yield_to_event_loop
from tests.polling import PATIENCE


def test_chunks_of_two_greenlets_alternate():
    steps = []

    def work(name):
        for start, part in chunks(np.arange(7), 3):
            steps.append((start, name, part.tolist()))

    gevent.joinall([gevent.spawn(work, name) for name in "ab"], raise_error=True)
    parts = [(0, [0, 1, 2]), (3, [3, 4, 5]), (6, [6])]
    assert steps == [(start, name, part) for start, part in parts for name in "ab"]


def test_a_greenlet_that_is_killed_while_it_waits_does_not_block_another():
    first, second = gevent.spawn(yield_to_event_loop), gevent.spawn(yield_to_event_loop)
    gevent.sleep(0)  # both wait now, the second for the first
    first.kill(block=False)
    second.get(timeout=PATIENCE)
