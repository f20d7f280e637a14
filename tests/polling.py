"""Wait for a condition: a server that starts, a container that becomes healthy."""

import time
from collections.abc import Callable
from typing import Any

import requests

PATIENCE = 60  # seconds; many times what a busy machine needs


def wait(condition: Callable[[], Any], seconds: float, said: Callable[[], str]) -> Any:
    """Call `condition` until it returns a true value, and return it; after `seconds`, fail with the end of `said()`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {said()[-3000:]}"
        time.sleep(0.05)
    return found


def answers(url: str | None, path: str = "/readyz") -> bool:
    try:
        return requests.get(f"{url}{path}", timeout=10).ok
    except (requests.ConnectionError, requests.Timeout):
        return False
