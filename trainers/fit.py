"""One training loop for every recipe: Lightning, bf16, AdamW, a warmed-up cosine, averaged weights, resume.

Every sample and step has a seed of its own, which `fit.seed` begins: a run that was killed and resumed ends as one
that was not.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler

from engines.errors import MienError, UsageError
from engines.machine import why_no_gpu
from trainers.callbacks import METRICS_FILE, Kept, NextEpoch, Patience, figures_of, write_figures
from trainers.clock import Clock
from trainers.held import held_batches
from trainers.precision import precision_of
from trainers.run_loggers import make_logger
from trainers.zips import SEED

LEAST = {
    "epochs": 1,
    "steps_per_epoch": 0,
    "batch_size": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "ema_decay": 0,
}
LEAST |= {"workers": 0, "threads": 0, "patience": 0, "devices": 1, "seed": 0}
SMALLEST = 32  # px: networks halve their images up to five times
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
# What Lightning's processes are told by.
LAUNCHED_WITH = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
    until: float = (
        0.0  # Unix seconds at which training ends, the rate having fallen in time; 0: after `epochs`
    )
    patience: int = 0  # expression: epochs without a lower validation loss, then training ends; 0: never
    accelerator: str = "auto"  # Lightning's: cpu, gpu
    devices: int = 1  # GPUs (or processes on a CPU), by DDP; each takes whole batches of its own
    precision: str = "auto"  # bf16-mixed where it is faster; Lightning's: 32-true, bf16-mixed, 16-mixed
    logger: str = "csv"  # csv, mlflow or tensorboard
    gpu_data: str = "auto"  # pictures held and changed on the device: true, false; auto: on a GPU with room
    seed: int = SEED  # of the first weights, of every sample and step; who is held out does not hang on it

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) < least:
                raise UsageError(f"fit.{name}={value}: must be {least} or more")
        if self.ema_decay >= 1:
            raise UsageError(f"fit.ema_decay={self.ema_decay}: must be below 1")
        for name, known in (("accelerator", ACCELERATORS), ("precision", PRECISIONS)):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"fit.{name}={value}: is none of {', '.join(known)}")


def check_machine(options: FitOptions) -> None:
    """Raises UsageError for more GPUs than there are, before anything is read."""
    gpus = torch.cuda.device_count()
    if options.accelerator in ("gpu", "cuda") and not gpus:
        raise UsageError(f"fit.accelerator={options.accelerator}: {why_no_gpu() or 'torch sees no GPU'}")
    if options.accelerator != "cpu" and gpus and options.devices > gpus:
        raise UsageError(f"fit.devices={options.devices}: there are {gpus} GPUs here")


class RandomSamples(Dataset):
    """Endless random samples: item i is drawn with a generator of its own, so runs can be repeated."""

    seed = SEED

    def __init__(self, length: int, first: int = 0) -> None:
        self.length = length
        self.first = first  # moved on by each epoch, so that no epoch repeats another

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple:
        return self.sample(np.random.default_rng((self.seed, self.first + index)))

    def sample(self, rng: np.random.Generator) -> tuple:
        raise TypeError("a data set draws its own samples")


class Recipe(L.LightningModule):
    """A network with its loss. Subclasses give `loss(batch) -> (loss, figures)`."""

    def __init__(self, network: nn.Module, options: FitOptions) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.averaged = AveragedModel(
            network, multi_avg_fn=_warmed_average(options.ema_decay), use_buffers=True
        )
        self.averaged.requires_grad_(False)
        self.options = options
        self.clock = Clock(options.until)
        self.small, self.small_share = 0, 0.0  # px of the images in the first part of training, and its share

    def is_small(self) -> bool:
        """Whether images are small yet."""
        return bool(self.small) and self.share_done(self.global_step) < self.small_share

    def small_at_first(self, images: Tensor) -> Tensor:
        """(B, 3, S, S), shrunk in the first part of training."""
        return shrunk(images, self.small if self.is_small() else 0)

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        raise TypeError("a recipe has its own loss")

    def training_step(self, batch: tuple, _: int) -> Tensor:
        loss, figures = self.loss(batch)
        named = {"loss": loss.detach(), **figures}
        self.log_dict(
            named, prog_bar=True, on_step=False, on_epoch=True, sync_dist=self.trainer.world_size > 1
        )
        return loss

    def validation_loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`, of the averaged network; only for recipes that are given a validation set."""
        raise TypeError("a recipe with a validation set says how it is judged")

    def validation_step(self, batch: tuple, _: int) -> None:
        loss, figures = self.validation_loss(batch)
        named = {"val_loss": loss, **{f"val_{name}": value for name, value in figures.items()}}
        self.log_dict(named, prog_bar=True, batch_size=len(batch[0]), sync_dist=self.trainer.world_size > 1)

    def on_train_batch_end(self, *_: object) -> None:
        self.averaged.update_parameters(self.network)

    def on_train_epoch_end(self) -> None:
        done, epochs = self.current_epoch + 1, self.trainer.max_epochs or 1
        left = self.clock.to_go(done, epochs)
        write_figures(self.trainer, METRICS_FILE)
        told = f"epoch {done}/{epochs} {self.clock.minutes:.1f} min, {left:.1f} left"
        self.print(f"{told} {figures_of(self.trainer)}", flush=True)

    def configure_optimizers(self) -> dict:
        decayed = [p for p in self.parameters_to_train() if p.ndim > 1]
        plain = [p for p in self.parameters_to_train() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups, self.options.learning_rate, weight_decay=self.options.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_cosine(self.share_done(step))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def share_done(self, step: int) -> float:
        """How much of training is done after `step` batches, 0..1, by count or by the clock."""
        total = self.options.epochs * self.options.steps_per_epoch
        return max(step / total, self.clock.share)

    def parameters_to_train(self) -> list[nn.Parameter]:
        averaged = {id(p) for p in self.averaged.parameters()}
        return [p for p in self.parameters() if id(p) not in averaged and p.requires_grad]


def warm_cosine(progress: float, warm: float = 0.05) -> float:
    """Share of the learning rate at a progress of 0..1: a linear rise, then half a cosine to 1 %."""
    if progress < warm:
        return (progress + 0.002) / (warm + 0.002)
    return 0.01 + 0.495 * (1 + math.cos(math.pi * min(1.0, (progress - warm) / (1 - warm))))


class _EachInTurn(Sampler):
    """The samples of this process among several: every second of two. Asked while training, when it knows which."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length // distributed.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return iter(range(distributed.get_rank(), self.length, distributed.get_world_size()))


def _warmed_average(decay: float) -> Callable:
    """An exponential mean over few steps at first, so that it forgets the weights training began with."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        steps = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, count)

    return update


def fit(recipe: Recipe, samples: RandomSamples, run: Path, validation: Dataset | None = None) -> nn.Module:
    """Train (or resume) in `run`, and return the averaged network in evaluation mode, on the CPU.

    With a validation set it is the one of the epoch with the lowest loss on it.
    """
    options = recipe.options
    cv2.setNumThreads(1)  # the picture work is small: threads of its own would only fight with torch's
    if options.threads:
        torch.set_num_threads(options.threads)
    last, best = run / "last.ckpt", run / "best.ckpt"
    samples.length = options.batch_size * options.steps_per_epoch * options.devices
    samples.seed = options.seed
    if not samples.length:
        raise UsageError("fit.steps_per_epoch=0: must be 1 or more")
    held = held_batches(samples, options)
    if held is None:
        mine = _EachInTurn(len(samples)) if options.devices > 1 else None
        loader = DataLoader(
            samples, options.batch_size, sampler=mine, num_workers=options.workers, drop_last=True
        )
    else:
        loader = DataLoader(held, batch_size=None)
    judged = None if validation is None else DataLoader(validation, options.batch_size)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips are for others
    before = _read(last)
    drawn = samples if held is None else held
    drawn.first = (before["epoch"] + 1) * len(drawn) if before else 0
    if not _is_done(before, options):
        with warnings.catch_warnings(), _one_line_errors(last), _processes_of_its_own():
            _ignore_advice()
            trainer = _trainer(recipe, run, judged is not None)
            trainer.fit(recipe, loader, judged, ckpt_path=last if before else None, weights_only=True)
            if not trainer.is_global_zero:
                raise SystemExit(0)  # the first process writes the checkpoint
    kept = _read(best if judged and best.exists() else last)
    if kept:
        with _one_line_errors(last):
            recipe.load_state_dict(kept["state_dict"])
    return recipe.averaged.module.eval().cpu()


@contextmanager
def _processes_of_its_own() -> Iterator[None]:
    """What a training with several processes leaves behind is taken away, so that the next one starts its own.

    Those run the whole command again: what was trained before they find done, and pass over.
    """
    before = {name: os.environ.get(name) for name in LAUNCHED_WITH}
    try:
        yield
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _trainer(recipe: Recipe, run: Path, judged: bool) -> L.Trainer:
    options = recipe.options
    bar = options.progress and os.isatty(2)
    callbacks: list[L.Callback] = [recipe.clock, NextEpoch(options.seed)]
    if bar:
        callbacks.append(TQDMProgressBar())
    if judged and options.patience:
        callbacks.append(Patience("val_loss", patience=options.patience))
    if judged:
        callbacks.append(Kept(run, "best", "val_loss", enable_version_counter=False, save_weights_only=True))
    callbacks.append(
        Kept(run, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False)
    )
    return L.Trainer(
        default_root_dir=run,
        accelerator=options.accelerator,
        devices=options.devices,
        strategy="ddp_find_unused_parameters_true" if options.devices > 1 else "auto",
        precision=precision_of(options.precision, options.accelerator, run),
        deterministic="warn" if torch.cuda.is_available() and options.accelerator != "cpu" else None,
        max_epochs=options.epochs,
        callbacks=callbacks,
        logger=make_logger(options.logger, run),
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=options.steps_per_epoch,
        use_distributed_sampler=False,  # Lightning's would be in another order once a run is resumed
    )


def _read(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def _is_done(before: dict[str, Any] | None, options: FitOptions) -> bool:
    """Whether the run has had its epochs, or waited for a lower validation loss as long as its patience is."""
    if not before:
        return False
    states = [state for name, state in before["callbacks"].items() if Patience.__name__ in name]
    waited = max((state["wait_count"] for state in states), default=0)
    if options.patience and waited >= options.patience and before["epoch"] + 1 < options.epochs:
        print(
            f"ended after {waited} epochs without a lower validation loss; a larger patience goes on",
            flush=True,
        )
        return True
    return bool(before["epoch"] + 1 >= options.epochs)


def _ignore_advice() -> None:
    # Lightning advises more loader workers; on two cores they would only take time from training.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*but have no `val_dataloader`.*")  # most recipes need none
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # resuming
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen layers
    # Some operations on a GPU have no deterministic form.
    warnings.filterwarnings("ignore", ".*does not have a deterministic implementation.*")


@contextmanager
def _one_line_errors(last: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "loading state_dict" in str(error):
            raise MienError(
                f"{last}: holds a run of another network; choose another run=FOLDER, or delete that one"
            ) from None
        raise


def image_batch(images: Tensor, mean: float = 127.5, std: float = 128.0) -> Tensor:
    """(B, H, W, 3) uint8 BGR -> normalised (B, 3, H, W) float, channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() - mean) / std


def check_small(small: int, size: int) -> None:
    """Raises UsageError where images of `size` px could not begin so small; 0 is as they are."""
    if small and not SMALLEST <= small <= size:
        raise UsageError(f"small={small}: {SMALLEST} to {size} px")


def shrunk(x: Tensor, size: int) -> Tensor:
    """Small images first (Tan and Le 2021, "EfficientNetV2", sec. 4): (B, 3, 112, 112) -> (B, 3, S, S); 0: as is."""
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True) if size else x
