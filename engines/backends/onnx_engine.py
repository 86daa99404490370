"""A user's ONNX model in a stage's place: its own batch kept, its outputs decoded to the stage's."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engines.errors import MienError
from engines.onnx_spec import Floats, OnnxSpec
from engines.request import EngineRequest
from engines.spec import ModelSpec


class OnnxEngine:
    """An Engine over `run`, which takes (N, H, W, 3) uint8 BGR of the file's own batch and returns its outputs."""

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], list[Floats]],
        onnx_spec: OnnxSpec,
        request: EngineRequest,
        spec: ModelSpec,
    ) -> None:
        self.spec = spec
        self.backend = request.backend
        self.device = request.device
        self.precision = request.precision
        self.input_size = request.size
        self._onnx_spec = onnx_spec
        self._run = run
        self._most = onnx_spec.batch or request.max_batch  # pictures a call

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, Floats]:
        parts = [self._part(batch[i : i + self._most]) for i in range(0, len(batch), self._most)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _part(self, pictures: NDArray[np.uint8]) -> dict[str, Floats]:
        """One call; where pictures are fewer than the file's batch, the last is repeated."""
        count = len(pictures)
        own = self._onnx_spec.batch or count
        if count < own:
            pictures = np.concatenate((pictures, np.repeat(pictures[-1:], own - count, 0)))
        values = [np.asarray(value, np.float32) for value in self._run(pictures)]  # a float16 file's overflow
        try:
            decoded = self._onnx_spec.decode(values, self.input_size)
        except ValueError as error:
            shapes = ", ".join(str(value.shape) for value in values)
            raise MienError(
                f"{self._onnx_spec.onnx}: outputs of shapes {shapes} are not what decoding "
                f"{self._onnx_spec.decoding!r} takes ({error}); correct {self._onnx_spec.path.name}"
            ) from None
        self._onnx_spec.check_decoded(decoded, self.input_size, own)
        return {name: value[:count] for name, value in decoded.items()}
