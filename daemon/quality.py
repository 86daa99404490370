"""Whether a look at a face is good enough to name it and to judge it, and if not, why."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.config import QualityConfig
from daemon.records import Quality, Reason, round_px

Floats = NDArray[np.float32]

FULL_INTEROCULAR_PX = 40.0
"""From this distance between the eyes on, more pixels make a look no better."""

EDGE_PX = 1.0
INNER = slice(16, 96)
"""The part of the aligned crop that is face and not background."""


def assess(
    box_xyxy: Floats,
    score: float,
    landmarks: Floats,
    aligned_crop: NDArray[np.uint8],
    frame_size: tuple[int, int],
    settings: QualityConfig,
) -> Quality:
    """The verdict on one look, its reasons in the order of the contract.

    box_xyxy (4,) and landmarks (5, 2) in px of a frame of (width, height); aligned_crop (112, 112, 3) uint8
    BGR, the recognition crop.
    """
    eyes_px = interocular(landmarks)
    grey = cv2.cvtColor(aligned_crop, cv2.COLOR_BGR2GRAY)[INNER, INNER].astype(np.float32)
    brightness, contrast = (value / 255 for value in _mean_and_deviation(grey))
    dark_or_glaring = not settings.min_brightness <= brightness <= settings.max_brightness
    failed: dict[Reason, bool] = {
        "too_small": eyes_px < settings.min_interocular_px,
        "blurred": sharpness(grey) < settings.min_sharpness,
        "averted": yaw(landmarks) > settings.max_yaw,
        "bad_light": dark_or_glaring or contrast < settings.min_contrast,
        "cut_off": is_cut_off(box_xyxy, frame_size),
        "low_score": score < settings.min_score,
    }
    reasons = tuple(reason for reason, holds in failed.items() if holds)
    return Quality(usable=not reasons, reasons=reasons, interocular_px=round_px(eyes_px))


def interocular(landmarks: Floats) -> float:
    """Distance between the eyes in px."""
    return float(np.hypot(*(landmarks[1] - landmarks[0])))


def yaw(landmarks: Floats) -> float:
    """How far the nose is off the middle of the eyes, along the line through them: 1 is over one eye.

    A head turned by 30 degrees has about 0.6: the nose stands out from the plane of the eyes by half their
    distance.
    """
    across = landmarks[1] - landmarks[0]
    half = max(float(across @ across) / 2, 1e-6)
    return abs(float((landmarks[2] - (landmarks[0] + landmarks[1]) / 2) @ across)) / half


def sharpness(grey: Floats) -> float:
    """Deviation of the Laplacian over the deviation of the grey levels, since a low contrast is no blur.

    grey: (S, S), the inner part of an aligned crop. Photographs have 0.3; 0.08 is left where a Gaussian of a
    twelfth of the distance between the eyes has blurred them.
    """
    _, edges = _mean_and_deviation(cv2.Laplacian(grey, cv2.CV_32F).astype(np.float32, copy=False))
    return edges / max(_mean_and_deviation(grey)[1], 1.0)


def _mean_and_deviation(values: Floats) -> tuple[float, float]:
    mean, deviation = cv2.meanStdDev(values)  # numpy takes five times as long for so few
    return float(mean[0, 0]), float(deviation[0, 0])


def is_cut_off(box_xyxy: Floats, frame_size: tuple[int, int]) -> bool:
    """Whether the box reaches the edge of the frame: part of the face may lie outside."""
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    return min(x1, y1, frame_size[0] - x2, frame_size[1] - y2) < EDGE_PX


def weight(quality: Quality, landmarks: Floats, score: float) -> float:
    """How much one look counts beside others, 0 to 1: by its size, how frontal it is, and its score."""
    size = min(quality.interocular_px / FULL_INTEROCULAR_PX, 1.0)
    frontal = 1 / (1 + 2 * yaw(landmarks) ** 2)
    return size * frontal * score * (1.0 if quality.usable else 0.1)
