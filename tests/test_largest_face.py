"""The face that a small picture is of."""

import cv2
import numpy as np

from engines.largest_face import largest_face
from tests.fakes import ANN, fake_engines, scene


def test_a_small_picture_s_landmarks_lie_where_they_do_in_it_enlarged():
    engines = fake_engines()
    small = scene((ANN, 24, 14), size=(80, 60), side=32)
    large = cv2.resize(small, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)

    points, enlarged = (largest_face(engines.detector, engines.landmarks, each) for each in (small, large))

    np.testing.assert_allclose(points, (enlarged + 0.5) / 2 - 0.5, atol=1e-3)
