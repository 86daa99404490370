"""One training loop for every recipe: Lightning, bf16, AdamW, a warmed-up cosine, averaged weights, resume."""

import logging
import math
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from trainers.zips import SEED


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How long and how fast. One epoch is `steps_per_epoch` batches; training resumes from the last whole one."""

    epochs: int = 10
    steps_per_epoch: int = 200
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    workers: int = 0
    threads: int = 0  # CPU threads; 0 leaves torch's choice
    ema_decay: float = 0.998
    progress: bool = True


class RandomSamples(Dataset):
    """Endless random samples: item i is drawn with a generator of its own, so runs can be repeated."""

    def __init__(self, length: int, first: int = 0) -> None:
        self.length = length
        self.first = first  # moved on by each epoch, so that no epoch repeats another

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple:
        return self.sample(np.random.default_rng((SEED, self.first + index)))

    def sample(self, rng: np.random.Generator) -> tuple:
        raise TypeError("a data set draws its own samples")


class Recipe(L.LightningModule):
    """A network with its loss. Subclasses give `loss(batch) -> (loss, figures)`."""

    def __init__(self, network: nn.Module, options: FitOptions) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.averaged = AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay), use_buffers=True
        )
        self.options = options
        self.started = time.monotonic()

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        raise TypeError("a recipe has its own loss")

    def training_step(self, batch: tuple, _: int) -> Tensor:
        loss, figures = self.loss(batch)
        self.log_dict({"loss": loss.detach(), **figures}, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        self.averaged.update_parameters(self.network)

    def on_train_epoch_end(self) -> None:
        figures = {k: round(float(v), 4) for k, v in self.trainer.callback_metrics.items()}
        minutes = (time.monotonic() - self.started) / 60
        print(
            f"epoch {self.current_epoch + 1}/{self.trainer.max_epochs} {minutes:.1f} min {figures}",
            flush=True,
        )

    def configure_optimizers(self) -> dict:
        decayed = [p for p in self.parameters_to_train() if p.ndim > 1]
        plain = [p for p in self.parameters_to_train() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups, self.options.learning_rate, weight_decay=self.options.weight_decay
        )
        total = self.options.epochs * self.options.steps_per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameters_to_train(self) -> list[nn.Parameter]:
        averaged = {id(p) for p in self.averaged.parameters()}
        return [p for p in self.parameters() if id(p) not in averaged]


def warm_cosine(progress: float, warm: float = 0.05) -> float:
    """Share of the learning rate at a progress of 0..1: a linear rise, then half a cosine to 1 %."""
    if progress < warm:
        return (progress + 0.002) / (warm + 0.002)
    return 0.01 + 0.495 * (1 + math.cos(math.pi * min(1.0, (progress - warm) / (1 - warm))))


class _NextEpoch(L.Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        dataset = trainer.train_dataloader.dataset
        dataset.first = trainer.current_epoch * len(dataset)


def fit(recipe: Recipe, samples: RandomSamples, run: Path) -> nn.Module:
    """Train (or resume) in `run`, and return the averaged network in evaluation mode, on the CPU."""
    options = recipe.options
    cv2.setNumThreads(1)  # the picture work is small: threads of its own would only fight with torch's
    if options.threads:
        torch.set_num_threads(options.threads)
    samples.length = options.batch_size * options.steps_per_epoch
    loader = DataLoader(samples, options.batch_size, num_workers=options.workers, drop_last=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips are for others
    last = run / "last.ckpt"
    keep = ModelCheckpoint(
        run, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks = [keep, _NextEpoch()]
    if options.progress and os.isatty(2):
        callbacks.append(TQDMProgressBar())
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=options.epochs,
        callbacks=callbacks,
        logger=CSVLogger(run, name="log"),
        enable_progress_bar=options.progress and os.isatty(2),
        enable_model_summary=False,
        log_every_n_steps=options.steps_per_epoch,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        # Lightning advises more loader workers; on two cores they would only take time from training.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # resuming
        trainer.fit(recipe, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    return recipe.averaged.module.eval().cpu()


def image_batch(images: Tensor, mean: float = 127.5, std: float = 128.0) -> Tensor:
    """(B, H, W, 3) uint8 BGR -> normalised (B, 3, H, W) float, channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() - mean) / std
