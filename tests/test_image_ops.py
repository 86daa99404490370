"""Both image paths, cv2 on the host and torch on the CPU, through the daemon's chain; tests/test_gpu.py has devices."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from daemon.pipeline import FacePipeline
from engines import image_ops_torch
from engines.geometry import landmark_matrix
from engines.image_ops import HOST, ops_for
from engines.image_ops_torch import TorchOps
from engines.runtime import load_face_engines
from engines.stages import classify, embed
from tests.fakes import fake_engines, frame
from tests.test_gpu import CLIPS, LEVELS, levels_apart, pictures_of
from tests.test_pipeline import config_of, faces_of

ROOT = Path(__file__).parents[1]


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
