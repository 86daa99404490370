"""Engines that torch runs, on the CPU or on an NVIDIA GPU: arrays in and out, or tensors that stay there."""

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import MienError
from engines.request import EngineRequest
from engines.spec import ModelSpec

Run = Callable[[Tensor], Sequence[Tensor]]
WARM_UP = 3  # calls before a capture: libraries choose their kernels and take their workspaces


class TorchEngine:
    """An Engine over `run`, which takes (N, H, W, 3) uint8 on `device`."""

    graphs = True  # whether a GPU is given CUDA graphs; a benchmark switches it off for all

    def __init__(self, run: Run, request: EngineRequest, spec: ModelSpec) -> None:
        self.spec = spec
        self.backend = request.backend
        self.device = request.device
        self.precision = request.precision
        self.input_size = request.size
        self._max_batch = request.max_batch
        self._plain = run
        if (request.device, request.precision) == ("cuda", "f32"):
            torch.backends.cudnn.allow_tf32 = (
                False  # torch's default for convolutions: 10 bits of mantissa, not 23
            )
        graphed = self.graphs and request.device == "cuda"
        self.captured_sizes = sizes(request.max_batch) if graphed else ()
        self._run = Bucketed(run, request.max_batch, capture) if graphed else run

    def without_graphs(self) -> "TorchEngine":
        """The same engine, every kernel launched by itself: to measure what CUDA graphs are worth."""
        other = copy(self)
        other._run = self._plain
        return other

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        images = torch.from_numpy(np.ascontiguousarray(batch))
        if self.device == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        return {name: value.cpu().numpy() for name, value in self.on_device(images).items()}

    @torch.inference_mode()
    def on_device(self, images: Tensor) -> dict[str, Tensor]:
        """The same without leaving the device: (N, H, W, 3) uint8 there -> outputs there."""
        parts = [self._run(images[i : i + self._max_batch]) for i in range(0, len(images), self._max_batch)]
        whole = parts[0] if len(parts) == 1 else [torch.cat(each) for each in zip(*parts, strict=True)]
        return dict(zip(self.spec.outputs, whole, strict=True))


def sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4 ... and `max_batch`."""
    powers = (1 << n for n in range(max_batch.bit_length()))
    return (*(power for power in powers if power < max_batch), max_batch)


class Bucketed:
    """Runs at `sizes` only, each captured once; `capture` makes a run of one size."""

    def __init__(self, run: Run, max_batch: int, capture: Callable[[Run, Tensor], Run]) -> None:
        self._run, self._capture = run, capture
        self._sizes = sizes(max_batch)
        self._captured: dict[int, Run] = {}

    def __call__(self, images: Tensor) -> list[Tensor]:
        count = len(images)
        size = next(size for size in self._sizes if size >= count)
        if size not in self._captured:
            example = torch.zeros((size, *images.shape[1:]), dtype=images.dtype, device=images.device)
            try:
                self._captured[size] = self._capture(self._run, example)
            except torch.OutOfMemoryError:
                raise MienError(
                    f"the GPU's memory is too small for batches of {size}; "
                    f"set engines.max_batch: {max(1, size // 2)}, or free memory there"
                ) from None
        # Cloned: the next replay writes into the same memory.
        return [value[:count].clone() for value in self._captured[size](images)]


def capture(run: Run, static: Tensor) -> Run:
    """`run` at the size of `static` as one CUDA graph: a replay costs one launch. Fewer rows are allowed."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile: a camera is added while the others are watched.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = run(static)

    def replay(images: Tensor) -> Sequence[Tensor]:
        static[: len(images)].copy_(images, non_blocking=True)
        graph.replay()
        return outputs

    return replay
