"""The configuration: YAML in, frozen and checked sections out; each part of the daemon gets only its own.

`config.yaml` at the project's root shows every key with its meaning.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from daemon.config_errors import describe_errors
from daemon.paths import stat_of
from daemon.secrecy import redact_source
from daemon.yaml_source import read_yaml
from engines.errors import UsageError

CONFIG_VARIABLE = "MIEN_CONFIG"
CAMERA_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"

MAX_HEARTBEAT_S = 30.0
"""Half of what a relay waits for a daemon, so that one heartbeat may be lost."""


def _multiple_of_32(side: int) -> int:
    if side % 32:
        raise ValueError(f"must be a multiple of 32, such as {max(32, round(side / 32) * 32)}")
    return side


Side = Annotated[int, Field(ge=64, le=4096), AfterValidator(_multiple_of_32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A frozen section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)


class CameraConfig(Section):
    """One source. `source` may hold credentials, so it stays out of the repr."""

    name: str = Field(pattern=CAMERA_NAME)
    source: str = Field(min_length=1, repr=False)
    enabled: bool = True
    identity: bool = True
    age: bool = True
    gender: bool = True
    emotion: bool = True
    detector_size: tuple[Side, Side] = (640, 384)
    min_face_px: float = Field(default=0.0, ge=0)
    detect_threshold: Fraction | None = None
    identity_threshold: float | None = Field(default=None, ge=-1, le=1)
    roi: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    max_fps: float | None = Field(default=None, gt=0)
    rotate: Literal[0, 90, 180, 270] = 0
    loop: bool = False
    speed: Literal["realtime", "max"] = "realtime"
    hardware_decode: Literal["cuda", "qsv", "vaapi", "drm", "amf", "videotoolbox"] | None = None
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    open_timeout_s: float = Field(default=10.0, gt=0)
    read_timeout_s: float = Field(default=5.0, gt=0)
    stalled_after_s: float = Field(default=2.0, gt=0)
    reconnect_max_s: float = Field(default=2.0, gt=0)

    @field_validator("source", mode="before")
    @classmethod
    def _index_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("roi")
    @classmethod
    def _has_an_area(cls, roi: tuple[float, float, float, float] | None) -> object:
        if roi is not None and not (roi[0] < roi[2] and roi[1] < roi[3]):
            raise ValueError("has no area; give left, top, right, bottom as shares of the frame, 0 to 1")
        return roi


class EnginesConfig(Section):
    """Which backend runs the models, how, where built engines are kept, and models of the user's own."""

    backend: Literal["auto", "tensorrt", "aot_inductor", "openvino", "eager"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "f32", "f16", "bf16", "int8", "mixed"] = "auto"
    max_batch: int | None = Field(default=None, ge=1, le=1024)
    threads: int = Field(default=0, ge=0)
    rebuild: Literal["when_needed", "never"] = "when_needed"
    cache_dir: Path | None = None
    detector: Path | None = None
    landmarks: Path | None = None
    embedder: Path | None = None
    attributes: Path | None = None

    def common(self) -> dict[str, Any]:
        """What engines.runtime.load_engine is told for every model."""
        keys = ("backend", "device", "precision", "max_batch", "threads", "rebuild")
        return {key: getattr(self, key) for key in keys} | {"cache": self.cache_dir}

    def for_faces(self) -> dict[str, Any]:
        """What engines.runtime.load_face_engines is told."""
        return self.common() | {"own": self.own()}

    def own(self) -> dict[str, Path]:
        """The user's models, by whose place they take."""
        keys = ("detector", "landmarks", "embedder", "attributes")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


class TrackingConfig(Section):
    """How faces of successive frames are joined into tracks."""

    min_iou: Fraction = 0.3
    max_centre_distance: float = Field(default=0.8, ge=0)
    max_lost_s: Seconds = 1.0
    min_hits: int = Field(default=2, ge=1)


class IdentityConfig(Section):
    """When a track is given a name."""

    threshold: float | None = Field(default=None, ge=-1, le=1)
    min_margin: float = Field(default=0.03, ge=0, le=2)
    min_votes: int = Field(default=3, ge=1)
    max_votes: int = Field(default=30, ge=1)
    interval_s: Seconds = 0.5

    @field_validator("max_votes")
    @classmethod
    def _can_decide(cls, max_votes: int, others: ValidationInfo) -> int:
        if max_votes < others.data.get("min_votes", 1):
            raise ValueError(
                "is less than identity.min_votes, so nobody would be named; raise it or lower that"
            )
        return max_votes


class QualityConfig(Section):
    """The gate a look at a face passes before it is named or judged."""

    min_interocular_px: float = Field(default=14.0, ge=0)
    min_sharpness: float = Field(default=0.08, ge=0)
    max_yaw: float = Field(default=0.6, gt=0)
    min_brightness: Fraction = 0.12
    max_brightness: Fraction = 0.92
    min_contrast: Fraction = 0.05
    min_score: Fraction = 0.5


class AttributesConfig(Section):
    """How often age, gender and emotion are recomputed, and how long they are smoothed."""

    interval_s: Seconds = 0.5
    smoothing_s: Seconds = 1.5
    quality_gain: float = Field(default=1.25, ge=1)
    growth: float = Field(default=1.3, ge=1)


class PublishConfig(Section):
    """Where and what the daemon publishes."""

    endpoint: str = Field(default="tcp://127.0.0.1:5600", pattern=r"^(tcp|ipc|inproc)://.+")
    server_key: Path | None = None
    allowed_clients: Path | None = None
    allow_plaintext_beyond_loopback: bool = False
    hwm: int = Field(default=1000, ge=1)
    heartbeat_s: float = Field(default=5.0, gt=0)
    embeddings: bool = False
    empty_frames: bool = False

    @field_validator("heartbeat_s")
    @classmethod
    def _known_to_be_alive(cls, heartbeat_s: float) -> float:
        if heartbeat_s > MAX_HEARTBEAT_S:
            raise ValueError(
                f"must be at most {MAX_HEARTBEAT_S:g}, or relays would take the daemon to be gone"
            )
        return heartbeat_s

    @field_validator("allowed_clients")
    @classmethod
    def _both_or_neither(cls, folder: Path | None, others: ValidationInfo) -> Path | None:
        if (folder is None) != (others.data.get("server_key") is None):
            raise ValueError("belongs together with server_key; set both, or neither")
        return folder


class MetricsConfig(Section):
    """Where Prometheus reads the daemon's metrics; port 0 leaves them off."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=9560, ge=0, le=65535)


class GalleryConfig(Section):
    """Where the enrolled people are kept."""

    path: Path = Field(default_factory=lambda: default_state_dir() / "gallery.sqlite")

    @field_validator("path", mode="before")
    @classmethod
    def _null_is_default(cls, value: object) -> object:
        return default_state_dir() / "gallery.sqlite" if value is None else value


class ControlConfig(Section):
    """The socket that `mien ctl` and `mien gallery` speak to."""

    enabled: bool = True
    path: Path | None = None
    group: str | None = None


class ServiceConfig(Section):
    """How the main loop works, and what it puts up with."""

    frames_at_once: int = Field(default=4, ge=1)
    stage_timeout_s: float = Field(default=60.0, gt=0)
    max_failures: int = Field(default=3, ge=1)
    gpu_wait_s: Seconds = 60.0


class LogConfig(Section):
    """How the daemon logs: `auto` is console on a terminal and json elsewhere."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section):
    """The whole configuration."""

    instance: str = Field(default="mien", pattern=CAMERA_NAME)
    cameras: tuple[CameraConfig, ...] = ()
    engines: EnginesConfig = EnginesConfig()
    tracking: TrackingConfig = TrackingConfig()
    identity: IdentityConfig = IdentityConfig()
    quality: QualityConfig = QualityConfig()
    attributes: AttributesConfig = AttributesConfig()
    publish: PublishConfig = PublishConfig()
    metrics: MetricsConfig = MetricsConfig()
    gallery: GalleryConfig = Field(default_factory=GalleryConfig)
    control: ControlConfig = ControlConfig()
    service: ServiceConfig = ServiceConfig()
    log: LogConfig = LogConfig()

    @field_validator("cameras", mode="wrap")
    @classmethod
    def _names_differ(cls, cameras: Any, check: ValidatorFunctionWrapHandler) -> tuple[CameraConfig, ...]:
        """Two cameras of one name are told together with whatever else is wrong with cameras."""
        twice = _named_twice(cameras)
        mistake = f"two cameras are named {', '.join(map(repr, twice))}; give each its own name"
        try:
            checked: tuple[CameraConfig, ...] = check(cameras)
        except ValidationError as error:
            if not twice:
                raise
            words = PydanticCustomError("named_twice", "{words}", {"words": mistake})
            told = [*map(_detail, error.errors()), InitErrorDetails(type=words, input=())]
            raise ValidationError.from_exception_data("cameras", told) from None
        if twice:
            raise ValueError(mistake)
        return checked


def _named_twice(cameras: Any) -> list[str]:
    """The names more than one entry has, whatever else the entries are."""
    entries = cameras if isinstance(cameras, list | tuple) else ()
    names = [each.get("name") if isinstance(each, dict) else getattr(each, "name", None) for each in entries]
    counts = Counter(name for name in names if isinstance(name, str))
    return sorted(name for name, count in counts.items() if count > 1)


def _detail(error: ErrorDetails) -> InitErrorDetails:
    """One mistake as pydantic takes it back."""
    return InitErrorDetails(
        type=error["type"], loc=error["loc"], input=error["input"], ctx=error.get("ctx", {})
    )


def default_state_dir() -> Path:
    """The folder for what must outlive the daemon: systemd's, else the user's data folder."""
    if state := os.environ.get("STATE_DIRECTORY"):
        return Path(state.partition(":")[0])
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mien"


def find_config() -> Path | None:
    """The file in use where none is named: $MIEN_CONFIG, ./config.yaml or /etc/mien/config.yaml; or None.

    Raises MienError where one of the places may not be looked at.
    """
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    places = (Path("config.yaml"), Path("/etc/mien/config.yaml"))
    return next((place for place in places if _is_file(place)), None)


def _is_file(path: Path) -> bool:
    found = stat_of(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def load_config(path: Path | None = None) -> Config:
    """The checked configuration of a file; without one, of the file `find_config` finds, or all defaults.

    Relative paths in the file are taken from the file's own folder. Raises UsageError naming every mistake.
    """
    path = path or find_config()
    if path is None:
        return Config()
    content = read_yaml(path)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise UsageError(describe_errors(path, error, Config)) from None
    return _anchored(config, path.resolve().parent)


def _anchored(config: Config, folder: Path) -> Config:
    cameras = tuple(
        camera.model_copy(update={"source": _anchored_source(camera.source, folder)})
        for camera in config.cameras
    )
    gallery = config.gallery.model_copy(update={"path": folder / config.gallery.path.expanduser()})
    paths = config.engines.own() | {"cache_dir": config.engines.cache_dir}
    engines = config.engines.model_copy(
        update={key: path and folder / path.expanduser() for key, path in paths.items()}
    )
    keys = {
        key: path and folder / path.expanduser()
        for key, path in (
            ("server_key", config.publish.server_key),
            ("allowed_clients", config.publish.allowed_clients),
        )
    }
    endpoint = _anchored_endpoint(config.publish.endpoint, folder)
    publish = config.publish.model_copy(update=keys | {"endpoint": endpoint})
    socket = config.control.path
    control = config.control.model_copy(update={"path": socket and folder / socket.expanduser()})
    return config.model_copy(
        update={
            "cameras": cameras,
            "gallery": gallery,
            "engines": engines,
            "publish": publish,
            "control": control,
        }
    )


def _anchored_source(source: str, folder: Path) -> str:
    if "://" in source or source.isdecimal():
        return source
    return str(folder / Path(source).expanduser())


def _anchored_endpoint(endpoint: str, folder: Path) -> str:
    scheme, _, path = endpoint.partition("://")
    if scheme != "ipc" or path.startswith(("@", "*")):  # a name without a file, or ZeroMQ's choice
        return endpoint
    return f"ipc://{folder / Path(path).expanduser()}"


def shown(config: Config) -> dict[str, Any]:
    """The effective configuration as plain values, with credentials hidden."""
    content: dict[str, Any] = config.model_dump(mode="json")
    for camera in content["cameras"]:
        camera["source"] = redact_source(camera["source"])
    return content
