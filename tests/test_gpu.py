"""The image path and the chain on torch's devices beside cv2's on the host: on the CPU, and on a GPU where one is.

Needs torch, numpy, opencv, safetensors and pytest alone, for a bare machine with a GPU:
`python -m pytest --noconftest tests/test_gpu.py`.
"""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engines.backends.torch_engine import TorchEngine
from engines.calibration import shipped_faces
from engines.geometry import alignment_matrix, attribute_matrix, landmark_matrix
from engines.image_ops import HOST, ops_for
from engines.image_ops_torch import TorchOps
from engines.runtime import load_face_engines
from engines.stages import detect, find_landmarks

ROOT = Path(__file__).parents[1]
CLIPS = [ROOT / "samples/two_people.mp4", *sorted((ROOT.parent / "shared/video").glob("*.mp4"))]
LEVELS = 1  # of 255: OpenCV 5 and torch round a tie differently, and nothing else
# OpenCV 4 warps in steps of 1/32 px. Beside it a GPU is held to torch's own numbers on the CPU.
EXACT = HOST if int(cv2.__version__.partition(".")[0]) >= 5 else TorchOps("cpu")
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
        wanted, scales = EXACT.letterbox(EXACT.take(images), size)
        got, also = ops.letterbox(ops.take(images), size)

        assert scales == also
        assert LEVELS >= levels_apart(EXACT.fetch(wanted), ops.fetch(got))


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

    wanted = EXACT.warp(EXACT.take(pictures), matrices, (112, 112))
    got = ops.warp([taken[id(image)] for image in pictures], matrices, (112, 112))

    assert LEVELS >= levels_apart(EXACT.fetch(wanted), ops.fetch(got))


@needs_gpu
def test_on_a_gpu_the_chain_tells_what_it_tells_on_the_host():
    eager = load_face_engines(backend="eager", device="cpu")
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
