"""How long a run has trained, over all its calls, and when it must end."""

import time

import lightning as L


class Clock(L.Callback):
    """Minutes trained, over all calls; ends training when its time has come."""

    def __init__(self, until: float = 0.0) -> None:
        self.until = until
        self.before = 0.0  # minutes of earlier calls
        self.started = time.monotonic()

    @property
    def minutes(self) -> float:
        return self.before + (time.monotonic() - self.started) / 60

    @property
    def share(self) -> float:
        """Of the time there is, 0..1; 0 where it is not limited."""
        return self.minutes / (self.minutes + self.minutes_left) if self.until else 0.0

    @property
    def minutes_left(self) -> float:
        return max(0.0, (self.until - time.time()) / 60)

    def to_go(self, done: int, epochs: int) -> float:
        """Minutes to go after `done` epochs, at the pace so far."""
        going = self.minutes / done * (epochs - done)
        return min(going, self.minutes_left) if self.until else going

    def on_train_start(self, *_: object) -> None:
        self.started = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if self.until and trainer.strategy.reduce_boolean_decision(not self.minutes_left, all=False):
            trainer.should_stop = True  # for all processes at the same batch

    def state_dict(self) -> dict[str, float]:
        return {"minutes": self.minutes}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.before = state_dict["minutes"]
