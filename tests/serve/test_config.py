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
