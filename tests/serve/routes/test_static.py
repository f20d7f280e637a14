"""The page's files over HTTP: security headers, caching, and no other file."""


def test_the_page_is_closed_to_other_hosts_and_answered_304_if_unchanged(client):
    first = client.get("/")
    assert first.status_code == 200
    assert "default-src 'none'" in first.headers["Content-Security-Policy"]
    assert "unsafe" not in first.headers["Content-Security-Policy"]
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    assert first.headers["Referrer-Policy"] == "no-referrer"
    again = client.get("/", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_nothing_but_the_page_s_files_is_served(client):
    for path in ("/static/..%2fapp.py", "/static/../app.py", "/static/", "/static/none.js"):
        assert client.get(path).status_code == 404
