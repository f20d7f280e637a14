"""Requests of a worker give way to one another, in order; threads, where a service has them, do not meet."""

from concurrent.futures import ThreadPoolExecutor

import gevent

from serve.turns import give_way
from tests.polling import PATIENCE


def test_those_who_give_way_go_on_in_their_order():
    steps = []

    def work(name):
        for number in range(3):
            give_way()
            steps.append((number, name))

    gevent.joinall([gevent.spawn(work, name) for name in "abc"], raise_error=True)
    assert steps == [(number, name) for number in range(3) for name in "abc"]


def test_one_that_is_stopped_while_it_waits_holds_up_no_other():
    first, second = gevent.spawn(give_way), gevent.spawn(give_way)
    gevent.sleep(0)  # both have begun to wait, the second for the first
    first.kill(block=False)
    second.get(timeout=PATIENCE)


def test_threads_have_turns_of_their_own():
    with ThreadPoolExecutor(4) as pool:
        for turn in [pool.submit(lambda: [give_way() for _ in range(50)]) for _ in range(4)]:
            turn.result(timeout=PATIENCE)
