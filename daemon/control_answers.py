"""The daemon's side of the control socket: each request and what is done for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from daemon import control_requests as requests
from daemon.config import Config
from daemon.control_requests import AnyRequest
from daemon.gallery import Gallery
from daemon.looks import EnrolledLook, check_fit
from daemon.steering import Steering
from engines.errors import MienError, UsageError
from engines.runtime import spec_of


class ControlAnswers:
    """Answers requests, from the control socket's threads."""

    def __init__(self, config: Config, steering: Steering, status: Callable[[], dict[str, Any]]) -> None:
        self._gallery_path = config.gallery.path
        self._embedder = config.engines.embedder
        self._steering = steering
        self._status = status

    def answer(self, request: AnyRequest) -> Any:
        """What the client is told; raises MienError for what cannot be done."""
        match request:
            case requests.Status():
                return self._status() | {"people": self._num_people()}
            case requests.Reload():
                return asdict(self._steering.reload())
            case requests.CameraAdd(settings):
                return self._steering.add(settings)
            case requests.CameraRemove(name):
                return self._steering.remove(name)
            case requests.CameraRestart(name):
                return self._steering.restart(name)
        return self._of_gallery(request)

    def _num_people(self) -> int | None:
        if not self._gallery_path.exists():
            return 0
        try:
            with Gallery(self._gallery_path) as gallery:
                return len(gallery.people())
        except MienError:
            return None

    def _of_gallery(self, request: AnyRequest) -> Any:
        with Gallery(self._gallery_path) as gallery:
            match request:
                case requests.GalleryPeople():
                    return [asdict(person) for person in gallery.people()]
                case requests.GalleryLooks(name):
                    return [requests.record_of(look) for look in gallery.looks(name)]
                case requests.GalleryEnrol(name, looks):
                    return gallery.enrol(name, self._fitting(looks))
                case requests.GalleryRemove(name):
                    return gallery.remove(name)
                case requests.GalleryCheck():
                    return gallery.check_whole()
                case requests.GalleryBackup():
                    return gallery.content()
                case requests.GalleryRestore(content):
                    return gallery.restore_content(content, gallery.path)
        raise UsageError("this daemon does not know the request; it is older than the command")

    def _fitting(self, records: Sequence[requests.LookRecord]) -> list[EnrolledLook]:
        """Looks that travelled; raises UsageError for one that the daemon's embedder cannot compare."""
        looks = [requests.look_of_record(each) for each in records]
        check_fit(looks, spec_of("embedder", self._embedder))
        return looks
