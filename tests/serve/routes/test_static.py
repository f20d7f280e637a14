"""The page's files over HTTP: security headers, caching, and no other file."""

import pytest
import requests


def test_the_page_is_closed_to_other_hosts(service):
    headers = requests.get(f"{service.url}/").headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_the_page_s_files_are_answered_304_if_unchanged(service):
    first = requests.get(f"{service.url}/")
    again = requests.get(f"{service.url}/", headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


@pytest.mark.parametrize("path", ["/static/..%2fapp.py", "/static/../app.py", "/static/", "/static/none.js"])
def test_nothing_but_the_page_s_files_is_served(service, path):
    prepared = requests.Request("GET", service.url).prepare()
    prepared.url = service.url + path
    assert requests.Session().send(prepared).status_code == 404
