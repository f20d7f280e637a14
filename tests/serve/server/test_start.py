"""Starting: an address that cannot be used, or a system without what the service needs, ends it with one line."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from tests.polling import PATIENCE
from tests.serve.conftest import free_port
from tests.serve.releases import put_graph
from train.paths import RELEASE, ROOT

# As on Windows: a module that is None cannot be imported.
WITHOUT_FCNTL = "import runpy, sys; sys.modules['fcntl'] = None; runpy.run_module('serve', run_name='__main__')"


def refused(*options, **environment):
    """Return the one line besides JSON that `python` writes on standard error before it exits with status 1."""
    environ = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, *options]
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1, ended
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    return line


@pytest.mark.parametrize("host", ["x86_64-conda-linux-gnu.invalid", "a..b", "192.0.2.1"])  # the first is conda's HOST
def test_a_host_that_is_not_this_machine_is_named(host):
    line = refused("-m", "serve", HOST=host, PORT="8000")
    assert line.startswith(f"serve: HOST: expected an address of this machine, found '{host}': ")
    assert line.endswith("; unset HOST, or set it to 127.0.0.1 or 0.0.0.0")


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("-m", "serve", PORT=str(port), TMPDIR=str(tmp_path))
    assert line.startswith(f"serve: PORT: expected a port that is free and allowed, found {port}: ")
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_setting_is_named():
    expected = "serve: WEB_CONCURRENCY: expected a whole number from 0 to 1024, found 'x'"
    assert refused("-m", "serve", WEB_CONCURRENCY="x") == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "manifest.json: expected a file of a verified export, found: No such file"),
        (lambda folder: (folder / "digits.onnx").unlink(), "digits.onnx: expected a file of a verified export"),
        (lambda folder: (folder / "digits.onnx").write_bytes(b"altered"), "digits.onnx: expected SHA-256 "),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: expected the manifest of a"),
        (lambda folder: put_graph(folder, b"no graph"), "digits.onnx: expected an ONNX graph, found"),
    ],
    ids=["missing", "no file", "altered", "no manifest", "no graph"],
)
def test_an_invalid_model_is_named_and_no_file_is_left(tmp_path, damage, message):
    folder, temporary = shutil.copytree(RELEASE, tmp_path / "model"), tmp_path / "temporary"
    temporary.mkdir()
    damage(folder)
    line = refused("-m", "serve", MODEL_DIR=str(folder), TMPDIR=str(temporary), PORT=str(free_port()))
    assert line.startswith(f"serve: {folder}/{message}")
    assert list(temporary.iterdir()) == []


def test_a_system_without_fcntl_is_refused():
    assert "expected Linux or macOS" in refused("-c", WITHOUT_FCNTL)


def test_an_argument_is_refused():
    assert "expected no arguments, found --bind" in refused("-m", "serve", "--bind", "0.0.0.0:80")
