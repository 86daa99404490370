"""OpenVINO: the default where there is no GPU. Loading a built engine imports no torch.

A built engine is the model as OpenVINO compiled it for this CPU, so that loading compiles next to nothing.
"""

import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from engines import machine
from engines.errors import MienError
from engines.onnx_spec import OnnxSpec
from engines.request import EngineRequest
from engines.spec import ModelSpec

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, Model

    from engines.source import Source

MODEL_FILE = "model.blob"
NAME = "openvino"


def why_not(device: str, precision: str) -> str | None:
    if machine.version("openvino") is None:
        return "OpenVINO is not installed: pip install openvino"
    if precision == "bf16" and not machine.cpu_flags() & machine.BF16_FLAGS:
        return "this CPU computes no bf16; use precision: f32 or int8"
    return None


def versions(device: str) -> dict[str, str]:
    return {"openvino": str(machine.version("openvino"))}


class OpenVinoEngine:
    """An Engine over a compiled OpenVINO model."""

    backend = NAME
    device = "cpu"

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]],
        request: EngineRequest,
        spec: ModelSpec,
    ) -> None:
        self.spec = spec
        self.input_size = request.size
        self.precision = request.precision
        self._run = run
        self._one_by_one = _is_one_by_one(request)

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        step = 1 if self._one_by_one else len(batch)
        parts = [self._run(batch[i : i + step]) for i in range(0, len(batch), step)]
        outputs = parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]
        return dict(zip(self.spec.outputs, outputs, strict=True))


def load(request: EngineRequest, folder: Path, spec: ModelSpec, threads: int) -> Any:
    """Take the compiled model in `folder`. Raises MienError where OpenVINO does not take it."""
    run = _runner(folder / MODEL_FILE, request.precision, threads)
    if not request.is_onnx:
        return OpenVinoEngine(run, request, spec)
    from engines.backends.onnx_engine import OnnxEngine

    return OnnxEngine(run, OnnxSpec.load(request.checkpoint), request, spec)


def _is_one_by_one(request: EngineRequest) -> bool:
    """Whole pictures gain nothing from a batch on a CPU, and a fixed shape runs a tenth faster than a free one."""
    return request.model == "detector"


def save(source: "Source", folder: Path) -> None:
    """Convert the exported program, quantise it where int8 is asked for, compile, and write."""
    model = library().convert_model(source.program)
    if _is_one_by_one(source.request):
        width, height = source.request.size
        model.reshape([1, height, width, 3])
    if source.request.precision == "int8":
        model = _quantised(model, source)
    if source.request.precision == "bf16":
        _keep_last_convolutions_exact(model)
    _write(model, source.request.precision, folder)


def save_onnx(source: "Source", folder: Path) -> None:
    """A user's ONNX file. Raises MienError where its shapes are not those of its spec."""
    openvino = library()
    from openvino.preprocess import ColorFormat, PrePostProcessor

    spec, request = source.onnx_spec, source.request
    try:
        model = core().read_model(spec.onnx)
    except RuntimeError as error:
        raise MienError(f"{spec.onnx}: not an ONNX file that OpenVINO reads ({_first(error)})") from None
    _fit_input(model, spec, request.size)
    names = spec.output_names(tuple(sorted(output.get_any_name() for output in model.outputs)))
    ports = {output.get_any_name(): output for output in model.outputs}
    model = openvino.Model([ports[name] for name in names], model.get_parameters(), spec.path.stem)

    steps = PrePostProcessor(model)
    given = steps.input()
    given.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    given.tensor().set_color_format(ColorFormat.BGR)
    given.model().set_layout(openvino.Layout(spec.layout))
    chain = given.preprocess().convert_element_type(openvino.Type.f32)
    if spec.colour == "RGB":
        chain = chain.convert_color(ColorFormat.RGB)
    chain.mean(list(spec.mean) * (3 // len(spec.mean))).scale(list(spec.std) * (3 // len(spec.std)))
    _write(steps.build(), request.precision, folder)


def _fit_input(model: "Model", spec: OnnxSpec, size: tuple[int, int]) -> None:
    openvino = library()
    if len(model.inputs) != 1:
        raise MienError(f"{spec.onnx}: has {len(model.inputs)} inputs, a stage's model has one")
    wanted = openvino.PartialShape(list(spec.input_shape(size, spec.batch or -1)))
    found = model.input(0).partial_shape
    if not found.compatible(wanted) or (spec.batch is None and found[0].is_static):
        raise MienError(
            f"{spec.onnx}: its input is {found}, {spec.path.name} says {wanted} "
            f"({spec.layout}, input_size, batch); correct the spec"
        )
    try:
        model.reshape(wanted)
    except RuntimeError as error:
        raise MienError(f"{spec.onnx}: does not take the shape {wanted} ({_first(error)})") from None


def _quantised(model: "Model", source: "Source") -> "Model":
    """Post-training int8 (NNCF), its ranges measured on the source's calibration crops."""
    if machine.version("nncf") is None:
        raise MienError("precision int8 is made with NNCF, which is not installed: pip install nncf")
    import nncf

    crops = source.calibration
    assert crops is not None
    quantised: Model = nncf.quantize(
        model,
        nncf.Dataset([crops[i : i + 1] for i in range(len(crops))]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(crops),
        ignored_scope=nncf.IgnoredScope(names=_left_in_float(model), validate=False),
    )
    return quantised


def _left_in_float(model: "Model") -> list[str]:
    """The end of the network, and padding: OpenVINO 2026.4 cannot pad quantised numbers with a negative."""
    pads = [node for node in model.get_ordered_ops() if node.get_type_name() == "Pad"]
    return [node.get_friendly_name() for node in _end_of_network(model) + pads]


def _end_of_network(model: "Model") -> list[Any]:
    """The operators that no convolution follows, among them the last convolutions.

    They stay in float: an age of 82 is not cut to the oldest face of the calibration, and two scores or two heights of
    a heatmap that are nearly the same do not become one, of which then another box or point wins.
    """
    before: set[str] = set()
    end = []
    for node in reversed(model.get_ordered_ops()):
        feeds = {target.get_node() for out in node.outputs() for target in out.get_target_inputs()}
        if any(each.get_friendly_name() in before or "Convolution" in each.get_type_name() for each in feeds):
            before.add(node.get_friendly_name())
        elif node.get_type_name() not in ("Constant", "Parameter", "Result"):
            end.append(node)
    return end


def _keep_last_convolutions_exact(model: "Model") -> None:
    """Write the last 1x1 convolutions as transposed ones, which OpenVINO 2026.4 leaves in float32.

    It computes every convolution in bf16, its weights rounded, where bf16 is asked for; but what follows the last
    operator of a kind that gains much, among which transposed convolutions are not, as it was.
    """
    from openvino import opset13 as ops

    for node in _end_of_network(model):
        weights = node.input_value(1) if node.get_type_name() == "Convolution" else None
        if weights is None or list(weights.get_shape()[2:]) != [1, 1]:
            continue
        turned = ops.transpose(weights, np.array([1, 0, 2, 3]))
        exact = ops.convolution_backprop_data(
            node.input_value(0), turned, [1, 1], pads_begin=[0, 0], pads_end=[0, 0], dilations=[1, 1]
        )
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(exact.output(0))


def _write(model: "Model", precision: str, folder: Path) -> None:
    blob = io.BytesIO()
    core().compile_model(model, "CPU", options(precision, 0)).export_model(blob)
    (folder / MODEL_FILE).write_bytes(blob.getbuffer())


def options(precision: str, threads: int) -> dict[str, Any]:
    """float32 unless asked otherwise: OpenVINO itself takes bf16 where a CPU has it, and results would differ.

    Not pinned: every process would pin its threads to the same first cores, and daemons beside each other wait there.
    """
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or os.cpu_count() or 1,
        "ENABLE_CPU_PINNING": False,
    }


def _runner(
    path: Path, precision: str, threads: int
) -> Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    try:
        compiled: CompiledModel = core().import_model(path.read_bytes(), "CPU", options(precision, threads))
    except RuntimeError as error:
        raise MienError(f"{path}: OpenVINO does not take it ({_first(error)})") from None
    except OSError as error:  # another process is putting a new one there
        raise MienError(f"{path}: cannot be read ({error.strerror})") from None
    request = compiled.create_infer_request()
    ports = list(compiled.outputs)

    def run(batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        results = request.infer([np.ascontiguousarray(batch)], share_inputs=True)
        # The request's own buffers are written again by the next call, hence the copies.
        return [results[port].copy() for port in ports]

    return run


@functools.cache
def core() -> "Core":
    """The process's one OpenVINO core, never let go.

    Each core gives its thread another alternate signal stack and puts the former back at its end; two that
    end in the order they began leave the thread with a stack that is gone, and the next signal kills it.
    """
    return library().Core()


def library() -> Any:
    """The module `openvino`, kept from calling home.

    Its converter, and NNCF, tell Google Analytics of every use, unasked, where `openvino_telemetry` is installed, which
    comes with them. Without that module they are silent.
    """
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    import openvino

    return openvino


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
