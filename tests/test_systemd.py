"""The shipped unit, checked by systemd itself."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "systemd/mien.service"
PROGRAM = "/opt/mien/.venv/bin/mien"

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="needs systemd-analyze, of Debian's package systemd"
)


@needs_systemd
def test_systemd_finds_no_mistake_in_the_unit(tmp_path):
    # A program that is not installed here would be the one thing it finds.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))

    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stdout + done.stderr)


@needs_systemd
def test_the_unit_is_exposed_little():
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT]
    done = subprocess.run(command, capture_output=True, text=True)

    found = re.search(r"Overall exposure level for mien.service: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze knows no offline check: {done.stderr.strip()}")
    assert float(found[1]) <= 2.0


def test_the_unit_says_what_the_daemon_relies_on():
    text = UNIT.read_text()
    lines = [line.partition("=") for line in text.splitlines() if "=" in line and line[0] != "#"]
    unit = {key: value for key, _, value in lines}

    assert ("notify", "on-failure") == (unit["Type"], unit["Restart"])
    assert {"StateDirectory", "CacheDirectory", "RuntimeDirectory", "WatchdogSec", "ExecReload"} <= set(unit)
    assert "MemoryDenyWriteExecute" not in unit  # OpenVINO compiles at run time
    assert "char-video4linux rw" in text and "/dev/nvidia0 rw" in text


@pytest.mark.skipif(
    not Path("/run/systemd/system").is_dir() or not Path(PROGRAM).exists(),
    reason=f"needs a machine that systemd runs, with Mien installed in {PROGRAM}",
)
def test_the_installed_unit_starts_reloads_and_stops():
    def systemctl(*words):
        return subprocess.run(["systemctl", *words, "mien"], capture_output=True, text=True)

    was_active = systemctl("is-active").stdout.strip() == "active"
    try:
        assert 0 == systemctl("start").returncode, systemctl("status").stdout
        assert 0 == systemctl("reload").returncode, systemctl("status").stdout
        assert "active" == systemctl("is-active").stdout.strip()
    finally:
        if not was_active:
            systemctl("stop")
