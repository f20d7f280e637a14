"""Configuration from environment variables."""

import pytest

from serve.config import Config, ConfigError


def test_a_variable_sets_its_field_unless_it_is_empty(tmp_path):
    origins = "https://example.org  http://[::1]:8080"
    given = {"MODEL_DIR": str(tmp_path), "MAX_BATCH": "7", "LOG_LEVEL": "WARNING", "CORS_ORIGINS": origins}
    config = Config.from_environment({**given, "PORT": "", "UNKNOWN": "1"})
    assert config == Config(model_dir=tmp_path, max_batch=7, log_level="warning", cors_origins=origins)
    assert Config(host="::1").address == Config(host="[::1]").address == "[::1]:8000"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PORT", "0", "PORT: expected a whole number from 1 to 65535, found '0'"),
        ("MAX_BATCH", "1.5", "MAX_BATCH: expected a whole number from 1 to 100000, found '1.5'"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: expected debug, info, warning or error, found 'loud'"),
        *(
            ("CORS_ORIGINS", found, f"CORS_ORIGINS: expected * or origins like https://example.org, found '{found}'")
            for found in ("* x", "example.org", "https://a.b/c")
        ),
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
