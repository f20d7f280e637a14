"""Configuration from environment variables."""

import pytest

from serve.config import Config, ConfigError


def test_an_empty_environment_gives_the_defaults():
    assert Config.from_environment({"PORT": "", "UNKNOWN": "1"}) == Config()


def test_each_field_has_an_environment_variable(tmp_path):
    config = Config.from_environment({"MODEL_DIR": str(tmp_path), "PORT": "9000", "MAX_BATCH": "7", "API_KEY": "k"})
    assert config == Config(model_dir=tmp_path, port=9000, max_batch=7, api_key="k")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PORT", "http", "PORT: expected a whole number from 1 to 65535, found 'http'"),
        ("PORT", "0", "PORT: expected a whole number from 1 to 65535, found '0'"),
        ("WEB_CONCURRENCY", "-1", "WEB_CONCURRENCY: expected a whole number from 0 to 1024, found '-1'"),
        ("MAX_BATCH", "1.5", "MAX_BATCH: expected a whole number from 1 to 100000, found '1.5'"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: expected debug, info, warning or error, found 'loud'"),
        *(
            ("CORS_ORIGINS", found, f"CORS_ORIGINS: expected * or origins like https://example.org, found '{found}'")
            for found in ("* x", "example.org", "https://a.b/c")
        ),
        ("KEEP_ALIVE", "0", "KEEP_ALIVE: expected a whole number from 1 to 3600, found '0'"),
        (
            "TRUSTED_PROXIES",
            "10.0.0.1/8",
            "TRUSTED_PROXIES: expected IP addresses or networks like 10.0.0.0/8, found '10.0.0.1/8'",
        ),
        ("API_KEY", "a secret", "API_KEY: expected printable ASCII without spaces, found other characters"),
    ],
)
def test_an_invalid_variable_is_named(variable, value, message):
    with pytest.raises(ConfigError) as error:
        Config.from_environment({variable: value})
    assert str(error.value) == message


def test_a_log_level_may_be_in_capitals():
    assert Config.from_environment({"LOG_LEVEL": "WARNING"}) == Config(log_level="warning")


def test_several_origins_are_valid():
    origins = "https://example.org  http://[::1]:8080"
    assert Config.from_environment({"CORS_ORIGINS": origins}).cors_origins == origins
