"""The model that ships predicts as the network that was trained: parity on all 10,000 test images of MNIST."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from model.contract import GRAPH, parse_manifest
from train.verify import verify

RELEASE = Path(__file__).parents[2] / "model" / "release"
MANIFEST = parse_manifest((RELEASE / "manifest.json").read_bytes())


@pytest.mark.slow
def test_shipped_release_is_verified_on_every_test_image(mnist):
    export = verify(RELEASE, mnist)
    parity = export.parity
    assert (parity.images, parity.label_mismatches) == (10_000, 0)
    assert parity.max_abs_probability_difference <= 1e-4
    assert export.manifest == MANIFEST


def test_shipped_release_reaches_the_goal_within_the_budget(mnist):
    session = onnxruntime.InferenceSession(RELEASE / GRAPH)
    digits = session.run(["digit"], {"image": mnist.test.images.numpy()})[0]
    assert np.mean(digits == mnist.test.labels.numpy()) >= 0.994
    assert MANIFEST.parameters <= 8_000
    assert MANIFEST.epochs <= 15


def test_shipped_release_was_trained_on_this_data_from_a_known_source(mnist):
    assert (MANIFEST.data.name, MANIFEST.data.sha256) == ("mnist", mnist.sha256)
    assert len(MANIFEST.source_revision) == 40, "trained from a clean checkout"
