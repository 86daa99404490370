"""The way of a frame: detect, track, landmarks, align, identify, classify, tell. Read `process` first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import structlog
from numpy.typing import NDArray

from daemon.appearance import appearances
from daemon.attributes import AttributeMeans
from daemon.config import CameraConfig, Config
from daemon.face_events import ended_event, faces_event, track_events
from daemon.followed import HURRY, Followed, Look
from daemon.identity import IdentityVote, threshold_of, without_doubles
from daemon.live_gallery import GallerySource, LiveGallery
from daemon.looks import EMPTY_SNAPSHOT, model_id
from daemon.quality import assess, weight
from daemon.records import Event, Frame, Identity
from daemon.region import region_views, shifted
from daemon.scene import SceneWatch
from daemon.stage_watch import StageWatch
from daemon.tracker import Track, Tracker
from engines.geometry import FACE_SIZE, alignment_matrix, attribute_matrix, fitting_size
from engines.image_ops import HOST, ImageOps, Picture, ops_for
from engines.runtime import FaceEngines
from engines.stages import Detections, classify, detect, embed, find_landmarks

log = structlog.get_logger(__name__)

Floats = NDArray[np.float32]
Pictures = Mapping[str, Picture]  # each camera's frame, where the engines run

CROP = (FACE_SIZE, FACE_SIZE)
WASTE = 0.15  # of the detector's input that may be grey without a word
FAINT_SHARE = 0.6
"""Detections from this share of the threshold on may continue a track, though not begin one."""


@dataclass(slots=True)
class CameraState:
    """One camera's settings, its tracker, who is followed, and frames dropped since the last faces event."""

    config: CameraConfig
    tracker: Tracker
    scene: SceneWatch = field(default_factory=SceneWatch)
    people: dict[int, Followed] = field(default_factory=dict)
    dropped: int = 0
    shape: tuple[int, ...] | None = None
    viewed: tuple[int, ...] | None = None  # shape of what the detector is shown: the frame, or its region


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A followed person's face in a frame, as far as detection tells: box_xyxy (4,) in px."""

    frame: Frame
    person: Followed
    box_xyxy: Floats
    score: float


class FacePipeline:
    """Frames in, events out; the state of all cameras.

    every_frame: every usable face is embedded and classified in every frame, not only when it is due.
    ops: where pictures are cut up; None: where the engines run.
    Raises MienError where the gallery cannot be used with the engines' embedder, or the attributes engine was not
    trained on crops of faces.
    """

    def __init__(
        self,
        engines: FaceEngines,
        config: Config,
        gallery: GallerySource | None = None,
        *,
        every_frame: bool = False,
        ops: ImageOps | None = None,
    ) -> None:
        self._engines = engines
        self._ops = ops or ops_for(engines)
        self._config = config
        self._every_frame = every_frame
        self._detect_threshold = engines.detector.spec.threshold or 0.5
        self._threshold = 1.0
        self._enrolled = EMPTY_SNAPSHOT
        if engines.embedder is not None:
            spec = engines.embedder.spec
            self._threshold = threshold_of(config.identity, spec)
            gallery = gallery or LiveGallery(config.gallery.path, model_id(spec))
        if engines.attributes is not None:
            engines.attributes.spec.check_aligned()
        self._gallery = gallery
        self._cameras: dict[str, CameraState] = {}
        self._owed: list[Event] = []  # of tracks that ended; told even if the batch fails later
        for camera in config.cameras:
            self.add_camera(camera)

    def add_camera(self, camera: CameraConfig) -> list[Event]:
        """Follows a camera from now on; one that is followed gets new settings, and its tracks go on."""
        state = self._cameras.get(camera.name)
        score = self._score_of(camera)
        if state is None:
            self._cameras[camera.name] = CameraState(camera, Tracker(self._config.tracking, score))
            return []
        state.config, state.tracker.start_score = camera, score
        for person in state.people.values():
            wanted = self._names(state)
            person.vote = (person.vote or self._new_vote(camera)) if wanted else None
            if person.vote is not None:
                person.vote.judge_by(self._threshold_of(camera))
            person.attributes = (person.attributes or self._new_means()) if self._judges(state) else None
        return []

    def release_camera(self, camera: str) -> CameraState | None:
        """What is known of a camera, for another pipeline to `adopt`; None where it is not followed here."""
        return self._cameras.pop(camera, None)

    def adopt(self, state: CameraState) -> None:
        """Goes on with a camera of another pipeline: its tracks go on and their numbers are not given again."""
        self._cameras[state.config.name] = state

    def process(self, frames: Sequence[Frame]) -> list[Event]:
        """The events of one batch: at most one frame a camera, each later than the camera's last.

        Where it raises, the ends of tracks are told with the next batch.
        """
        watch = StageWatch()
        self._enrolled = self._gallery.snapshot() if self._gallery else EMPTY_SNAPSHOT
        taken = self._ops.take([frame.image for frame in frames])
        pictures = {frame.camera: picture for frame, picture in zip(frames, taken, strict=True)}
        detections = self._detect(frames, pictures)
        watch.lap("detect")
        sightings = self._track(frames, detections)
        watch.lap("track")
        looks = self._look(sightings, pictures)
        watch.lap("landmarks")
        self._embed(looks)
        watch.lap("embed")
        self._classify(looks, pictures)
        watch.lap("attributes")
        identities = self._identify(frames, looks)
        told = self._tell(frames, looks, identities, watch)
        return self._settled() + told

    def close_camera(self, camera: str) -> list[Event]:
        """Ends a camera's tracks; their numbers are not given again."""
        state = self._cameras[camera]
        state.dropped = 0
        self._end(state, state.tracker.close())
        return self._settled()

    def _detect(self, frames: Sequence[Frame], pictures: Pictures) -> list[Detections]:
        cameras = [self._cameras[frame.camera].config for frame in frames]
        faint = [self._score_of(camera) * FAINT_SHARE for camera in cameras]
        views, corners = region_views([pictures[frame.camera] for frame in frames], cameras)
        for frame, view in zip(frames, views, strict=True):
            self._tell_a_wasteful_size(self._cameras[frame.camera], view.shape)
        found = detect(self._engines.detector, views, min_score=min(faint), ops=self._ops)
        return [
            shifted(_worth_it(each, score, camera.min_face_px), corner)
            for each, score, camera, corner in zip(found, faint, cameras, corners, strict=True)
        ]

    def _tell_a_wasteful_size(self, state: CameraState, shape: tuple[int, ...]) -> None:
        """Says once for each shape of a camera's picture that much of the detector's would be grey."""
        if shape == state.viewed:
            return
        state.viewed = shape
        detector = self._engines.detector
        size, fitting = detector.input_size, fitting_size(detector.input_size, shape)
        spared = 1 - fitting[0] * fitting[1] / (size[0] * size[1])
        if spared >= WASTE and self._ops is HOST and detector.spec.network != "onnx":
            camera = state.config.name
            words = f"{list(fitting)} holds the picture as large: {spared:.0%} less for the detector to do"
            log.info("detector_size", camera=camera, detector_size=list(size), hint=words)

    def _score_of(self, camera: CameraConfig) -> float:
        """The detector's score from which a face of this camera may begin a track."""
        return self._detect_threshold if camera.detect_threshold is None else camera.detect_threshold

    def _track(self, frames: Sequence[Frame], detections: Sequence[Detections]) -> list[Sighting]:
        """Who is seen where; what is to be told of the tracks that ended is owed."""
        sightings: list[Sighting] = []
        for frame, found in zip(frames, detections, strict=True):
            state = self._cameras[frame.camera]
            resized = state.shape not in (None, frame.image.shape)
            state.shape = frame.image.shape
            if state.scene.is_cut(frame.image) or resized:
                self._end(state, state.tracker.close())
            colours = appearances(frame.image, found.boxes_xyxy)
            tracked = state.tracker.update(found, colours, frame.time_ns)
            self._end(state, tracked.ended)
            for track, box, score in zip(tracked.tracks, found.boxes_xyxy, found.scores, strict=True):
                if track is not None:
                    sightings.append(Sighting(frame, self._person(state, track, frame), box, float(score)))
        return sightings

    def _person(self, state: CameraState, track: Track, frame: Frame) -> Followed:
        if track.number not in state.people:
            since = timedelta(microseconds=(frame.time_ns - track.first_ns) // 1000)
            state.people[track.number] = Followed(
                track=track.number,
                started_at=frame.captured_at - since,
                vote=self._new_vote(state.config) if self._names(state) else None,
                attributes=self._new_means() if self._judges(state) else None,
            )
        return state.people[track.number]

    def _names(self, state: CameraState) -> bool:
        return state.config.identity and self._engines.embedder is not None

    def _judges(self, state: CameraState) -> bool:
        wanted = state.config.age or state.config.gender or state.config.emotion
        return wanted and self._engines.attributes is not None

    def _new_vote(self, camera: CameraConfig) -> IdentityVote:
        return IdentityVote(self._config.identity, self._threshold_of(camera))

    def _threshold_of(self, camera: CameraConfig) -> float:
        own = camera.identity_threshold
        return self._threshold if own is None else own

    def _new_means(self) -> AttributeMeans:
        return AttributeMeans(self._config.attributes.smoothing_s)

    def _look(self, sightings: Sequence[Sighting], pictures: Pictures) -> list[Look]:
        """Landmarks, the aligned crop and the quality of every face."""
        if not sightings:
            return []
        boxes = np.stack([sighting.box_xyxy for sighting in sightings])
        images = [pictures[sighting.frame.camera] for sighting in sightings]
        points, _ = find_landmarks(self._engines.landmarks, images, boxes, ops=self._ops)
        matrices = [
            sighting.person.embedded.next_side(alignment_matrix(five), FACE_SIZE)
            for sighting, five in zip(sightings, points, strict=True)
        ]
        crops = self._ops.warp(images, matrices, CROP)
        looks = [
            self._look_at(*each)
            for each in zip(sightings, points, crops, self._ops.fetch(crops), strict=True)
        ]
        for look in looks:
            look.person.see(look)
        return looks

    def _look_at(self, sighting: Sighting, landmarks: Floats, crop: Picture, seen: NDArray[np.uint8]) -> Look:
        """seen: the crop on the host."""
        height, width = sighting.frame.image.shape[:2]
        box, score = sighting.box_xyxy, sighting.score
        quality = assess(box, score, landmarks, seen, (width, height), self._config.quality)
        return Look(
            frame=sighting.frame,
            person=sighting.person,
            box_xyxy=box,
            score=score,
            landmarks=landmarks,
            aligned_crop=crop,
            quality=quality,
            weight=weight(quality, landmarks, score),
        )

    def _embed(self, looks: Sequence[Look]) -> None:
        """Embeds the usable faces that are due."""
        due = [look for look in looks if look.quality.usable and self._is_embedding_due(look)]
        if not due or self._engines.embedder is None:
            return
        crops = self._ops.stack([look.aligned_crop for look in due])
        embeddings = embed(self._engines.embedder, crops, ops=self._ops)
        for look, embedding in zip(due, embeddings, strict=True):
            person = look.person
            person.embedded.note(look)
            if person.vote is not None and person.vote.add(embedding, look.weight) and person.attributes:
                person.attributes = self._new_means()

    def _is_embedding_due(self, look: Look) -> bool:
        vote = look.person.vote
        if vote is None or not (self._config.publish.embeddings or self._enrolled.names):
            return False
        hurry = 1 if vote.is_decided else HURRY
        interval_s = self._config.identity.interval_s / hurry
        rules = self._config.attributes
        return self._every_frame or look.person.embedded.is_due(
            look, interval_s, rules.quality_gain, rules.growth
        )

    def _classify(self, looks: Sequence[Look], pictures: Pictures) -> None:
        """Reads age, gender and emotion of the usable faces that are due."""
        due = [look for look in looks if look.quality.usable and self._is_classifying_due(look)]
        if not due or self._engines.attributes is None:
            return
        images = [pictures[look.frame.camera] for look in due]
        size, room = self._engines.attributes.input_size, self._engines.attributes.spec.room
        matrices = [
            look.person.classified.next_side(attribute_matrix(look.landmarks, size[0], room), size[0])
            for look in due
        ]
        crops = self._ops.warp(images, matrices, size)
        scores = classify(self._engines.attributes, crops, ops=self._ops)
        for i, look in enumerate(due):
            look.person.classified.note(look)
            if look.person.attributes is not None:
                age, female = float(scores.age_years[i]), float(scores.female[i])
                look.person.attributes.add(age, female, scores.emotion[i], look.weight, look.frame.time_ns)

    def _is_classifying_due(self, look: Look) -> bool:
        if look.person.attributes is None:
            return False
        rules = self._config.attributes
        return self._every_frame or look.person.classified.is_due(
            look, rules.interval_s, rules.quality_gain, rules.growth
        )

    def _identify(self, frames: Sequence[Frame], looks: Sequence[Look]) -> dict[int, Identity]:
        """Who is in each look, by its id(); in one frame nobody is in two places."""
        settled: dict[int, Identity] = {}
        for frame in frames:
            here = [(look, look.person.vote) for look in looks if look.frame is frame]
            voted = [(look, vote.decide(self._enrolled)) for look, vote in here if vote is not None]
            unique = without_doubles([identity for _, identity in voted])
            settled |= {id(look): identity for (look, _), identity in zip(voted, unique, strict=True)}
        return settled

    def _tell(
        self,
        frames: Sequence[Frame],
        looks: Sequence[Look],
        identities: dict[int, Identity],
        watch: StageWatch,
    ) -> list[Event]:
        events: list[Event] = []
        for frame in frames:
            state = self._cameras[frame.camera]
            state.dropped += frame.dropped
            here = [look for look in looks if look.frame is frame]
            for look in here:
                events += track_events(look, identities.get(id(look)), state.config)
            if here or self._config.publish.empty_frames:
                latency_ms = watch.latency_ms(frame.monotonic_ns)
                told = [identities.get(id(look)) for look in here]
                publish = self._config.publish
                events.append(
                    faces_event(frame, state.config, here, told, state.dropped, latency_ms, publish)
                )
                state.dropped = 0
        return events

    def _end(self, state: CameraState, tracks: Sequence[Track]) -> None:
        people = [state.people.pop(track.number, None) for track in tracks]
        self._owed += [ended_event(each, state.config) for each in people if each and each.announced]

    def _settled(self) -> list[Event]:
        owed, self._owed = self._owed, []
        return owed


def _worth_it(found: Detections, min_score: float, min_face_px: float) -> Detections:
    sides = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).max(1, initial=0)
    chosen = (sides >= min_face_px) & (found.scores >= min_score)
    return Detections(found.boxes_xyxy[chosen], found.scores[chosen])
