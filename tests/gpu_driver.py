"""An NVIDIA driver that says what the environment tells it to: FAKE_CUDA, FAKE_GPUS and FAKE_CAPABILITY."""

import subprocess
from pathlib import Path

SOURCE = r"""
#include <string.h>
#include <stdlib.h>
static int capability(void) { const char *told = getenv("FAKE_CAPABILITY"); return told ? atoi(told) : 90; }
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = atoi(getenv("FAKE_CUDA")); return 0; }
int cuDeviceGetCount(int *n) { *n = atoi(getenv("FAKE_GPUS")); return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)1 << 33; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? capability() / 10 : capability() % 10; return 0; }
"""


def write_driver(folder: Path, compiler: str) -> None:
    """Makes libcuda.so.1 there."""
    source = folder / "fake.c"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
