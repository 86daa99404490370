"""Whether bf16 makes this CPU faster, which its flags do not tell: timed once, and kept beside the engines.

Two bytes a number are half the memory, but not every CPU with instructions for them multiplies faster: with AMX, or
on a Zen 4, bf16 is nearly twice as fast as float32, elsewhere it can take twice the time.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from engines import machine

FILE = "bf16.json"
PAYS = 1.15  # times as fast as float32, from which it is worth its rounding
CHANNELS, SIDE, LAYERS = 64, 56, 3  # about what the embedder's first half convolves
ROUNDS = 10


def pays(cache: Path) -> bool:
    """Whether OpenVINO convolves faster in bf16 than in float32 here; a CPU without bf16 is not timed."""
    return bool(machine.cpu_flags() & machine.BF16_FLAGS) and gain(cache) >= PAYS


def gain(cache: Path) -> float:
    """How many times as fast; what `cache` holds of this CPU and OpenVINO, else timed now and kept there."""
    here = {
        "cpu": machine.cpu_name(),
        "flags": sorted(machine.cpu_flags() & machine.BF16_FLAGS),
        "openvino": machine.version("openvino"),
    }
    path = cache / FILE
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if {**kept, **here} == kept:
            return float(kept["gain"])
    seconds = _seconds()
    found = round(seconds["f32"] / seconds["bf16"], 2)
    with suppress(OSError):  # a cache that cannot be written is told of when an engine is to be built
        cache.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(here | {"gain": found}) + "\n", encoding="utf-8")
    return found


def _seconds() -> dict[str, float]:
    """The least time of ROUNDS passes through a few convolutions in each precision, in turns: others may be at work."""
    runs = {precision: _convolutions(precision) for precision in ("f32", "bf16")}
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for precision, run in runs.items():
            started = time.perf_counter()
            run()
            least[precision] = min(least[precision], time.perf_counter() - started)
    return least


def _convolutions(precision: str) -> Callable[[], object]:
    from engines.backends.openvino import core, library, options

    openvino = library()
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    given = ops.parameter([1, CHANNELS, SIDE, SIDE], np.float32)
    node = given
    for _ in range(LAYERS):
        kernel = rng.normal(0, 0.05, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        node = ops.relu(ops.convolution(node, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    model = openvino.Model([node], [given], "convolutions")
    request = core().compile_model(model, "CPU", options(precision, 0)).create_infer_request()
    image = rng.normal(0, 1, (1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    return lambda: request.infer([image], share_inputs=True)
