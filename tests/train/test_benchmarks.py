"""The benchmarks: forms that cannot be measured are refused, and a refused picture does not end the run."""

import sys

import pytest
from torch.utils.data import DataLoader

from benchmarks import pictures, train
from model.networks import Model_3
from serve.pictures.preprocess import ImageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forms", "coarse"], "--forms coarse: can be measured only with --train"),
        (["--forms", "other_hands", "--train"], "--forms other_hands: can be measured only without --train"),
    ],
)
def test_form_that_is_not_measured_is_refused_and_nothing_is_written(options, message, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["pictures", *options, "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        pictures.main()
    assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_examples_show_a_refused_picture_without_its_digit(monkeypatch, images):
    def refuse(_content):
        raise ImageError("expected ink, found none")

    examples = {"plain": ([0], images[:1], [7])}
    shown = pictures._examples(examples)
    monkeypatch.setattr(pictures, "decode", refuse)
    assert pictures._examples(examples) != shown


def test_a_training_step_is_timed_with_the_loading_of_its_images(monkeypatch, mnist):
    clock = iter(range(100))
    loaded = []

    class Loader(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                loaded.append(next(clock))
                yield batch

    monkeypatch.setattr(train, "STEPS", 3)
    monkeypatch.setattr(train.time, "perf_counter", lambda: float(next(clock)))
    network = Model_3()
    split = train.Split(mnist.test.images[:32], mnist.test.labels[:32])
    loader = Loader(train.Pictures(split, augmented=False), 4)
    train._train(network, train.torch.optim.SGD(network.parameters(), lr=0.01), loader)
    # The clock is read after the first step (1) and at the end (5). The loads 2 to 4 are between these readings.
    assert loaded == [0, 2, 3, 4]
