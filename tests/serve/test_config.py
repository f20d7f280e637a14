import os

import pytest

from serve.config import Config, ConfigError


def test_an_empty_environment_gives_the_defaults():
    assert Config.from_environment({"PORT": "", "UNKNOWN": "1"}) == Config()


def test_every_field_is_the_variable_of_its_name(tmp_path):
    config = Config.from_environment({"MODEL_DIR": str(tmp_path), "PORT": "9000", "MAX_BATCH": "7", "API_KEY": "k"})
    assert (config.model_dir, config.port, config.max_batch, config.api_key) == (tmp_path, 9000, 7, "k")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PORT", "http", "PORT: expected a whole number, found 'http'"),
        ("PORT", "0", "PORT: expected 1 to 65535, found 0"),
        ("WEB_CONCURRENCY", "-1", "WEB_CONCURRENCY: expected 0 to 1024, found -1"),
        ("MAX_BATCH", "1.5", "MAX_BATCH: expected a whole number, found '1.5'"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: expected one of debug, info, warning, error, found 'loud'"),
        ("API_KEY", "a secret", "API_KEY: expected printable ASCII without spaces, found other characters"),
    ],
)
def test_a_wrong_variable_is_named(variable, value, message):
    with pytest.raises(ConfigError) as error:
        Config.from_environment({variable: value})
    assert str(error.value) == message


@pytest.mark.parametrize("workers", range(1, 10))
def test_workers_times_threads_fit_the_cores(monkeypatch, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    config = Config(web_concurrency=workers)
    assert config.threads >= 1
    assert config.workers * config.threads <= max(8, workers)
