"""Settings from environment variables; a setting, a model or a system that cannot be used prevents the start."""

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

from serve.config import Config, ConfigError
from tests.polling import PATIENCE
from tests.serve.conftest import free_port
from tests.serve.releases import put_graph
from train.paths import RELEASE, ROOT

# As on Windows, fcntl cannot be imported: a module that is None in sys.modules raises ImportError.
WITHOUT_FCNTL = "import runpy, sys; sys.modules['fcntl'] = None; runpy.run_module('serve', run_name='__main__')"
HOST = "HOST: expected an address of this machine, found '{}': .*; unset HOST, or set it to 127.0.0.1 or 0.0.0.0"
CONDA = "x86_64-conda-linux-gnu.invalid"  # conda sets HOST to such a name


def refused(*options, **environment):
    """Run `python`, which must exit with status 1. Return the only line of its standard error that is not JSON."""
    environ = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, *options]
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1, ended
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    return line


@pytest.mark.parametrize(
    ("options", "environment", "line"),
    [
        (["-m", "serve"], {"HOST": CONDA}, HOST.format(CONDA)),
        (["-m", "serve"], {"HOST": "é..b"}, HOST.format("é..b")),
        (["-m", "serve"], {"MAX_BATCH": "x"}, "MAX_BATCH: expected a whole number from 1 to 100000, found 'x'"),
        (["-m", "serve", "--bind", "0.0.0.0:80"], {}, "expected no arguments, found --bind: .*"),
        (["-c", WITHOUT_FCNTL], {}, "expected Linux or macOS, found another system; .*"),
    ],
    ids=["conda's host", "host", "setting", "argument", "Windows"],
)
def test_what_cannot_be_used_is_named_in_one_line(options, environment, line):
    assert re.fullmatch(f"serve: {line}", refused(*options, **environment))


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("-m", "serve", PORT=str(port), TMPDIR=str(tmp_path))
    assert line.startswith(f"serve: PORT: expected a port that is free and allowed, found {port}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_matches_its_hash_and_is_none_is_named_and_no_file_is_left(tmp_path):
    folder, temporary = shutil.copytree(RELEASE, tmp_path / "model"), tmp_path / "temporary"
    temporary.mkdir()
    put_graph(folder, b"no graph")
    line = refused("-m", "serve", MODEL_DIR=str(folder), TMPDIR=str(temporary), PORT=str(free_port()))
    assert line.startswith(f"serve: {folder}/digits.onnx: expected an ONNX graph, found")
    assert list(temporary.iterdir()) == []


def test_a_variable_sets_its_field_unless_it_is_empty(tmp_path):
    origins = "https://example.org  http://[::1]:8080"
    given = {"MODEL_DIR": str(tmp_path), "MAX_BATCH": "7", "LOG_LEVEL": "WARNING", "CORS_ORIGINS": origins}
    config = Config.from_environment({**given, "PORT": "", "UNKNOWN": "1"})
    assert config == Config(model_dir=tmp_path, max_batch=7, log_level="warning", cors_origins=origins)
    assert Config(host="::1").address == Config(host="[::1]").address == "[::1]:8000"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("MAX_BATCH", "1.5", "a whole number from 1 to 100000"),
        ("LOG_LEVEL", "loud", "debug, info, warning or error"),
        ("CORS_ORIGINS", "* x", "* or origins like https://example.org"),
        ("CORS_ORIGINS", "https://a.b/c", "* or origins like https://example.org"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "IP addresses or networks like 10.0.0.0/8"),
        ("API_KEY", "a secret", "printable ASCII without spaces"),
    ],
)
def test_an_invalid_variable_is_named(variable, value, expected):
    with pytest.raises(ConfigError) as error:
        Config.from_environment({variable: value})
    found = "other characters" if variable == "API_KEY" else repr(value)  # the key is never shown
    assert str(error.value) == f"{variable}: expected {expected}, found {found}"
