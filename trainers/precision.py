"""`fit.precision=auto`: bf16 where it makes training faster, which on a CPU is timed once a run."""

import time
from pathlib import Path

import torch
from torch import nn

from engines.machine import BF16_FLAGS, cpu_flags
from trainers.whole_file import whole_file

FILE = "precision.txt"  # in the run's folder: a run that is resumed goes on as it began
BF16, F16, F32 = "bf16-mixed", "16-mixed", "32-true"
ROUNDS = 5


def precision_of(asked: str, accelerator: str, run: Path) -> str:
    """Lightning's name for what `fit.precision` asks for."""
    if asked != "auto":
        return asked
    kept = run / FILE
    if not kept.is_file():
        on_gpu = accelerator != "cpu" and torch.cuda.is_available()
        with whole_file(kept) as file:
            file.write((gpu_precision() if on_gpu else BF16 if bf16_is_faster() else F32).encode())
    return kept.read_text(encoding="utf-8")


def recorded_precision(asked: str, run: Path) -> str:
    """The same for a card, of a run that has been."""
    kept = run / FILE
    return kept.read_text(encoding="utf-8") if asked == "auto" and kept.is_file() else asked


def gpu_precision() -> str:
    return BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else F16


def bf16_is_faster() -> bool:
    """Whether this CPU trains a convolution faster in bf16; not asked of one that has no instructions for it."""
    return bool(cpu_flags() & BF16_FLAGS) and step_seconds(torch.bfloat16) < step_seconds(torch.float32)


def step_seconds(dtype: torch.dtype) -> float:
    """The least of ROUNDS steps, forward and back."""
    layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.ones(16, 64, 28, 28).to(memory_format=torch.channels_last)
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = layer(images.requires_grad_())
        out.float().mean().backward()
        times.append(time.perf_counter() - started)
    return min(times[1:])
