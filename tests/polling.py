"""Waiting for what comes in its own time: a server that starts, a container that turns healthy."""

import time
from collections.abc import Callable
from typing import Any

import requests

PATIENCE = 60  # seconds until what should come is given up: many times what it takes on a busy machine


def wait(condition: Callable[[], Any], seconds: float, said: Callable[[], str]) -> Any:
    """Return what `condition` does once that is true; fail with the end of what was `said` where it takes longer."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {said()[-3000:]}"
        time.sleep(0.05)
    return found


def answers(url: str | None) -> bool:
    """Return whether the service at `url` says that it is ready."""
    try:
        return requests.get(f"{url}/readyz", timeout=10).ok
    except (requests.ConnectionError, requests.Timeout):
        return False
