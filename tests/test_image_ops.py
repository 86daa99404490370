"""Both image paths, cv2 on the host and torch on a device, to the same numbers; torch runs on the CPU here."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from daemon.pipeline import FacePipeline
from engines import image_ops_torch
from engines.backends.torch_engine import TorchEngine
from engines.calibration import shipped_faces
from engines.geometry import alignment_matrix, attribute_matrix, landmark_matrix
from engines.image_ops import HOST, ops_for
from engines.image_ops_torch import TorchOps
from engines.runtime import load_face_engines
from engines.stages import classify, detect, embed, find_landmarks
from tests.fakes import fake_engines, frame
from tests.test_pipeline import config_of, faces_of

ROOT = Path(__file__).parents[1]
CLIPS = [ROOT / "samples/two_people.mp4", *sorted((ROOT.parent / "shared/video").glob("*.mp4"))]
LEVELS = 1  # of 255: OpenCV 5 and torch round a tie differently, and nothing else
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


def pictures_of(clip, num, size=None):
    video = cv2.VideoCapture(str(clip))
    images = [video.read()[1] for _ in range(num)]
    video.release()
    return [cv2.resize(image, size) if size else image for image in images]


def levels_apart(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_letterboxes_are_the_same_numbers(clip, device):
    (image,) = pictures_of(clip, 1)
    sizes = [None, (1280, 720), (1920, 1080), (1000, 563), (333, 500), (100, 80), (5000, 1)]
    images = [image if size is None else cv2.resize(image, size) for size in sizes] + [image]
    ops = TorchOps(device)

    for size in ((640, 384), (1280, 736)):
        wanted, scales = HOST.letterbox(images, size)
        got, also = ops.letterbox(ops.take(images), size)

        assert scales == also
        assert LEVELS >= levels_apart(wanted, ops.fetch(got))


@pytest.mark.parametrize("device", DEVICES)
def test_crops_of_faces_in_pictures_of_different_sizes_are_the_same_numbers_in_one_batch(device):
    faces = shipped_faces()
    pictures, matrices = [], []
    for enlarged in (1, 3, 5):  # from three times on, the crops shrink the face and must not alias
        for face in faces:
            image = cv2.resize(face.image, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_CUBIC)
            points = (face.landmarks + 0.5) * enlarged - 0.5
            for move in (0, 90 * enlarged):  # the second lies half outside its picture
                shift = np.float32([[0, 0, 0], [0, 0, 0]])
                shift[:, 2] = move
                matrices.append(landmark_matrix(face.box_xyxy * enlarged + move))
                matrices.append(alignment_matrix(points + move))
                matrices.append(attribute_matrix(points + move))
                pictures += [image] * 3
    ops = TorchOps(device)
    taken = {id(image): there for image, there in zip(pictures, ops.take(pictures), strict=True)}

    wanted = HOST.warp(pictures, matrices, (112, 112))
    got = ops.warp([taken[id(image)] for image in pictures], matrices, (112, 112))

    assert LEVELS >= levels_apart(wanted, ops.fetch(got))


def test_a_batch_of_one_picture_that_is_a_view_is_cut_from_the_right_place():
    (image,) = pictures_of(CLIPS[0], 1)
    ops = TorchOps("cpu")
    (picture,) = ops.take([image])
    matrix = landmark_matrix([50, 60, 190, 200])

    got = ops.warp([picture[100:400, 200:700]], [matrix], (128, 128))

    assert LEVELS >= levels_apart(HOST.warp([image[100:400, 200:700]], [matrix], (128, 128)), ops.fetch(got))


def test_pictures_lie_in_one_memory_and_come_back_as_they_were():
    images = pictures_of(CLIPS[0], 1) + pictures_of(CLIPS[0], 1, (320, 200))
    flat = torch.empty(sum(image.size for image in images), dtype=torch.uint8)

    views = image_ops_torch.parted(flat, [image.shape for image in images])
    for image, view in zip(images, views, strict=True):
        view.copy_(torch.from_numpy(image))

    whole, starts = image_ops_torch._one_memory(views)
    assert [0, images[0].size] == starts and whole.data_ptr() == flat.data_ptr()
    assert all((view.numpy() == image).all() for image, view in zip(images, views, strict=True))


@pytest.fixture(scope="module")
def eager():
    return load_face_engines(backend="eager", device="cpu", threads=1)


class CountingOps(TorchOps):
    """Counts how often the host waits for the device."""

    waits = 0

    def _on_host(self, tensors):
        self.waits += 1
        return super()._on_host(tensors)


def test_the_whole_chain_tells_the_same_by_both_paths(eager):
    door, yard = (
        pictures_of(CLIPS[0], 5),
        pictures_of(CLIPS[-1], 5, (1280, 720) if len(CLIPS) == 1 else None),
    )
    config = config_of(cameras=("door", "yard"), publish={"embeddings": True})

    def told(ops):
        pipeline = FacePipeline(eager, config, NoGallery(), every_frame=True, ops=ops)
        batches = [
            [frame(a, i, "door"), frame(b, i, "yard")]
            for i, (a, b) in enumerate(zip(door, yard, strict=True))
        ]
        events = []
        for batch in batches:
            before = getattr(ops, "waits", 0)
            events += pipeline.process(batch)
            # boxes, landmarks, crops for the quality gate, embeddings, attributes: whatever the number of faces
            assert getattr(ops, "waits", 0) - before <= 5
        return faces_of(events)

    wanted, got = told(HOST), told(CountingOps("cpu"))

    assert len(wanted) >= 6 and sum(len(event.faces) for event in wanted) >= 12
    assert [(e.camera, e.frame.index) for e in wanted] == [(e.camera, e.frame.index) for e in got]
    for one, other in zip(wanted, got, strict=True):
        assert len(one.faces) == len(other.faces)
        for a, b in zip(one.faces, other.faces, strict=True):
            assert (a.track, a.gender, a.max_emotion, a.quality.usable) == (
                b.track,
                b.gender,
                b.max_emotion,
                b.quality.usable,
            )
            assert np.abs(np.subtract(a.box_xyxy, b.box_xyxy)).max() <= 0.2  # px
            side = max(np.subtract(a.box_xyxy[2:], a.box_xyxy[:2]))
            # A large face is shrunk for its landmarks: a quarter of a percent of it is half a pixel in 200.
            assert np.abs(np.subtract(a.landmarks, b.landmarks)).max() <= max(0.2, 0.0025 * side)
            assert abs(a.age - b.age) <= 0.2  # years
            assert abs(a.gender_score - b.gender_score) <= 0.01
            assert np.dot(a.embedding, b.embedding) >= 0.9995


class NoGallery:
    def snapshot(self):
        from daemon.looks import EMPTY_SNAPSHOT

        return EMPTY_SNAPSHOT


def test_an_engine_takes_tensors_and_leaves_its_answers_on_the_device(eager):
    crops = torch.zeros((3, 112, 112, 3), dtype=torch.uint8)

    on_device = eager.embedder.on_device(crops)["embedding"]

    assert isinstance(on_device, torch.Tensor)
    assert (eager.embedder(crops.numpy())["embedding"] == on_device.numpy()).all()


def test_a_user_s_model_that_takes_arrays_is_given_arrays():
    engines = fake_engines()
    crops = torch.full((2, 112, 112, 3), 100, dtype=torch.uint8)

    assert (2, 16) == embed(engines.embedder, crops, ops=TorchOps("cpu")).shape
    assert (2,) == classify(engines.attributes, crops, ops=TorchOps("cpu")).age_years.shape


def test_pictures_stay_on_the_host_unless_every_engine_runs_on_a_gpu():
    mixed = fake_engines()
    mixed.detector.device = "cuda"

    assert ops_for(fake_engines()) is HOST
    assert ops_for(mixed) is HOST


@needs_gpu
def test_on_a_gpu_the_chain_tells_what_it_tells_on_the_host(eager):
    gpu = load_face_engines(backend="eager", device="cuda", precision="f32")
    ops = ops_for(gpu)
    images = pictures_of(CLIPS[0], 3)
    taken = ops.take(images)
    assert isinstance(ops, TorchOps) and isinstance(gpu.detector, TorchEngine)

    wanted, got = detect(eager.detector, images), detect(gpu.detector, taken, ops=ops)
    for image, there, a, b in zip(images, taken, wanted, got, strict=True):
        assert np.abs(a.boxes_xyxy - b.boxes_xyxy).max() < 0.5
        points, _ = find_landmarks(eager.landmarks, [image] * len(a), a.boxes_xyxy)
        also, _ = find_landmarks(gpu.landmarks, [there] * len(b), a.boxes_xyxy, ops=ops)
        assert np.abs(points - also).max() < 0.5


@needs_gpu
def test_page_locked_memory_is_written_again_only_when_it_has_been_copied():
    ops = TorchOps("cuda")
    batches = [np.full((2, 1080, 1920, 3), i, np.uint8) for i in range(20)]

    taken = [ops.take(list(batch)) for batch in batches]

    assert list(range(20)) == [int(pictures[1].max()) for pictures in taken]
    assert all(a is not b for a, b in pairwise(taken))


def test_the_chain_on_the_host_never_loads_torch():
    code = (
        "import sys; from tests.test_pipeline import *; from engines.image_ops import ops_for;"
        "assert faces_of(events_of(pipeline_of(), walk(STAY, num=4)));"
        "print([name for name in ('torch', 'torchvision') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert "[]" == result.stdout.strip()
