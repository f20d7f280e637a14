"""The documentation's commands and programs for a running service can be executed without changes."""

import os
import re
import subprocess
import sys

import pytest

from train.paths import ROOT

ADDRESS = "127.0.0.1:8000"  # the service's address in the documentation


def run(command, service):
    """Run a command that names the documented address, and return what it prints."""
    command = [word.replace(ADDRESS, f"127.0.0.1:{service.port}") for word in command]
    environ = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("page", ["README.md", "docs/operation.md", "deploy/kubernetes/README.md"])
def test_curl_commands_are_answered(service, page):
    commands = re.findall(r"^ *(curl .*)$", (ROOT / page).read_text(), re.MULTILINE)
    for command in commands:
        answer = run(["sh", "-c", command], service)
        assert '"digit":7' in answer.replace(" ", ""), command


@pytest.mark.parametrize(("page", "printed"), [("README.md", r"1\n"), ("docs/operation.md", r"\[7 2 1 0 4 .*\]\n")])
def test_programs_print_what_they_say(service, page, printed):
    programs = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert programs
    for program in programs:
        assert re.fullmatch(printed, run([sys.executable, "-c", program], service), re.DOTALL)
