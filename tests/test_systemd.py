"""The shipped unit, checked by systemd itself."""

import os
import re
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "systemd/mien.service"
PROGRAM = "/opt/mien/.venv/bin/mien"
CONFIG = Path("/etc/mien/config.yaml")
OTHER_CONFIG = CONFIG.with_name("config.test.yaml")
DROP_IN = Path("/run/systemd/system/mien.service.d")

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
    assert "ProcSubset" not in unit  # torch reads /proc/cpuinfo
    assert "AF_NETLINK" in unit["RestrictAddressFamilies"]  # ZeroMQ aborts without
    assert "SystemCallFilter=chown " in text  # control.group
    assert "char-video4linux rw" in text and "/dev/nvidia0 rw" in text


@pytest.fixture
def unit():
    """The installed unit, stopped before and after."""
    if not Path("/run/systemd/system").is_dir() or not Path(PROGRAM).exists():
        pytest.skip(
            f"needs a machine that systemd runs, with Mien installed as systemd/INSTALL.md says ({PROGRAM})"
        )
    if shown("ActiveState") != "inactive":
        pytest.skip("mien.service is in use on this machine")
    try:
        yield
    finally:
        systemctl("stop")
        shutil.rmtree(DROP_IN, ignore_errors=True)
        OTHER_CONFIG.unlink(missing_ok=True)
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        systemctl("reset-failed")


def changed(*lines, **settings):
    """Gives the unit other lines, and a configuration with other settings."""
    text = yaml.safe_dump(yaml.safe_load(CONFIG.read_text()) | settings)
    OTHER_CONFIG.write_text(text)
    run = f"ExecStart={PROGRAM} run --config {OTHER_CONFIG}"
    DROP_IN.mkdir(parents=True)
    (DROP_IN / "test.conf").write_text("\n".join(["[Service]", "ExecStart=", run, *lines, ""]))
    subprocess.run(["systemctl", "daemon-reload"], check=True)


def systemctl(word):
    return subprocess.run(["systemctl", word, "mien"], capture_output=True, text=True)


def shown(name):
    command = ["systemctl", "show", "mien", f"--property={name}", "--value"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_installed_unit_starts_reloads_and_stops(unit):
    assert 0 == systemctl("start").returncode, systemctl("status").stdout  # READY=1 has come
    assert "active" == shown("ActiveState")
    ctl = [PROGRAM, "ctl", "status", "--config", CONFIG]
    assert 0 == subprocess.run(ctl, capture_output=True).returncode
    assert 0 == systemctl("reload").returncode, systemctl("status").stdout
    assert ("active", "0") == (shown("ActiveState"), shown("NRestarts"))

    started_s = time.monotonic()
    assert 0 == systemctl("stop").returncode
    assert ("inactive", "success") == (shown("ActiveState"), shown("Result"))
    assert time.monotonic() - started_s < 10  # well before TimeoutStopSec and its SIGKILL


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_started_again(unit):
    changed("WatchdogSec=5", "RestartSec=1")
    assert 0 == systemctl("start").returncode, systemctl("status").stdout
    hung = shown("MainPID")

    os.kill(int(hung), signal.SIGSTOP)

    until_s = time.monotonic() + 60
    while (shown("NRestarts"), shown("ActiveState")) != ("1", "active"):
        assert time.monotonic() < until_s, systemctl("status").stdout
        time.sleep(0.2)
    assert shown("MainPID") != hung


def test_a_wrong_configuration_is_not_tried_again(unit):
    changed("RestartSec=100ms", nonsense=1)

    assert 0 != systemctl("start").returncode
    time.sleep(1)  # ten times as long as a restart would take to come
    assert ("2", "0", "failed") == (shown("ExecMainStatus"), shown("NRestarts"), shown("ActiveState"))


def test_a_group_is_given_the_control_socket(unit):
    changed(control={"group": "video"})  # the unit has it among its SupplementaryGroups
    assert 0 == systemctl("start").returncode, systemctl("status").stdout

    (socket,) = Path("/run/mien").glob("*.sock")

    assert ("video", 0o660) == (socket.group(), stat.S_IMODE(socket.stat().st_mode))
