"""pytest-xdist runs the tests of a group one after the other in one process; some versions ignore the groups."""

import os

import pytest


@pytest.mark.xdist_group("group")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
def test_groups_are_kept(request):
    assert request.node.nodeid.endswith("@group")
