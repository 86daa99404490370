"""What this machine has, what Mien lacks on it, and what to do about it."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import av
import zmq

from daemon.config import Config, EnginesConfig, find_config, load_config
from daemon.endpoints import bind_failure, check_endpoint, is_ipv6
from daemon.keys import load_server
from daemon.paths import stat_of
from daemon.sources import check_source, is_live
from engines import machine
from engines.backends import tensorrt
from engines.errors import MienError
from engines.runtime import MODELS, resolve, why_unusable

Verdict = Literal["ok", "note", "wrong"]

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "av",
    "pyzmq",
    "prometheus-client",
    "openvino",
    "safetensors",
    "msgspec",
    "pydantic",
)
DECODERS = ("h264", "hevc", "mjpeg", "vp9", "av1")
DRIVER_S = 20.0
"""How long the GPU driver's tool may take; a driver in trouble lets it hang."""

ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_int8", "asimd")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `wrong` keeps Mien from working, a `note` is worth knowing."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(config_path: Path | None = None) -> list[Finding]:
    """Looks at everything; never raises for what it finds."""
    findings = [python(), *packages(), torch(), cpu(), *gpu(), *openvino_devices(), *codecs()]
    try:
        config = load_config(config_path)
    except MienError as error:
        lines = str(error).splitlines()
        return [*findings, *(Finding("config", "wrong", line, "correct it") for line in lines)]
    used = config_path or find_config()
    findings.append(Finding("config", "ok", str(used or "none, all defaults")))
    return [*findings, *engines(config), endpoint(config), metrics(config), gallery(config), *cameras(config)]


def python() -> Finding:
    """The interpreter and the machine."""
    return Finding("python", "ok", f"{platform.python_version()} on {platform.machine()} {platform.system()}")


def packages() -> Iterator[Finding]:
    """The libraries of the base install."""
    for name in PACKAGES:
        version = _version(name)
        if version is None:
            yield Finding(name, "wrong", "not installed", "install Mien anew: pip install .")
        else:
            yield Finding(name, "ok", version)


def torch() -> Finding:
    """torch is needed to build and verify engines, and by `mien classify`; not to run them on OpenVINO."""
    version = _version("torch")
    if version is None:
        return Finding(
            "torch", "note", "not installed", "needed to build engines and to classify: pip install torch"
        )
    return Finding("torch", "ok", version)


def cpu() -> Finding:
    """Cores, and the instruction sets that matter to inference."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.is_file() else set()
    flags = [flag for flag in ISA_FLAGS if flag in words]
    return Finding("cpu", "ok", f"{os.cpu_count()} cores, {' '.join(flags) or 'no wide vectors known'}")


def gpu() -> Iterator[Finding]:
    """NVIDIA GPUs, as the driver's own tool names them or, where it is not on the PATH, as the driver does."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        found = [f"{gpu}, {gpu.memory_bytes >> 20} MiB" for gpu in machine.gpus()]
        yield from (Finding("gpu", "ok", each) for each in found or ["none; engines run on the CPU"])
        if found:
            yield from _use_of_the_gpu()
        return
    query = [tool, "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        yield Finding("gpu", "note", "nvidia-smi does not answer", "check the driver: run nvidia-smi")
        return
    if answer.returncode:
        yield Finding("gpu", "note", "nvidia-smi fails", "check the driver: run nvidia-smi")
        return
    for line in answer.stdout.splitlines():
        yield Finding("gpu", "ok", line)
    yield from _use_of_the_gpu()


def _use_of_the_gpu() -> Iterator[Finding]:
    """What keeps torch and TensorRT from it."""
    if reason := machine.why_no_gpu():
        yield Finding("cuda", "note", "torch cannot use the GPU", reason)
    if reason := tensorrt.why_not_installed():
        yield Finding("tensorrt", "note", "not usable", reason)


def openvino_devices() -> Iterator[Finding]:
    """What OpenVINO can run on."""
    if _version("openvino") is None:
        return
    from engines.backends import openvino  # seconds of import, and not wanted where it is not installed

    devices = openvino.core().available_devices
    if "CPU" in devices:
        yield Finding("openvino devices", "ok", ", ".join(devices))
    else:
        yield Finding("openvino devices", "wrong", ", ".join(devices) or "none", "reinstall openvino")


def codecs() -> Iterator[Finding]:
    """What PyAV can decode, and whether annotated videos can be written."""
    missing = [name for name in DECODERS if not _has_codec(name, "r")]
    if missing:
        yield Finding("decoders", "note", f"without {', '.join(missing)}", "pip install --force-reinstall av")
    else:
        yield Finding("decoders", "ok", ", ".join(DECODERS))
    if _has_codec("libx264", "w"):
        yield Finding("encoder", "ok", "libx264")
    else:
        yield Finding("encoder", "note", "no libx264", "for --annotate: pip install --force-reinstall av")


def engines(config: Config) -> Iterator[Finding]:
    """Which engines the configuration asks for, and whether they are built and fit the weights."""
    sizes = dict.fromkeys(camera.detector_size for camera in config.cameras if camera.enabled)
    for model in MODELS:
        for size in (sizes or (None,)) if model == "detector" else (None,):
            yield _engine(model, config.engines, size)


def _engine(model: str, wanted: EnginesConfig, size: tuple[int, int] | None) -> Finding:
    subject = f"engine {model}"
    try:
        request = resolve(
            model,
            wanted.backend,
            size,
            None,
            wanted.cache_dir,
            device=wanted.device,
            precision=wanted.precision,
            max_batch=wanted.max_batch,
            own=wanted.own().get(model),
        )
        reason = why_unusable(request) if request.needs_build else None
    except MienError as error:
        return Finding(subject, "wrong", str(error))
    shape = f"{request.size[0]}x{request.size[1]} on {request.backend} {request.precision}"
    if reason:
        return Finding(
            subject,
            "note",
            f"{shape}: {reason}",
            "the first start builds it, or: mien engines build --config FILE",
        )
    return Finding(subject, "ok", shape)


def endpoint(config: Config) -> Finding:
    """Whether the daemon may bind where it is told to, and could now."""
    publish = config.publish
    try:
        curve = load_server(publish.server_key, publish.allowed_clients)
        check_endpoint(
            publish.endpoint,
            encrypted=curve is not None,
            allow_plaintext_beyond_loopback=publish.allow_plaintext_beyond_loopback,
        )
        if publish.endpoint.startswith("tcp://"):
            with zmq.Context() as context, context.socket(zmq.PUB) as probe:
                probe.setsockopt(zmq.IPV6, is_ipv6(publish.endpoint))
                probe.bind(publish.endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            return Finding("endpoint", "note", f"{publish.endpoint} is taken", "fine if that is your daemon")
        return Finding("endpoint", "wrong", str(bind_failure(publish.endpoint, error)))
    except MienError as error:
        return Finding("endpoint", "wrong", str(error))
    return Finding("endpoint", "ok", f"{publish.endpoint} is free{', encrypted' if curve else ''}")


def metrics(config: Config) -> Finding:
    """Whether Prometheus can be answered where it is told to be, now."""
    where = config.metrics
    if where.port == 0:
        return Finding("metrics", "ok", "off")
    try:
        family = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((where.host, where.port), family=family):
            return Finding("metrics", "ok", f"{where.host}:{where.port} is free")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Finding(
                "metrics", "note", f"{where.host}:{where.port} is taken", "fine if that is your daemon"
            )
        return Finding("metrics", "wrong", f"{where.host}: {error.strerror}", "set metrics.host to 127.0.0.1")


def gallery(config: Config) -> Finding:
    """Where people are enrolled, and that nobody else can read it."""
    path = config.gallery.path
    try:
        file = stat_of(path)
    except MienError as error:
        return Finding("gallery", "wrong", str(error))
    if file is None:
        return Finding("gallery", "note", f"{path}: nobody is enrolled yet", "mien gallery enroll NAME IMAGE")
    mode = file.st_mode & 0o777
    if mode & 0o077:
        return Finding("gallery", "note", f"{path}: others may read it ({mode:o})", f"chmod 600 {path}")
    return Finding("gallery", "ok", str(path))


def cameras(config: Config) -> Iterator[Finding]:
    """Files and folders are opened; live sources are only named, since connecting may take long."""
    for camera in config.cameras:
        subject = f"camera {camera.name}"
        try:
            check_source(camera.source)
        except MienError as error:
            yield Finding(subject, "wrong" if camera.enabled else "note", str(error))
            continue
        state = "live, not tried" if is_live(camera.source) else "readable"
        yield Finding(subject, "ok", state if camera.enabled else f"{state}, switched off")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.codec.Codec(name, mode)
    except ValueError:
        return False
    return True
