"""A user's ONNX model through TensorRT's own parser, and a plain runner of the engine that comes out."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import MienError
from engines.onnx_spec import Floats, OnnxSpec
from engines.request import EngineRequest
from engines.spec import ModelSpec

if TYPE_CHECKING:
    from engines.backends.onnx_engine import OnnxEngine
    from engines.source import Source

PLAN_FILE = "model.plan"
# torch's name of what a tensor of a plan may hold, by TensorRT's.
TORCH_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
FED = ("FLOAT", "HALF", "BF16")


def library() -> Any:
    """The module tensorrt, or tensorrt_rtx, which offers the same."""
    return importlib.import_module("tensorrt_rtx" if importlib.util.find_spec("tensorrt_rtx") else "tensorrt")


def save(source: "Source", folder: Path) -> None:
    """Parse and build. Raises MienError where the file's shapes are not its spec's, or it does not convert."""
    (folder / PLAN_FILE).write_bytes(plan(source.onnx_spec, source.request))


def plan(spec: OnnxSpec, request: EngineRequest) -> bytes:
    """The serialised engine of an ONNX file, in the precision that the file has."""
    trt = library()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(spec.onnx)):
        told = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise MienError(f"{spec.onnx}: TensorRT's ONNX parser does not take it: {told}")
    if network.num_inputs != 1:
        raise MienError(f"{spec.onnx}: has {network.num_inputs} inputs, a stage's model has one")
    if (given := network.get_input(0).dtype.name) not in FED:
        raise MienError(
            f"{spec.onnx}: its input is {TORCH_TYPES.get(given, given)}; a picture is fed as floats"
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # what is float32 in the file is computed in it
    config.add_optimization_profile(_profile(builder, network.get_input(0), spec, request))
    _keep_outputs(network, spec)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise MienError(f"{spec.onnx}: TensorRT could not build it; its own words are above")
    return bytes(built)


def _profile(builder: Any, given: Any, spec: OnnxSpec, request: EngineRequest) -> Any:
    most = spec.batch or request.max_batch
    shapes = [
        spec.input_shape(request.size, batch) for batch in (spec.batch or 1, spec.batch or min(8, most), most)
    ]
    found = tuple(given.shape)
    fits = len(found) == 4 and all(f in (-1, w) for f, w in zip(found, shapes[-1], strict=True))
    if not fits or (spec.batch is None and found[0] != -1):
        raise MienError(
            f"{spec.onnx}: its input is {list(found)}, {spec.path.name} says {list(shapes[-1])} "
            f"({spec.layout}, input_size, batch); correct the spec"
        )
    profile = builder.create_optimization_profile()
    profile.set_shape(given.name, *shapes)
    return profile


def _keep_outputs(network: Any, spec: OnnxSpec) -> None:
    available = [network.get_output(i) for i in range(network.num_outputs)]
    wanted = spec.output_names(tuple(sorted(output.name for output in available)))
    for output in available:
        if output.name not in wanted:
            network.unmark_output(output)


def load(request: EngineRequest, folder: Path, spec: ModelSpec) -> "OnnxEngine":
    """Deserialise and run on the current CUDA device."""
    from engines.backends.onnx_engine import OnnxEngine

    onnx_spec = OnnxSpec.load(request.checkpoint)
    return OnnxEngine(_Runner(folder / PLAN_FILE, onnx_spec), onnx_spec, request, spec)


class _Runner:
    """(N, H, W, 3) uint8 BGR -> the outputs that the spec names, float32, whatever type the file has them in."""

    def __init__(self, path: Path, spec: OnnxSpec) -> None:
        import torch

        trt = library()
        self._torch, self._spec = torch, spec
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise MienError(f"{path}: TensorRT does not take it; `mien engines build` makes it anew")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._input = next(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self._outputs = spec.output_names(tuple(sorted(name for name in names if name != self._input)))
        types = {name: TORCH_TYPES[self._engine.get_tensor_dtype(name).name] for name in names}
        self._types = {name: getattr(torch, word) for name, word in types.items()}

    def __call__(self, batch: NDArray[np.uint8]) -> list[Floats]:
        torch, stream = self._torch, self._torch.cuda.current_stream()
        images = self._fed(torch.from_numpy(np.ascontiguousarray(batch)).cuda())
        if not self._context.set_input_shape(self._input, tuple(images.shape)):
            raise MienError(f"{self._spec.onnx}: its TensorRT engine does not take {tuple(images.shape)}")
        self._context.set_tensor_address(self._input, images.data_ptr())
        outputs = []
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            outputs.append(torch.empty(shape, dtype=self._types[name], device="cuda"))
            self._context.set_tensor_address(name, outputs[-1].data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise MienError(f"{self._spec.onnx}: TensorRT failed to run it; its own words are above")
        return [output.float().cpu().numpy() for output in outputs]

    def _fed(self, images: Any) -> Any:
        """Colour order, scale and layout as the file wants them."""
        x = images.flip(-1) if self._spec.colour == "RGB" else images
        mean, std = (x.new_tensor(v, dtype=self._torch.float32) for v in (self._spec.mean, self._spec.std))
        x = (x.float() - mean) / std
        x = x.permute(0, 3, 1, 2) if self._spec.layout == "NCHW" else x
        return x.to(self._types[self._input]).contiguous()
