"""Greenlets that yield to the event loop go on in order; threads, where a service has them, have loops of their own."""

from concurrent.futures import ThreadPoolExecutor

import gevent

from serve.event_loop import yield_to_event_loop
from tests.polling import PATIENCE


def test_those_who_give_way_go_on_in_their_order():
    steps = []

    def work(name):
        for number in range(3):
            yield_to_event_loop()
            steps.append((number, name))

    gevent.joinall([gevent.spawn(work, name) for name in "abc"], raise_error=True)
    assert steps == [(number, name) for number in range(3) for name in "abc"]


def test_one_that_is_stopped_while_it_waits_holds_up_no_other():
    first, second = gevent.spawn(yield_to_event_loop), gevent.spawn(yield_to_event_loop)
    gevent.sleep(0)  # both have begun to wait, the second for the first
    first.kill(block=False)
    second.get(timeout=PATIENCE)


def test_threads_have_event_loops_of_their_own():
    with ThreadPoolExecutor(4) as pool:
        for turn in [pool.submit(lambda: [yield_to_event_loop() for _ in range(50)]) for _ in range(4)]:
            turn.result(timeout=PATIENCE)
