"""The released model: parity with the trained network on all 10,000 test images, accuracy, budget and provenance."""

import numpy as np
import onnxruntime
import pytest

from model.contract import GRAPH, parse_manifest
from train.export import verify
from train.paths import RELEASE

MANIFEST = parse_manifest((RELEASE / "manifest.json").read_bytes())


@pytest.mark.slow
def test_release_is_verified_on_every_test_image(mnist):
    export = verify(RELEASE, mnist)
    parity = export.parity
    assert (parity.images, parity.label_mismatches) == (10_000, 0)
    assert parity.max_abs_probability_difference <= 1e-4
    assert export.manifest == MANIFEST


def test_release_reaches_the_target_accuracy_within_the_budget(images, labels):
    session = onnxruntime.InferenceSession(RELEASE / GRAPH)
    digits = session.run(["digit"], {"image": images})[0]
    assert np.mean(digits == labels) >= 0.994
    assert MANIFEST.parameters <= 8_000
    assert MANIFEST.epochs <= 15


def test_release_was_trained_on_this_data_set_from_a_known_revision(mnist):
    assert (MANIFEST.data.name, MANIFEST.data.sha256) == ("mnist", mnist.sha256)
    assert len(MANIFEST.source_revision) == 40, "expected a commit of a clean checkout"
