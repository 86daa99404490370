"""A GPU that is asked for: absent, with a driver that will not do, or with too little memory."""

import shutil
import subprocess

import pytest
import torch

from engines import machine, memory
from engines.backends import tensorrt
from engines.backends.torch_engine import Bucketed
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.errors import MienError
from engines.runtime import WEIGHTS, load_engine
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


FAKE_DRIVER = r"""
#include <string.h>
#include <stdlib.h>
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = atoi(getenv("FAKE_CUDA")); return 0; }
int cuDeviceGetCount(int *n) { *n = atoi(getenv("FAKE_GPUS")); return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)1 << 33; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A folder with a libcuda.so.1 that says what the environment tells it to."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is needed to make a driver")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "fake.c").write_text(FAKE_DRIVER)
    target = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, folder / "fake.c"], check=True)
    return folder


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
