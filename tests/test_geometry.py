"""Crops, alignment, heatmaps and boxes: by round trip wherever one exists."""

import cv2
import numpy as np
import pytest

from engines import geometry as g
from engines.calibration import shipped_faces


def turned(points, degrees, scale, shift):
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points @ rotation.T * scale + shift).astype(np.float32)


def test_a_similarity_is_found_again():
    points = turned(g.TEMPLATE, 25, 2.5, [40, -7])

    matrix = g.similarity_matrix(points, g.TEMPLATE)

    np.testing.assert_allclose(g.transform_points(points, matrix), g.TEMPLATE, atol=1e-3)


def test_a_similarity_does_not_mirror():
    mirrored = g.TEMPLATE * [-1, 1] + [112, 0]

    matrix = g.similarity_matrix(mirrored.astype(np.float32), g.TEMPLATE)

    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    ("method", "exact"), [("similarity", []), ("eyes", [0, 1]), ("eyes_nose", [0, 1, 2])]
)
def test_each_alignment_lays_its_own_points_exactly(method, exact):
    rng = np.random.default_rng(0)
    points = turned(g.TEMPLATE, -15, 1.7, [20, 30]) + rng.normal(0, 3, (5, 2)).astype(np.float32)

    laid = g.transform_points(points, g.alignment_matrix(points, method=method))

    np.testing.assert_allclose(laid[exact], g.TEMPLATE[exact], atol=1e-2)


def test_an_unknown_alignment_is_refused():
    with pytest.raises(ValueError, match="none of similarity"):
        g.alignment_matrix(g.TEMPLATE, method="nose")


def test_eyes_are_as_far_apart_as_the_crop_rules_say():
    recognition = np.linalg.norm(g.TEMPLATE[0] - g.TEMPLATE[1])
    attribute = np.linalg.norm(g.ATTRIBUTE_TEMPLATE[0] - g.ATTRIBUTE_TEMPLATE[1])

    assert (35, 44) == (round(float(recognition)), round(float(attribute)))


def test_the_landmark_crop_is_the_square_of_1_25_times_the_longer_side():
    _, matrix = g.landmark_crop(np.zeros((400, 400, 3), np.uint8), [100, 120, 180, 220])

    back = g.transform_points(
        np.array([[-0.5, -0.5], [127.5, 127.5]], np.float32), cv2.invertAffineTransform(matrix)
    )

    np.testing.assert_allclose(back, [[77, 107], [202, 232]], atol=0.51)


def test_outside_the_picture_the_border_is_replicated():
    image = np.zeros((50, 50, 3), np.uint8)
    image[0] = 200

    crop, _ = g.landmark_crop(image, [10, -30, 40, 0])

    assert crop[0].min() == 200


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.8, 2.0])
def test_warp_keeps_places_whether_it_shrinks_or_grows(factor):
    image = np.zeros((600, 800, 3), np.uint8)
    cv2.circle(image, (500, 300), 40, (255, 255, 255), -1)
    matrix = np.array([[factor, 0, 56 - 500 * factor], [0, factor, 56 - 300 * factor]], np.float32)

    crop = g.warp(image, matrix, (112, 112))

    ys, xs = np.nonzero(crop[..., 0] > 127)
    np.testing.assert_allclose([xs.mean(), ys.mean()], [56, 56], atol=0.6)


def test_warp_does_not_alias_when_it_shrinks():
    checkers = np.indices((640, 640)).sum(0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, 2).astype(np.uint8)

    crop = g.warp(image, np.array([[0.17, 0, 0], [0, 0.17, 0]], np.float32), (100, 100))

    assert abs(float(crop.mean()) - 127) < 3
    assert crop.std() < 12


@pytest.mark.parametrize("factor", [0.12, 0.3, 0.45, 0.5, 0.7])
def test_a_shrunk_photograph_is_what_averaging_areas_makes_of_it(factor):
    photograph = cv2.resize(shipped_faces()[0].image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    height, width = (round(side * factor) for side in photograph.shape[:2])
    wanted = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA).astype(float)

    across, down = width / photograph.shape[1], height / photograph.shape[0]
    matrix = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5]], np.float32)
    warped = g.warp(photograph, matrix, (width, height))
    boxed, _ = g.letterbox(photograph, (width, height))

    inner = slice(2, -2), slice(2, -2)
    assert np.abs(warped - wanted)[inner].mean() < 2.5  # of 255 levels
    assert np.abs(boxed - wanted)[inner].mean() < 2.5


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 3), (501, 2, 3), (37, 53, 3)])
@pytest.mark.parametrize("scale", [0.3, 0.01])
def test_pictures_too_small_or_odd_to_be_halved_so_often_are_warped_all_the_same(shape, scale):
    image = np.full(shape, 77, np.uint8)

    crop = g.warp(image, np.array([[scale, 0, 20], [0, scale, -3]], np.float32), (112, 112))

    assert (112, 112, 3) == crop.shape and (crop == 77).all()


@pytest.mark.parametrize("shape", [(1, 5000, 3), (3, 9000, 3), (7001, 2, 3)])
def test_a_strip_of_a_picture_is_letterboxed(shape):
    canvas, scales = g.letterbox(np.full(shape, 9, np.uint8), (640, 384))

    height, width = (max(1, round(side * min(scales))) for side in shape[:2])
    assert min(scales) < 0.2 and (canvas[:height, :width] == 9).all() and (canvas[height:] == 114).all()


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.7])
def test_a_mirrored_map_cuts_the_mirror_image(scale):
    photograph = cv2.resize(shipped_faces()[0].image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    matrix = np.array([[scale, 0.1 * scale, 5], [-0.1 * scale, scale, 9]], np.float32)

    crop, mirror = (g.warp(photograph, m, (80, 60)) for m in (matrix, g.mirrored(matrix, 80)))

    assert np.abs(crop.astype(int) - mirror[:, ::-1]).mean() < 0.5


def test_a_map_that_lays_everything_on_a_line_is_no_error():
    image = np.full((40, 40, 3), 5, np.uint8)

    assert (g.warp(image, np.zeros((2, 3), np.float32), (112, 112)) == 5).all()


def test_heatmaps_give_their_points_back_to_a_fraction_of_a_pixel():
    rng = np.random.default_rng(0)
    points = rng.uniform(12, 116, (20, 5, 2)).astype(np.float32)

    found, peaks = g.heatmaps_to_points(g.points_to_heatmaps(points, 32))

    np.testing.assert_allclose(found, points, atol=0.05)
    assert peaks.min() > 0.7


def test_a_point_glides_between_two_peaks_that_are_about_as_high():
    either = np.concatenate([g.points_to_heatmaps(np.full((1, 1, 2), at, np.float32), 32) for at in (40, 80)])

    def found(second: float) -> float:
        return float(g.heatmaps_to_points(0.7 * either[:1] + second * either[1:])[0][0, 0, 0])

    just_below, just_above = found(0.699), found(0.701)
    assert abs(just_below - just_above) < 1 and abs(just_below - 60) < 1
    clearly_first, clearly_second = found(0.3), found(1.2)
    assert abs(clearly_first - 40) < 1 and abs(clearly_second - 80) < 2


def test_letterbox_shrinks_to_fit_and_never_enlarges():
    large, halves = g.letterbox(np.full((720, 1280, 3), 9, np.uint8), (640, 384))
    small, ones = g.letterbox(np.full((100, 100, 3), 9, np.uint8), (640, 384))

    assert ((0.5, 0.5), (1.0, 1.0)) == (halves, ones)
    assert (large[:360] == 9).all() and (large[360:] == 114).all()
    assert (small[:100, :100] == 9).all() and (small[100:] == 114).all()


def test_locations_run_row_by_row_finest_stride_first():
    centres, strides = g.location_centres((64, 32), (8, 16, 32))

    assert [8.0] * 32 + [16.0] * 8 + [32.0] * 2 == strides.tolist()
    assert [[4, 4], [12, 4]] == centres[:2].tolist()
    assert [48, 16] == centres[-1].tolist()


def test_iou_of_known_boxes():
    a = np.array([[0, 0, 10, 10]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)

    np.testing.assert_allclose(g.iou_matrix(a, b), [[1, 1 / 3, 0]], atol=1e-6)


def test_nms_keeps_the_best_of_each_heap():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)

    kept = g.nms(boxes, np.array([0.6, 0.9, 0.3], np.float32))

    assert [1, 2] == kept.tolist()
