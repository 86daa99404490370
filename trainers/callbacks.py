"""What watches a training: when it ends, what it keeps, and where its samples are."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

METRICS_FILE = "metrics.json"  # of the last epoch, in the run's folder
BEST_METRICS_FILE = "best_metrics.json"  # of the one with the lowest validation loss, where there is one


def figures_of(trainer: L.Trainer) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}


def write_figures(trainer: L.Trainer, name: str) -> None:
    if trainer.is_global_zero:
        text = json.dumps(figures_of(trainer))
        (Path(trainer.default_root_dir) / name).write_text(text, encoding="utf-8")


class Patience(EarlyStopping):
    """By the patience of this call, whatever that of the one before; and never while images are still small."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # By all processes alike: a clock may be past the small part in one alone, which would wait for the others.
        if not trainer.strategy.reduce_boolean_decision(pl_module.is_small(), all=False):
            super().on_train_epoch_end(trainer, pl_module)


class Kept(ModelCheckpoint):
    """Checkpoints in the run's folder, the best with its figures, and known wherever the folder was moved."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = self.best_model_score
        super().on_train_epoch_end(trainer, pl_module)
        if self.monitor and (before is None or self.best_model_score < before):
            write_figures(trainer, BEST_METRICS_FILE)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, here = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(path): score for path, score in value.items()}
            return (
                here + value.removeprefix(before)
                if isinstance(value, str) and value.startswith(before)
                else value
            )

        super().load_state_dict({name: moved(value) for name, value in state_dict.items()})


class NextEpoch(L.Callback):
    """Moves the samples on, and seeds what torch draws (dropout) for each step, so that a step can be repeated alone.

    For an epoch it would not do: the loader draws a seed of its own, before or after it on resuming.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        dataset = trainer.train_dataloader.dataset
        dataset.first = trainer.current_epoch * len(dataset)

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        torch.manual_seed(self.seed + trainer.global_step * trainer.world_size + trainer.global_rank)
