"""Configuration of the service by environment variables, which are validated once, at the start."""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import msgspec
from msgspec import Meta

from model.cores import available_cores

RELEASE = Path(__file__).resolve().parent.parent / "model" / "release"
ORIGIN = r"\*|[a-z][a-z0-9+.-]*://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"


class ConfigError(ValueError):
    """An environment variable is invalid. The message names the variable, what was expected and what was found."""


class Networks(tuple[IPv4Network | IPv6Network, ...]):
    """IP networks, such as 10.0.0.0/8. A single IP address counts as a network with one address."""

    def __new__(cls, text: str = "") -> "Networks":
        """Parse `text`: IP addresses and networks, separated by spaces or commas. Raises ValueError."""
        return super().__new__(cls, map(ip_network, text.replace(",", " ").split()))

    def include(self, text: str) -> bool:
        """Return whether `text` is an IP address in one of the networks."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)  # with HOST=::, IPv4 addresses look like ::ffff:192.0.2.1
        return any((mapped or address) in network for network in self)


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """The settings of the service. Each setting has an environment variable: MAX_BATCH for `max_batch`, and so on."""

    model_dir: Annotated[Path, Meta(description="a folder with a verified export")] = RELEASE
    host: str = "127.0.0.1"  # serve.__main__ checks that the service can listen at this address
    port: Annotated[int, Meta(ge=1, le=65_535)] = 8000
    web_concurrency: Annotated[int, Meta(ge=0, le=1_024)] = 0  # number of worker processes; 0: one per core
    max_body_bytes: Annotated[int, Meta(ge=1, le=2**31)] = 16 * 2**20
    max_batch: Annotated[int, Meta(ge=1, le=100_000)] = 1_000  # maximum number of images per request
    max_pixels: Annotated[int, Meta(ge=784, le=2**28)] = 25_000_000  # maximum number of pixels per picture
    request_timeout: Annotated[int, Meta(ge=1, le=3_600)] = 30  # seconds from the headers of a request to its response
    keep_alive: Annotated[int, Meta(ge=1, le=3_600)] = 5  # seconds that an idle connection stays open
    api_key: Annotated[str, Meta(pattern=r"^[!-~]*\Z", description="printable ASCII without spaces")] = ""
    cors_origins: Annotated[
        str, Meta(pattern=rf"^\s*(({ORIGIN})(\s+|\Z))*\Z", description="* or origins like https://example.org")
    ] = ""
    trusted_proxies: Annotated[Networks, Meta(description="IP addresses or networks like 10.0.0.0/8")] = Networks()
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="debug, info, warning or error")
    ] = "info"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """Return the configuration from `environment`. If a variable is empty or not set, the default value is used.

        Raises ConfigError if a variable is invalid.
        """
        values = {name: environment[name] for name in cls.__struct_encode_fields__ if environment.get(name)}
        if level := values.get("LOG_LEVEL"):
            values["LOG_LEVEL"] = level.lower()
        try:
            return msgspec.convert(values, cls, strict=False, dec_hook=lambda kind, text: kind(text))
        except msgspec.ValidationError as error:
            name = str(error).rpartition("$.")[2].rstrip("`")
            (meta,) = get_type_hints(cls, include_extras=True)[name.lower()].__metadata__
            expected = meta.description or f"a whole number from {meta.ge} to {meta.le}"
            found = "other characters" if name == "API_KEY" else repr(environment[name])  # never reveal the key
            raise ConfigError(f"{name}: expected {expected}, found {found}") from error

    @property
    def address(self) -> str:
        """Return host and port in the form that gunicorn's setting `bind` expects."""
        host = self.host.strip("[]")
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def workers(self) -> int:
        """Return the number of worker processes."""
        return self.web_concurrency or available_cores()
