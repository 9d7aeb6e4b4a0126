"""The systemd unit and the Containerfile: what they name exists, and the rights that the unit leaves are enough."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from netns import T2S, missing
from rooms import room
from t2s.cli import tunnel
from t2s.cli.flags import parse

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "packaging" / "t2s.service"
CONTAINERFILE = ROOT / "packaging" / "Containerfile"


def unit():
    """Read the unit; a key that stands twice keeps its last value."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def test_the_unit_gives_one_capability_and_one_device():
    service = unit()["Service"]
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == "CAP_NET_ADMIN"
    assert (service["DevicePolicy"], service["DeviceAllow"]) == ("closed", "/dev/net/tun rw")
    assert service["DynamicUser"] == service["NoNewPrivileges"] == service["MemoryDenyWriteExecute"] == "yes"
    assert service["ProtectSystem"] == "strict"


def test_the_unit_runs_a_command_that_exists():
    service = unit()["Service"]
    program, command, *flags = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("t2s", "run")
    assert parse(tunnel.run, flags) == {"config": Path("/etc/t2s/t2s.toml")}
    assert service["ExecReload"].split()[1] == "-HUP"
    assert int(service["TimeoutStopSec"]) > 2, "more than the shutdown timeout"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path):
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text(encoding="utf-8").replace("/usr/local/bin/t2s", sys.executable), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.root
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_the_rights_of_the_unit_are_enough(tmp_path):
    """As a user that is nobody, with the unit's capability alone: a device, its MTU, and a mark on sockets."""
    # Where nobody may read the interpreter or open the device file, a right to do so comes on top; with systemd's own
    # rules everybody may open the device file.
    places = [Path(sys.executable).resolve(), ROOT]
    open_to_all = all(map(_readable_by_all, places)) and Path("/dev/net/tun").stat().st_mode & 0o6 == 0o6
    reads = "" if open_to_all else ",+dac_override"
    name = unit()["Service"]["AmbientCapabilities"].lower().removeprefix("cap_")
    capabilities = f"+{name}{reads}"
    lower = [
        *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"),
        *("--inh-caps", capabilities, "--ambient-caps", capabilities, "--bounding-set", f"-all,{capabilities}", "--"),
    ]
    with (
        room() as world,
        world.process(
            [*lower, *T2S, "run", "--proxy", "direct://", "--fwmark", "7", "--tun", "u0"], tmp_path / "log"
        ) as child,
    ):
        world.until(lambda: world.has_device("u0") or child.poll() is not None, "no device", tmp_path / "log")
        status = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8")
        assert re.search(r"^Uid:\s65534", status, re.MULTILINE)
        world.until(
            lambda: "mtu 8500" in (tmp_path / "log").read_text(encoding="utf-8"), "not started", tmp_path / "log"
        )
        assert child.poll() is None
        child.terminate()
        assert child.wait(5) == 0


def _readable_by_all(path):
    return all(place.stat().st_mode & (0o5 if place.is_dir() else 0o4) for place in (path, *path.parents))


def copies():
    """Yield what the Containerfile copies out of the repository."""
    for line in CONTAINERFILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            yield from line.split()[1:-1]


def test_the_container_copies_what_exists_and_all_that_a_wheel_needs():
    found = set(copies())
    assert len(found) > 8, "the walk found the lines"
    for name in found:
        assert (ROOT / name).exists(), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    needed = [
        "Cargo.lock",
        project["project"]["readme"],
        *project["build-system"]["backend-path"],
        project["tool"]["maturin"]["manifest-path"],
        project["tool"]["maturin"]["python-source"],
        *cargo["workspace"]["members"],
        *(path.name for of in project["project"]["license-files"] for path in ROOT.glob(of)),
    ]
    for name in needed:
        assert any(name == copied or name.startswith(f"{copied}/") for copied in found), name


def test_the_commands_in_the_containers_header_are_right():
    text = CONTAINERFILE.read_text(encoding="utf-8")
    [command] = re.findall(r"t2s run (.*)$", text, re.MULTILINE)
    assert parse(tunnel.run, shlex.split(command)) is not None
    assert "--cap-add NET_ADMIN --device /dev/net/tun" in text
    assert os.path.relpath(CONTAINERFILE, ROOT) in text


def test_python_in_the_container_is_one_that_is_supported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lowest = tuple(map(int, project["project"]["requires-python"].removeprefix(">=").split(".")))
    [version] = re.findall(r"/python:([\d.]+)-", CONTAINERFILE.read_text(encoding="utf-8"))
    assert tuple(map(int, version.split("."))) >= lowest
