"""Age, gender and emotion of a track: means over its looks, in the form of the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from daemon.config import CameraConfig
from daemon.records import Emotion, EmotionName, Gender, emotion_record, round_score, round_years
from engines.spec import EMOTIONS

Floats = NDArray[np.float32]
FEMALE: Gender = "female"
MALE: Gender = "male"
EMOTION_NAMES: tuple[EmotionName, ...] = get_args(EmotionName)


@dataclass(frozen=True, slots=True)
class AttributeFields:
    """The contract's fields; UNSET where a camera has them switched off, None where nothing is known yet."""

    age: float | UnsetType | None = UNSET
    gender: Gender | UnsetType | None = UNSET
    gender_score: float | UnsetType | None = UNSET
    max_emotion: EmotionName | UnsetType | None = UNSET
    emotion: Emotion | UnsetType | None = UNSET


class AttributeMeans:
    """What the looks at one track say together.

    Age and gender do not change and are means over the whole track, weighted by quality. Emotion does: it is
    followed with a time constant, and its mean over the track kept beside.
    """

    def __init__(self, smoothing_s: float) -> None:
        self._smoothing_s = smoothing_s
        self._weight = 0.0
        self._age_sum = self._female_sum = 0.0
        self._emotion_sum = np.zeros(len(EMOTIONS))
        self._emotion_now = np.zeros(len(EMOTIONS))
        self.seen_ns: int | None = None

    def add(self, age_years: float, female: float, emotion: Floats, weight: float, time_ns: int) -> None:
        """Takes a look in. female: probability; emotion: (8,) probabilities; weight: how much it counts."""
        weight = max(weight, 1e-3)
        self._weight += weight
        self._age_sum += weight * age_years
        self._female_sum += weight * female
        self._emotion_sum += weight * emotion
        self._emotion_now = self._followed(emotion.astype(np.float64), time_ns)
        self.seen_ns = time_ns

    def _followed(self, emotion: NDArray[np.float64], time_ns: int) -> NDArray[np.float64]:
        if self.seen_ns is None or self._smoothing_s <= 0:
            return emotion
        kept = np.exp(-(time_ns - self.seen_ns) / 1e9 / self._smoothing_s)
        return np.asarray(kept * self._emotion_now + (1 - kept) * emotion)

    def now(self, camera: CameraConfig) -> AttributeFields:
        """As of the newest look."""
        return self._fields(camera, self._emotion_now)

    def over_track(self, camera: CameraConfig) -> AttributeFields:
        """With the mean emotion of the whole track."""
        return self._fields(camera, self._emotion_sum / max(self._weight, 1e-9))

    def _fields(self, camera: CameraConfig, emotion: NDArray[np.float64]) -> AttributeFields:
        if not self._weight:
            return AttributeFields(
                age=None if camera.age else UNSET,
                gender=None if camera.gender else UNSET,
                gender_score=None if camera.gender else UNSET,
                max_emotion=None if camera.emotion else UNSET,
                emotion=None if camera.emotion else UNSET,
            )
        return attribute_fields(
            camera, self._age_sum / self._weight, self._female_sum / self._weight, emotion
        )


def attribute_fields(
    camera: CameraConfig, age_years: float, female: float, emotion: NDArray[np.floating]
) -> AttributeFields:
    """Known values in the form of the contract. female: probability; emotion: (8,) probabilities."""
    gender = FEMALE if female >= 0.5 else MALE
    record = emotion_record([float(p) for p in emotion])
    return AttributeFields(
        age=round_years(max(age_years, 0.0)) if camera.age else UNSET,
        gender=gender if camera.gender else UNSET,
        gender_score=round_score(max(female, 1 - female)) if camera.gender else UNSET,
        max_emotion=EMOTION_NAMES[int(np.argmax(emotion))] if camera.emotion else UNSET,
        emotion=record if camera.emotion else UNSET,
    )
