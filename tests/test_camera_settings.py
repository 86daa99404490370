"""Settings of one camera, at the start and while the daemon runs: region, thresholds, stages, sizes."""

from __future__ import annotations

from itertools import islice

import cv2
import numpy as np
import pytest

from daemon.config import CameraConfig
from daemon.pipelines import PipelinesByCamera
from daemon.region import region_views, shifted
from daemon.sources import read_source
from engines.stages import Detections
from tests.fakes import ANN, BOB, fake_engines, frame, scene
from tests.test_pipeline import config_of, events_of, faces_of, pipeline_of

STAY = scene((ANN, 30, 60), (BOB, 220, 60))


def frames(num, start=0, camera="door", image=STAY):
    return [frame(image, index, camera) for index in range(start, start + num)]


def camera(name="door", **settings):
    return CameraConfig(name=name, source="x.mp4", **settings)


def centres(event):
    return sorted((face.box_xyxy[0] + face.box_xyxy[2]) / 2 for face in event.faces)


def test_faces_are_looked_for_in_the_region_alone_and_told_in_pixels_of_the_frame():
    whole = faces_of(events_of(pipeline_of(), frames(4)))[-1]
    right = faces_of(events_of(pipeline_of(config=config_of(camera={"roi": [0.5, 0, 1, 1]})), frames(4)))[-1]

    assert 2 == len(whole.faces)
    assert centres(whole)[1:] == pytest.approx(centres(right), abs=4)
    assert (320, 192) == (right.frame.width, right.frame.height)


@pytest.mark.parametrize("roi", [(0.0, 0.0, 1.0, 1.0), (0.99, 0.99, 1.0, 1.0), (0.0, 0.25, 0.5, 0.75)])
def test_a_region_is_within_the_frame_and_never_empty(roi):
    image = np.zeros((10, 10, 3), np.uint8)
    (view,), ((x, y),) = region_views([image], [camera(roi=roi)])

    assert min(view.shape[:2]) >= 1
    assert x + view.shape[1] <= 10 and y + view.shape[0] <= 10


def test_what_is_found_in_a_region_is_moved_to_its_place():
    found = Detections(np.array([[1, 2, 3, 4]], np.float32), np.ones(1, np.float32))

    np.testing.assert_array_equal([[11, 22, 13, 24]], shifted(found, (10, 20)).boxes_xyxy)


def test_a_camera_has_its_own_thresholds():
    strict = pipeline_of(config=config_of(camera={"identity_threshold": 1.0}))
    blind = pipeline_of(config=config_of(camera={"detect_threshold": 1.0}))

    identities = [face.identity for face in faces_of(events_of(strict, frames(20)))[-1].faces]
    assert {None} == {identity.name for identity in identities}
    assert {1.0} == {identity.threshold for identity in identities}
    assert not faces_of(events_of(blind, frames(4)))


def test_settings_change_while_tracks_go_on():
    pipeline = pipeline_of()
    before = faces_of(events_of(pipeline, frames(20)))[-1]
    pipeline.add_camera(camera(identity=False, emotion=False))
    after = faces_of(events_of(pipeline, frames(3, start=20)))[-1]
    pipeline.add_camera(camera())
    again = faces_of(events_of(pipeline, frames(20, start=23)))[-1]

    assert "Ann" in {face.identity.name for face in before.faces}
    assert all(not hasattr(face.identity, "name") for face in after.faces)
    assert "Ann" in {face.identity.name for face in again.faces}
    assert 1 == len({tuple(face.track for face in event.faces) for event in (before, after, again)})


def test_a_camera_that_needs_another_pipeline_takes_its_tracks_along():
    near, far = pipeline_of(engines=fake_engines()), pipeline_of(engines=fake_engines())
    both = PipelinesByCamera(
        {"door": near}, choose=lambda settings: far if settings.detector_size == (1280, 736) else near
    )
    before = faces_of(events_of(both, frames(5)))[-1]
    both.add_camera(camera(detector_size=(1280, 736)))
    after = faces_of(events_of(both, frames(5, start=5)))[-1]

    assert [face.track for face in before.faces] == [face.track for face in after.faces]
    assert near.release_camera("door") is None


def test_a_camera_that_comes_back_never_gives_a_track_number_twice():
    pipeline = pipeline_of()
    first = faces_of(events_of(pipeline, frames(5)))[-1]
    pipeline.close_camera("door")
    pipeline.add_camera(camera(rotate=90))
    second = faces_of(events_of(pipeline, frames(5, start=5)))[-1]

    assert not {face.track for face in first.faces} & {face.track for face in second.faces}


def test_pictures_of_another_size_end_the_tracks():
    pipeline = pipeline_of()
    events_of(pipeline, frames(5))
    small = scene((ANN, 30, 40), size=(224, 160))

    events = events_of(pipeline, frames(5, start=5, image=small))

    assert ["left", "left"] == [event.phase for event in events if getattr(event, "phase", "") == "left"]
    assert 224 == faces_of(events)[-1].frame.width


def folder_of(tmp_path, num):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :40] = 255  # the left half is white
    for number in range(num):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), image)
    return str(tmp_path)


def test_images_of_a_folder_are_turned_clockwise_as_a_video_is(tmp_path):
    turned = next(read_source(CameraConfig(name="door", source=folder_of(tmp_path, 1), rotate=90))).image

    assert (80, 40, 3) == turned.shape
    assert turned[:40].min() == 255 and turned[40:].max() == 0 and turned.flags["C_CONTIGUOUS"]


def test_images_of_a_folder_are_thinned_as_a_video_is(tmp_path):
    found = read_source(CameraConfig(name="door", source=folder_of(tmp_path, 25), max_fps=5))

    assert [0, 5, 10, 15, 20] == [each.index for each in found]


def test_a_folder_in_a_loop_keeps_to_its_rate(tmp_path):
    once = CameraConfig(name="door", source=folder_of(tmp_path, 1), loop=True, max_fps=5)

    assert [0, 0.2, 0.4, 0.6] == [each.pts_s for each in islice(read_source(once), 4)]
