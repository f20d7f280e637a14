"""The service's configuration: environment variables, checked once, at start."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from model.cores import available_cores

RELEASE = Path(__file__).resolve().parent.parent / "model" / "release"
IPV6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9]+)?"
HOST = re.compile(rf"[A-Za-z0-9._-]+|{IPV6}|\[{IPV6}\]")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
LEVELS = ("debug", "info", "warning", "error")


class ConfigError(ValueError):
    """An environment variable is not what was expected; the message names it, the expected and the found."""


@dataclass(frozen=True)
class Config:
    """What a service is started with; every field is the environment variable of its name in capitals."""

    model_dir: Path = RELEASE
    host: str = "127.0.0.1"
    port: int = 8000
    web_concurrency: int = 0  # workers; 0: as many as there are cores
    max_body_bytes: int = 16 * 2**20
    max_batch: int = 1_000
    max_pixels: int = 25_000_000
    request_timeout: int = 30  # seconds
    api_key: str = ""
    cors_origins: str = ""
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 1, 65_535),
            ("web_concurrency", 0, 1_024),
            ("max_body_bytes", 1, 2**31),
            ("max_batch", 1, 100_000),
            ("max_pixels", 784, 2**28),
            ("request_timeout", 1, 3_600),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name.upper()}: expected {low} to {high}, found {getattr(self, name)}")
        for origin in self.cors_origins.split():
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(f"CORS_ORIGINS: expected * or origins like https://example.org, found {origin!r}")
        if not HOST.fullmatch(self.host):
            raise ConfigError(f"HOST: expected a name or an IP address, found {self.host!r}")
        if not re.fullmatch(r"[!-~]*", self.api_key):  # what a header can carry; the key itself is not shown
            raise ConfigError("API_KEY: expected printable ASCII without spaces, found other characters")
        if self.log_level not in LEVELS:
            raise ConfigError(f"LOG_LEVEL: expected one of {', '.join(LEVELS)}, found {self.log_level!r}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """Return the configuration that `environment` asks for; a variable that is not set, or empty, has its default.

        Raises ConfigError, naming the variable, where one is not of its form.
        """
        values: dict[str, str | int | Path] = {}
        for field in fields(cls):
            if text := environment.get(field.name.upper()):
                try:
                    values[field.name] = field.type(text)  # type: ignore[operator]  # str, int and Path are called
                except ValueError as error:
                    raise ConfigError(f"{field.name.upper()}: expected a whole number, found {text!r}") from error
        return cls(**values)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        """Return host and port as gunicorn's `bind` has them."""
        host = self.host.strip("[]")
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def workers(self) -> int:
        """Return the number of worker processes."""
        return self.web_concurrency or available_cores()

    @property
    def threads(self) -> int:
        """Return the threads of each worker's ONNX Runtime: workers × threads fit the cores."""
        return max(1, available_cores() // self.workers)
