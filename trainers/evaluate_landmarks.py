"""`mien evaluate landmarks`: error and failures from our own detector's boxes, and flicker on still faces."""

import io
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from engines.geometry import Floats, Image, landmark_crop, transform_points
from engines.runtime import Engine
from engines.stages import detect, find_landmarks
from trainers import plots
from trainers.bootstrap import mean_figure, share
from trainers.detector_truths import YuNet
from trainers.faces import central_face
from trainers.landmarks import LandmarkSamples, LandmarksConfig, load_samples
from trainers.measuring import EvaluationConfig, Figures, engine
from trainers.zips import SEED

FAILED = 0.10  # of the interocular distance
PICTURE = (160, 160)
STILL_FACES, STILL_FRAMES = 60, 13
SENSOR_NOISE = 6.0  # grey levels, of each frame anew: a dim room
QUALITY = "18"  # H.264 constant rate factor; from 23 on the coder would smooth most of the noise away
CLIP = "three_faces_1080x360"
FindPoints = Callable[[Image], Floats | None]


def landmark_figures(config: EvaluationConfig) -> Figures:
    """NME over the faces found, FR@10 % counting misses, and flicker; YuNet beside, where it is given."""
    samples = load_samples(LandmarksConfig(data=config.data, limit=config.limit), "val")
    root = Path(config.data)
    judged = (
        "MTFL val" if (root / "mtfl.zip").is_file() else f"{root.resolve().name} val"
    )  # a folder of lists
    finders = {"ours": our_points(config, PICTURE)}
    if config.yunet:
        finders["YuNet-n"] = yunet_points(config)
    figures: Figures = {}
    found = {key: [find(image) for image in samples.images] for key, find in finders.items()}
    errors = {key: face_errors(points, samples.points) for key, points in found.items()}
    for key, error in errors.items():
        seen = np.isfinite(error)
        whose = "" if key == "ours" else f", {key}"
        figures[f"NME, {len(error)} faces of {judged}{whose}"] = mean_figure(error[seen], unit="%", digits=2)
        figures[f"FR@10 %, misses counted{whose}"] = share(~(error <= FAILED))
        figures[f"faces missed by the detector{whose}"] = share(~seen)
    figures |= flicker_rows(config, samples, finders)
    if config.plots:
        folder = Path(config.plots)
        plots.cumulative_errors(folder / "landmark_errors.png", errors)
        draw_sheet(folder / "landmarks.png", config, samples, errors["ours"])
    return figures


def our_points(config: EvaluationConfig, size: tuple[int, int]) -> FindPoints:
    """Landmarks (5, 2) of the face nearest a picture's centre, through our detector and landmark network."""
    detector, landmarks = engine(config, "detector", size), engine(config, "landmarks")

    def find(image: Image) -> Floats | None:
        box = central_face(detector, image, min_score=0.2)
        return None if box is None else find_landmarks(landmarks, [image], box[None])[0][0]

    return find


def yunet_points(config: EvaluationConfig) -> FindPoints:
    yunet = YuNet(config.yunet)

    def find(image: Image) -> Floats | None:
        rows = yunet.rows(image)
        rows = rows[rows[:, 14] >= 0.2]
        if not len(rows):
            return None
        away = np.linalg.norm(rows[:, :2] + rows[:, 2:4] / 2 - np.array(image.shape[1::-1]) / 2, axis=1)
        points: Floats = rows[int(away.argmin()), 4:14].reshape(5, 2)
        return points

    return find


def face_errors(found: list[Floats | None], truth: Floats) -> np.ndarray:
    """Mean point error over the interocular distance of each face (N,); infinite where none was found."""
    errors = np.full(len(truth), np.inf)
    for i, points in enumerate(found):
        if points is not None:
            errors[i] = np.linalg.norm(points - truth[i], axis=1).mean() / interocular(truth[i])
    return errors


def interocular(points: Floats) -> float:
    return float(np.linalg.norm(points[0] - points[1]))


def flicker_rows(
    config: EvaluationConfig, samples: LandmarkSamples, finders: dict[str, FindPoints]
) -> Figures:
    """How far points jump from frame to frame though the face stands still: in % of the interocular distance.

    A held-out photo is held still for 13 frames, each with sensor noise of its own (6 grey levels),
    coded as H.264 (crf 18) and decoded, which leaves 3 grey levels from frame to frame; the first is left
    out. The interval is over faces. In the clip of three talking people, slow movement is taken out by the
    second difference, which for pure jitter is the square root of 3 larger than the first.
    """
    rng = np.random.default_rng(SEED)
    chosen = rng.permutation(len(samples.images))[:STILL_FACES]
    clips = [coded(samples.images[i], rng) for i in chosen]
    figures: Figures = {}
    for key, find in finders.items():
        whose = "" if key == "ours" else f", {key}"
        still = [flicker([find(frame) for frame in frames]) for frames in clips]
        values = np.array([value for value in still if value is not None])
        label = f"flicker of {len(values)} faces held still (noise, H.264){whose}"
        figures[label] = mean_figure(values, unit="%", digits=2)
    if config.video:
        jitter = clip_jitter(config)
        figures[f"flicker in {CLIP}, {len(jitter)} steps"] = mean_figure(jitter, unit="%", digits=2)
    return figures


def flicker(points: list[Floats | None]) -> float | None:
    """Mean distance between the points of consecutive frames, over the interocular distance."""
    pairs = [(a, b) for a, b in itertools.pairwise(points) if a is not None and b is not None]
    if not pairs:
        return None
    steps = [np.linalg.norm(b - a, axis=1).mean() / interocular(a) for a, b in pairs]
    return float(np.mean(steps))


def coded(picture: Image, rng: np.random.Generator) -> list[Image]:
    """The picture as a still clip from a noisy camera: coded, decoded, without the first frame."""
    import av

    picture = picture[
        : picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2
    ]  # the codec has even sides alone
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": QUALITY, "preset": "fast"})
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 25)
        stream.height, stream.width = picture.shape[:2]
        for _ in range(STILL_FRAMES):
            noisy = np.clip(picture + rng.normal(0, SENSOR_NOISE, picture.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="bgr24")))
        container.mux(stream.encode())
    memory.seek(0)
    with av.open(memory) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)][1:]


def clip_jitter(config: EvaluationConfig) -> np.ndarray:
    """Jitter of every face and frame of the clip of three people, as a share of the interocular distance."""
    detector, landmarks = engine(config, "detector", (640, 384)), engine(config, "landmarks")
    places: list[list[Floats]] = []
    values = []
    for image in clip_frames(Path(config.video) / f"{CLIP}.mp4"):
        places = ([*places, points_of(detector, landmarks, image)])[-3:]
        if len(places) == 3:
            values += [
                value for now in places[1] if (value := second_step(places[0], now, places[2])) is not None
            ]
    return np.array(values)


def clip_frames(path: Path) -> Iterator[Image]:
    import av

    with av.open(path) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="bgr24")


def points_of(detector: Engine, landmarks: Engine, image: Image) -> list[Floats]:
    boxes = detect(detector, [image])[0].boxes_xyxy
    return list(find_landmarks(landmarks, [image] * len(boxes), boxes)[0])


def second_step(before: list[Floats], now: Floats, after: list[Floats]) -> float | None:
    """Mean size of p[-1] - 2 p[0] + p[+1] over sqrt(3); None where the face is not in both neighbours."""
    size = interocular(now)
    near = [[p for p in places if np.abs(p - now).max() < size / 2] for places in (before, after)]
    if not all(near):
        return None
    bend = near[0][0] - 2 * now + near[1][0]
    return float(np.linalg.norm(bend, axis=1).mean() / np.sqrt(3) / size)


def draw_sheet(path: Path, config: EvaluationConfig, samples: LandmarkSamples, errors: np.ndarray) -> None:
    """Sixteen faces spread over the ranks of error, the last eight among the worst, as the network sees them."""
    order = np.argsort(errors)
    order = order[np.isfinite(errors[order])]
    good, bad = np.linspace(0, len(order) * 0.95 - 1, 16).astype(int), np.arange(1, 9)
    chosen = [*order[good], *order[-bad[bad <= len(order)]]]
    detector, landmarks = engine(config, "detector", PICTURE), engine(config, "landmarks")
    crops, maps, points, truths = [], [], [], []
    for i in chosen:
        box = central_face(detector, samples.images[i], min_score=0.2)
        assert box is not None
        crop, matrix = landmark_crop(samples.images[i], box)
        crops.append(crop)
        maps.append(landmarks(crop[None])["heatmaps"][0])
        found, _ = find_landmarks(landmarks, [samples.images[i]], box[None])
        points.append(transform_points(found[0], matrix))
        truths.append(transform_points(samples.points[i], matrix))
    plots.landmark_sheet(path, crops, maps, points, truths, [float(errors[i]) for i in chosen])
