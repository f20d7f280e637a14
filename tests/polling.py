"""Wait for a condition, for example until a server has started or a container is healthy."""

import time
from collections.abc import Callable
from typing import Any

import requests

PATIENCE = 60  # seconds; even a busy machine needs only a fraction of this time


def wait(condition: Callable[[], Any], seconds: float, said: Callable[[], str]) -> Any:
    """Call `condition` until its value is true; return the value. After `seconds`, fail with the end of `said()`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"condition not true within {seconds} s: {said()[-3000:]}"
        time.sleep(0.05)
    return found


def answers(url: str | None, path: str = "/readyz") -> bool:
    try:
        return requests.get(f"{url}{path}", timeout=10).ok
    except (requests.ConnectionError, requests.Timeout):
        return False
