"""Starting: an address that cannot be used, or a system without what the service needs, ends it with one line."""

import os
import socket
import subprocess
import sys

import pytest

from tests.polling import PATIENCE
from train.paths import ROOT

# As on Windows: a module that is None cannot be imported.
WITHOUT_FCNTL = "import runpy, sys; sys.modules['fcntl'] = None; runpy.run_module('serve', run_name='__main__')"


def refused(*options, **environment):
    """Return the one line that `python` with these options writes on standard error before it exits with status 1."""
    environ = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, *options]
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1, ended
    (line,) = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "host",
    ["x86_64-conda-linux-gnu.invalid", "a..b", "192.0.2.1"],
    ids=["conda's HOST", "no name", "another machine's"],
)
def test_a_host_that_is_not_this_machine_is_named(host):
    line = refused("-m", "serve", HOST=host, PORT="8000")
    assert line.startswith(f"serve: HOST: expected an address of this machine, found '{host}': ")
    assert line.endswith("; unset HOST, or set it to 127.0.0.1 or 0.0.0.0")


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("-m", "serve", PORT=str(port))
    assert line.startswith(f"serve: PORT: expected a port that is free and allowed, found {port}: ")


def test_a_system_without_fcntl_is_refused():
    assert "expected Linux or macOS" in refused("-c", WITHOUT_FCNTL)
