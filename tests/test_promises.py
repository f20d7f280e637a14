"""tests/PROMISES.md has an entry for each promise, of the form `- promise — tests`, and the tests exist."""

import ast
import os
import re
from functools import cache

import pytest

from train.paths import ROOT

ENTRY = re.compile(r"- \S((?!::).)* — (`tests/[\w/]+\.py::test_\w+`(, )?)+(?<!, )")
_, *SECTIONS = re.split(r"^## ", (ROOT / "tests/PROMISES.md").read_text(), flags=re.MULTILINE)
ENTRIES = {name: body.strip() for name, _, body in (section.partition("\n") for section in SECTIONS)}


@cache
def functions(file):
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("document", ENTRIES)
def test_every_promise_names_tests_that_exist(document):
    assert (ROOT / document).is_file()
    for entry in re.split(r"\n(?=\S)", ENTRIES[document]):
        line = " ".join(entry.split())
        assert ENTRY.fullmatch(line), line
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", line):
            assert (ROOT / file).is_file(), line
            assert test in functions(file), line


@pytest.mark.xdist_group("group")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
def test_groups_are_kept(request):
    """Some versions of pytest-xdist ignore groups: then the tests of a group would run in several processes."""
    assert request.node.nodeid.endswith("@group")
