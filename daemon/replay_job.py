"""What `mien replay` does: every source checked first, then one after the other, then who was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from daemon.config import CameraConfig, Config
from daemon.jsonl import JsonLines
from daemon.pipelines import LoadedPipeline
from daemon.publisher import EventSink, open_publisher
from daemon.replay import Replay, ReplayResult, SourceFailedError, num_frames
from daemon.sources import EPOCH
from engines.errors import MienError, UsageError

Load = Callable[[Config], LoadedPipeline]


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """What is wanted of a replay. `config` holds the videos as its cameras; `annotated` is a file, or a
    folder where there are several videos.
    """

    config: Config
    out: Path | None = None
    annotated: Path | None = None
    publish: bool = False
    start: datetime = EPOCH

    def run(self, load: Load, console: Console) -> list[ReplayResult]:
        """Replays every video. One that cannot be read is told of and the others go on.

        Raises MienError where none can be read, or where what is to be written cannot be.
        """
        totals = self._num_frames(console)
        pipeline = load(self.config).pipeline
        with ExitStack() as stack:
            sinks = self._sinks(stack)
            progress = stack.enter_context(_progress(console))
            results: list[ReplayResult] = []
            failures: list[MienError] = []
            for camera in self.config.cameras:
                if camera.name not in totals:
                    continue
                task = progress.add_task(camera.name, total=totals[camera.name] or None)
                advance = _advancing(progress, task)
                replay = Replay(pipeline, sinks, start=self.start, live=self.publish, told=advance)
                try:
                    results.append(replay.run(camera, self._annotated(camera)))
                except SourceFailedError as error:
                    failures.append(error)
            _tell(failures, console, all_failed=not results)
            return results

    def _num_frames(self, console: Console) -> dict[str, int]:
        """The frames of each video that can be read."""
        totals: dict[str, int] = {}
        failures: list[MienError] = []
        for camera in self.config.cameras:
            try:
                totals[camera.name] = num_frames(camera)
            except MienError as error:
                failures.append(error)
        _tell(failures, console, all_failed=not totals)
        return totals

    def _sinks(self, stack: ExitStack) -> list[EventSink]:
        sinks: list[EventSink] = []
        if self.publish:
            sinks.append(stack.enter_context(open_publisher(self.config.publish, self.config.instance)))
        if self.out is not None:
            sinks.append(stack.enter_context(JsonLines(self.out)))
        return sinks

    def _annotated(self, camera: CameraConfig) -> Path | None:
        if self.annotated is None or len(self.config.cameras) == 1:
            return self.annotated
        return self.annotated / f"{camera.name}.mp4"


def _tell(failures: Sequence[MienError], console: Console, *, all_failed: bool) -> None:
    """A line for each; raised together as one MienError where nothing else came."""
    if all_failed:
        raise MienError("\n".join(str(failure) for failure in failures))
    for failure in failures:
        console.print(f"error: {failure}", markup=False, highlight=False)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _advancing(progress: Progress, task: TaskID) -> Callable[[], None]:
    return lambda: progress.advance(task)


def parsed_start(text: str | None) -> datetime:
    """A moment in RFC 3339, UTC where it names no zone; 1970 for None. Raises UsageError for another text."""
    if text is None:
        return EPOCH
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--start-time {text!r}: not a time; write it as 2026-05-01T08:30:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
