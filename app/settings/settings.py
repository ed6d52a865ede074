"""Every setting of the service, once: its name, type, default and meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from app import versions
from app.keys import check_strength
from app.settings.loopback import is_loopback, is_own_name

DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?|auto")
PortName = Literal["models", "management", "metrics"]
# Seconds; a look at the directory takes some milliseconds.
_LEAST_POLL = 0.1

# Not to be given on the command line, which every user of the machine may read, and never shown.
SECRETS = frozenset({"api_key"})


class Settings(BaseModel):
    """See the module. Flags and their help are made from this class; a secret has no flag."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    models: Path = Field(Path("models"), description="directory of models: NAME/VERSION/manifest.json below it")
    host: str = Field(
        "127.0.0.1", description="address to listen on; another than loopback needs a key, or allow-public"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and logs it")
    allow_public: bool = Field(
        False, description="permit listening on an address that others can reach, although no key guards it"
    )
    allowed_hosts: str | None = Field(
        None, description="names that requests may come under (their Host header), joined by commas, such as "
        "models.example.com,*.internal; by default any where a key is set or others can reach the port, else those "
        "of this machine",
    )  # fmt: skip
    api_key: SecretStr | None = Field(
        None, description="key that every request but health needs; `ensembled key` makes one"
    )
    api_keys_file: Path | None = Field(
        None, description="file of hashes of keys, as `ensembled key` prints them; read again when it changes"
    )
    versions: str = Field(
        "latest", description='versions that are served: latest, latest:N, all, or 1,3; of one model NAME=..., several '
        'joined by semicolons ("latest:2; digits=1,3")',
    )  # fmt: skip
    poll: float = Field(
        0, ge=0, le=86400, description="seconds between looks for models that are new, changed or gone; 0 for none"
    )
    management: bool = Field(False, description="permit loading and unloading models while serving")
    management_host: str | None = Field(None, description="address of the management port; as host by default")
    management_port: int | None = Field(
        None, ge=0, le=65535, description="port for load and unload alone; on the port of the service by default"
    )
    metrics: bool = Field(True, description="serve /metrics")
    metrics_host: str | None = Field(None, description="address of the metrics port; as host by default")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port for /metrics alone; on the port of the service by default"
    )
    device: str = Field("cpu", description="cpu, cuda, cuda:1, or auto")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="dtype of the weights (float32, bfloat16, float16, float64); as they were saved by default"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads of one operation; by default all processors, one less where there are four or more",
    )
    compile: bool = Field(
        True, description="once a model is ready, compile its calls in a process beside, and use those that are faster"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="least precision that is good enough: float32, or bfloat16 where it is faster and near enough",
    )
    tf32: bool = Field(
        False, description="on an NVIDIA GPU, multiply float32 in TensorFloat-32: faster, 10 bits of mantissa"
    )
    cache_dir: Path | None = Field(
        None, description="directory where compiled calls and plans are kept; ~/.cache/ensembled by default"
    )
    default_model: str | None = Field(
        None, description="model that POST /predict asks; the only one that is loaded by default"
    )
    max_batch: int = Field(64, ge=1, le=65536, description="rows that waiting requests are merged to in one call")
    max_queue: int = Field(4096, ge=1, description="rows that may wait; beyond it requests are answered 429")
    max_delay: float = Field(
        0,
        ge=0,
        le=10,
        description="seconds that requests which do not fill a call wait for others, though the engine is idle",
    )
    default_timeout: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds after which a request that names no deadline is answered 504; none by default",
    )
    engine_timeout: float = Field(
        120, gt=0, le=86400, description="seconds for one call; while it takes longer the service is not alive"
    )
    max_body: int = Field(16 * 2**20, ge=1024, description="bytes of a request's body; beyond it 413")
    max_perturbed_members: int = Field(
        256,
        ge=0,
        le=2**20,
        description="members that a request may have of its own, by a perturbation or by weights; 0 for none",
    )
    max_perturbed_bytes: int = Field(
        32 * 2**20, ge=1024, description="bytes of the weights that the members of one perturbation have of their own"
    )
    perturbation_cache: int = Field(
        256 * 2**20, ge=0, description="bytes of perturbations that are kept for each model"
    )
    allow_weights: bool = Field(False, description="permit requests to bring weights")
    max_weights: int = Field(
        4 * 2**20, ge=1024, description="bytes of the weights that a request brings; beyond it 413"
    )
    max_bodies: int = Field(
        2**30, ge=1024, description="bytes of the bodies of all requests under way together; beyond it 429"
    )
    max_inflated_body: int = Field(
        64 * 2**20, ge=1024, description="bytes that a compressed body may become; beyond it 413"
    )
    body_timeout: float = Field(
        30, gt=0, le=86400, description="seconds in which a request's body must arrive; beyond them 408"
    )
    head_timeout: float = Field(
        10, gt=0, le=86400, description="seconds in which a request's line and headers must arrive; beyond them 408"
    )
    idle_timeout: float = Field(
        75, gt=0, le=86400, description="seconds for which a connection is kept open between requests"
    )
    answer_timeout: float = Field(
        60, gt=0, le=86400, description="seconds in which a client must take an answer; beyond them it is cut off"
    )
    max_connections: int = Field(
        1024, ge=1, le=2**20, description="open connections; beyond it new ones are answered 503"
    )
    adaptation: bool = Field(False, description="permit requests that adapt a model to examples which they bring")
    adaptation_steps: int = Field(32, ge=1, le=10_000, description="steps of gradient descent of one request")
    adaptation_examples: int = Field(256, ge=1, le=65536, description="examples that one request may adapt to")
    adaptation_seconds: float = Field(
        10, gt=0, le=86400, description="seconds that adapting may take in one call; beyond them 400"
    )
    adaptation_memory: int = Field(
        256 * 2**20, ge=1024, description="bytes that weights, gradients and activations may take while models adapt"
    )
    adapted_models: int = Field(
        256, ge=0, le=2**20, description="adapted models that are kept for later queries; 0 for none; beyond it 429"
    )
    adapted_memory: int = Field(
        256 * 2**20, ge=0, description="bytes of the weights of all adapted models that are kept; beyond it 429"
    )
    adapted_seconds: float = Field(
        3600, gt=0, le=30 * 86400, description="longest time, in seconds, for which an adapted model may be kept"
    )
    shutdown_timeout: float = Field(
        30, gt=0, le=86400, description="seconds that accepted requests get to finish after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged: debug, info, warning or error"
    )
    log_format: Literal["json", "text"] = Field("text", description="text for people, or json: one object a line")

    @field_validator(
        "threads", "dtype", "default_model", "api_key", "api_keys_file", "management_host", "management_port",
        "metrics_host", "metrics_port", "default_timeout", "cache_dir", mode="before",
    )  # fmt: skip
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("api_key")
    @classmethod
    def _strong_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_strength(value.get_secret_value())
        return value

    @field_validator("versions", mode="before")
    @classmethod
    def _versions_in_a_table(cls, value: Any) -> Any:
        return versions.as_text(value)

    @field_validator("versions")
    @classmethod
    def _known_versions(cls, value: str) -> str:
        versions.parse(value)
        return value

    @field_validator("poll")
    @classmethod
    def _not_all_the_time(cls, value: float) -> float:
        if 0 < value < _LEAST_POLL:
            raise ValueError(f"must be 0, or at least {_LEAST_POLL}")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError("must be cpu, cuda, cuda:N or auto")
        return value

    @property
    def has_key(self) -> bool:
        """Whether requests need a key."""
        return self.api_key is not None or self.api_keys_file is not None

    @property
    def addresses(self) -> dict[PortName, str]:
        """What it listens on: the address of the models' port, and of each other port that there is."""
        found: dict[PortName, str] = {"models": self.host}
        if self.management_port is not None:
            found["management"] = self.management_host or self.host
        if self.metrics and self.metrics_port is not None:
            found["metrics"] = self.metrics_host or self.host
        return found

    @property
    def named_hosts(self) -> tuple[str, ...]:
        """What the setting ``allowed_hosts`` names."""
        return tuple(name for given in (self.allowed_hosts or "").split(",") if (name := given.strip()))

    def host_names(self, port: PortName) -> tuple[str, ...] | None:
        """Names beside this machine's own that requests on a port may come under; None for any.

        Raises:
            KeyError: there is no such port.
        """
        is_local = is_loopback(self.addresses[port])
        if port == "management" and is_local and not self.has_key:
            # What stands in front of the models must not reach it by the models' names.
            return ()
        if self.allowed_hosts is not None:
            return self.named_hosts
        # A page in a browser cannot know a key, and beyond this machine names are for what stands in front.
        return None if self.has_key or not is_local else ()

    @model_validator(mode="after")
    def _room_for_one_body(self) -> Settings:
        if self.max_bodies < self.max_body:
            raise ValueError(
                f"max-bodies ({self.max_bodies}) must be at least max-body ({self.max_body}), or a body of that size "
                "could never be taken"
            )
        return self

    @model_validator(mode="after")
    def _public_only_on_purpose(self) -> Settings:
        public = sorted(host for host in self.addresses.values() if not is_loopback(host))
        if public and not self.has_key and not self.allow_public:
            raise ValueError(
                f"host {public[0]!r} can be reached from other machines and no key guards the service; set "
                "ENSEMBLED_API_KEY, listen on 127.0.0.1, or say --allow-public (ENSEMBLED_ALLOW_PUBLIC=1) where "
                "something in front of it does"
            )
        return self

    @model_validator(mode="after")
    def _management_behind_a_key(self) -> Settings:
        if not self.management or self.has_key:
            return self
        own_port = "put management on a port of its own (--management-port)"
        host = self.addresses.get("management", self.host)
        if not is_loopback(host):
            raise ValueError(
                f"management on host {host!r} needs a key, --allow-public or not: set ENSEMBLED_API_KEY, or {own_port} "
                "on --management-host 127.0.0.1"
            )
        others = [name for name in self.named_hosts if not is_own_name(name.lower())]
        if others and "management" not in self.addresses:
            raise ValueError(
                f"management needs a key where others ask under the name {others[0]!r} (allowed-hosts): set "
                f"ENSEMBLED_API_KEY, or {own_port}"
            )
        return self

    @model_validator(mode="after")
    def _ports_of_their_own(self) -> Settings:
        ports = {
            "port": self.port,
            "management-port": self.management_port,
            "metrics-port": self.metrics_port if self.metrics else None,
        }
        fixed = {name: port for name, port in ports.items() if port}
        if len(set(fixed.values())) < len(fixed):
            raise ValueError(
                f"{', '.join(fixed)} must differ, however: {', '.join(str(port) for port in fixed.values())}"
            )
        return self
