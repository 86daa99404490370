"""A GPU that is asked for: absent, with a driver that will not do, or with too little memory."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from daemon.config import CameraConfig, Config
from daemon.loading import EngineStock, _warm_up
from engines import machine, memory
from engines.backends import aot_inductor, eager, tensorrt
from engines.backends.torch_engine import Bucketed, sizes
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.errors import MienError
from engines.request import EngineRequest
from engines.runtime import MODELS, WEIGHTS, load_engine
from engines.source import DTYPES, Source
from engines.spec import ModelSpec
from tests.fakes import FakeDetector, FakeEmbedder, fake_engines
from tests.processes import child


@pytest.mark.skipif(machine.why_no_gpu() is None, reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["tensorrt", "aot_inductor", "eager", "auto"])
def test_a_gpu_asked_for_and_absent_is_an_error_and_never_another_backend(backend):
    with pytest.raises(MienError, match=r"no NVIDIA driver|not installed|too old|no GPU|without CUDA"):
        load_engine("landmarks", backend=backend, device="cuda")


def test_both_torch_tensorrts_at_once_are_an_error_in_words(tmp_path):
    for package in tensorrt.PACKAGES:
        info = tmp_path / f"{package.replace('-', '_')}-2.14.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.14.0\n")

    result = child(
        "from engines.backends import tensorrt; print(tensorrt.why_not('cuda', 'f16'))", PYTHONPATH=tmp_path
    )

    assert "torch-tensorrt and torch-tensorrt-rtx are both installed" in result.stdout


@pytest.mark.skipif(machine.torch_cuda() is None, reason="the installed torch is built without CUDA")
@pytest.mark.parametrize(
    ("cuda", "count", "said"),
    [
        (11040, 1, "the NVIDIA driver is too old: it serves CUDA 11.4"),
        (99000, 0, "shows no GPU to this process"),
        (99000, 1, "None"),
    ],
)
def test_a_driver_that_will_not_do_says_why(driver, cuda, count, said):
    result = child(
        "from engines import machine; print(machine.why_no_gpu()); print(*machine.gpus())",
        LD_LIBRARY_PATH=driver,
        FAKE_CUDA=cuda,
        FAKE_GPUS=count,
    )

    assert said in result.stdout, result.stderr
    assert ("Fake GPU (sm_90)" in result.stdout) == (count == 1)


@pytest.mark.skipif(machine.torch_cuda() is None, reason="the installed torch is built without CUDA")
def test_auto_takes_what_the_gpu_machine_has(driver):
    result = child(
        "from engines.request import best_backend; print(*best_backend(), *best_backend('cpu'))",
        LD_LIBRARY_PATH=driver,
        FAKE_CUDA=99000,
        FAKE_GPUS=1,
    )

    gpu = "tensorrt" if tensorrt.why_not_installed() is None else "aot_inductor"
    assert f"{gpu} cuda openvino cpu" == result.stdout.strip(), result.stderr


@pytest.mark.skipif(machine.torch_cuda() is None, reason="the installed torch is built without CUDA")
@pytest.mark.skipif(tensorrt.why_not_installed() is None, reason="Torch-TensorRT is installed")
@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda", "mine.json: device: cuda is asked for, and there an ONNX model needs TensorRT"),
        ("auto", "cpu"),
    ],
)
def test_an_onnx_model_asked_onto_a_gpu_is_never_put_on_the_cpu(driver, tmp_path, device, told):
    (tmp_path / "some.onnx").touch()
    (tmp_path / "mine.json").write_text('{"onnx": "some.onnx", "task": "embedder", "decoding": "embedding"}')

    result = child(
        "from pathlib import Path; from engines.request import resolve; from engines.errors import MienError\n"
        f"try: print(resolve('embedder', device={device!r}, own=Path({str(tmp_path / 'mine.json')!r})).device)\n"
        "except MienError as error: print(error)",
        LD_LIBRARY_PATH=driver,
        FAKE_CUDA=99000,
        FAKE_GPUS=1,
    )

    assert told in result.stdout and ("pip install 'mien[gpu]'" in result.stdout) == (device == "cuda")


@pytest.mark.skipif(machine.torch_cuda() is None, reason="the installed torch is built without CUDA")
@pytest.mark.parametrize("newer", [-1, 0])
def test_a_gpu_that_torch_has_no_kernels_for_is_not_taken(driver, newer):
    least = min(int(arch.partition("_")[2]) for arch in torch.cuda.get_arch_list())

    result = child(
        "from engines import machine; from engines.request import best_backend\n"
        "print(best_backend()[1], machine.why_no_gpu())",
        LD_LIBRARY_PATH=driver,
        FAKE_CUDA=99000,
        FAKE_GPUS=1,
        FAKE_CAPABILITY=least + newer,
    )

    told = f"cpu Fake GPU (sm_{least - 1}) is older than what the installed torch has kernels for (sm_{least}"
    assert result.stdout.startswith("cuda None" if newer == 0 else told), result.stderr


def test_where_torch_does_not_tell_which_gpus_it_has_kernels_for_its_cuda_does(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_python.so").write_bytes(b"\0sm_90 sm_100\0")
    (tmp_path / "version.py").write_text("cuda: Optional[str] = '12.6'\n")
    monkeypatch.setattr(machine, "_torch_folder", lambda: tmp_path)
    uncached = machine.least_capability.__wrapped__
    assert (9, 0) == uncached()

    (tmp_path / "lib" / "libtorch_python.so").unlink()
    assert (5, 0) == uncached()


class SmallGpu:
    """So many bytes are free on it."""

    def __init__(self, free):
        self.free = free

    def free_bytes(self):
        return self.free


def test_too_little_gpu_memory_says_the_need_and_the_batch_that_fits():
    needs = memory.measure(
        Deployed(*load_checkpoint(WEIGHTS / "landmarks")), torch.zeros((1, 128, 128, 3), dtype=torch.uint8)
    )
    gpu = SmallGpu(memory.RUNTIME_BYTES + needs["weights"] + 5 * needs["per_picture"])

    memory.check(needs, 5, "landmarks", gpu)
    with pytest.raises(MienError, match=r"needs about \d+ MiB.*a batch of 5 would fit.*--max-batch 5"):
        memory.check(needs, 32, "landmarks", gpu)
    with pytest.raises(MienError, match="not even one picture fits"):
        memory.check(needs, 1, "landmarks", SmallGpu(memory.RUNTIME_BYTES))


def request_for_a_gpu(model, backend, precision, cache):
    size = ModelSpec.load(WEIGHTS / model / "spec.json").input_size
    return EngineRequest(model, backend, "cuda", precision, size, 8, WEIGHTS / model, cache)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_every_network_runs_wholly_on_a_gpu(model, precision, tmp_path):
    request = request_for_a_gpu(model, "eager", precision, tmp_path)
    network, spec = load_checkpoint(request.checkpoint)
    network.to(DTYPES[precision])

    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes, types and devices, without a GPU
        source = Source(request, spec, network)
        outputs = source.deployed()(source.example(2))

    assert len(spec.outputs) == len(outputs)
    assert {("cuda", torch.float32)} == {(out.device.type, out.dtype) for out in outputs}


def test_what_a_half_precision_engine_takes_is_measured_on_the_cpu_before_it_is_built(tmp_path):
    request = request_for_a_gpu("landmarks", "aot_inductor", "f16", tmp_path)
    network, spec = load_checkpoint(request.checkpoint)

    found = memory.needed(Source(request, spec, network))

    deployed = Deployed(*load_checkpoint(request.checkpoint))
    assert memory.measure(deployed, torch.zeros((1, 128, 128, 3), dtype=torch.uint8)) == found


def test_eager_torch_is_not_put_on_a_gpu_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CurrentGpu", lambda: SmallGpu(memory.RUNTIME_BYTES))

    with pytest.raises(MienError, match=r"landmarks: needs about .* MiB on the GPU for batches of 8"):
        eager.load(request_for_a_gpu("landmarks", "eager", "f32", tmp_path), 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_compiled_package_that_is_captured_as_a_graph_records_no_events_of_its_own(
    device, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path, **how: seen.append(how))
    request = replace(request_for_a_gpu("landmarks", "aot_inductor", "f32", tmp_path), device=device)

    aot_inductor.load(request, tmp_path, ModelSpec.load(request.checkpoint / "spec.json"), 0)

    assert [{"run_single_threaded": device == "cuda"}] == seen


def test_before_the_first_frame_an_engine_has_run_at_every_size_that_is_captured():
    class Captured(FakeEmbedder):
        def __init__(self, captured):
            super().__init__()
            self.captured_sizes = captured
            self.ran = []

        def __call__(self, batch):
            self.ran.append(len(batch))
            return super().__call__(batch)

    gpu, host = Captured(sizes(12)), Captured(())

    for engine in (gpu, host):
        _warm_up([engine])

    assert [1, 2, 4, 8, 12] == gpu.ran
    assert [1] == host.ran
    assert (1,) == sizes(1) and (1, 2, 4, 8) == sizes(8)


def test_a_camera_s_own_detector_is_warmed_up_and_nothing_that_is_at_work(monkeypatch):
    class Counted(FakeDetector):
        runs = 0

        def __call__(self, batch):
            self.runs += 1
            return super().__call__(batch)

    shared, own = fake_engines(detector=Counted()), Counted()
    monkeypatch.setattr("daemon.loading._engines", lambda *_: shared)
    monkeypatch.setattr("daemon.loading._detector", lambda *_: own)
    before = CameraConfig(name="a", source="a.mp4")
    stock = EngineStock(Config(cameras=(before,)), [before], False, print)
    ran, at_work = shared.detector.runs, []
    monkeypatch.setattr(type(shared.landmarks), "__call__", lambda *_: at_work.append("landmarks"))
    monkeypatch.setattr(type(shared.embedder), "__call__", lambda *_: at_work.append("embedder"))

    stock.prepare(CameraConfig(name="b", source="b.mp4", detector_size=(320, 192)))

    assert (1, 1, []) == (ran, own.runs, at_work) and ran == shared.detector.runs


def test_memory_that_runs_out_in_a_capture_says_which_batch_to_set():
    def capture(run, example):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MienError, match=r"too small for batches of 8; set engines.max_batch: 4"):
        Bucketed(lambda images: [images], 32, capture)(torch.zeros((5, 3)))


def test_batches_are_run_at_few_sizes_each_captured_once():
    captured = []

    def capture(run, example):
        captured.append(len(example))
        static = example.clone()

        def replay(images):
            static[: len(images)] = images
            return run(static)

        return replay

    run = Bucketed(lambda images: [images * 2], 12, capture)
    for count in (1, 3, 4, 5, 9, 12, 2):
        images = torch.arange(count, dtype=torch.int64)[:, None]
        assert torch.equal(images * 2, run(images)[0])

    assert [1, 4, 8, 12, 2] == captured
