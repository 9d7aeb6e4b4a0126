"""The tunnel's settings and errors, without a device; `test_tunnel_namespaces` has the traffic."""

import dataclasses
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import t2s
from socks import device
from t2s import ConfigError, Proxy, Tunnel, TunnelConfig, TunnelError, _core
from t2s.cli import app
from t2s.cli import exec as cli_exec
from t2s.cli import tunnel as cli_tunnel
from t2s.tunnel import settings
from t2s.tunnel.settings import load

SECRET = "hunter2"


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "t2s.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def left():
    """Count threads, the compiled core's included, and descriptors."""
    return [len(os.listdir(f"/proc/self/{what}")) for what in ("task", "fd")]  # noqa: PTH208 - a count of names


def settled(wanted=None):
    """Return what is left once it is what is wanted, or has been the same for a while, within two seconds.

    A thread that was joined stands in /proc for a moment longer: the kernel says that it ended before it takes it away.
    """
    seen, same = left(), 0
    for _ in range(200):
        if seen == wanted or (wanted is None and same >= 5):
            break
        time.sleep(0.01)
        now = left()
        seen, same = now, same + 1 if now == seen else 0
    return seen


def run(*arguments, env=None):
    return CliRunner().invoke(app, ["run", *map(str, arguments)], env=env)


def test_keys_are_the_cores():
    fields = {item.name for item in dataclasses.fields(TunnelConfig)}
    assert len(fields) > 20, "the walk found the fields"
    assert fields == set(TunnelConfig.defaults()) | {"password"}


def test_every_flag_is_a_key_and_every_key_but_credentials_a_flag():
    flags = set(inspect.signature(cli_tunnel.run).parameters) - {"config"}
    assert len(flags) > 20, "the walk found the flags"
    assert flags == set(settings.keys()) - {"username", "password"}


def test_flags_of_exec_are_keys_too():
    flags = set(inspect.signature(cli_exec.execute).parameters) - {"config", "command"}
    assert flags <= set(settings.keys())


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"proxy": "gopher://h"}, "proxy: unknown proxy scheme"),
        ({"proxy": "direct://", "mtu": 1000}, "mtu must lie between 1280 and 65535"),
        ({"proxy": "direct://", "mtu": 70_000}, "mtu: "),
        ({"proxy": "direct://", "queues": 0}, "queues must lie between"),
        ({"proxy": "direct://", "queues": "two"}, "queues: must be a whole number, not 'two'"),
        ({"proxy": "direct://", "queues": True}, "queues: must be a whole number"),
        ({"proxy": "direct://", "up": 1}, "up: must be true or false"),
        ({"proxy": "direct://", "syn_ack": "after-conect"}, 'did you mean "after-connect"'),
        ({"proxy": "direct://", "dns": "doh"}, "none of direct, over-tcp, fake-ip"),
        ({"proxy": "direct://", "dns": "fake_ip"}, 'did you mean "fake-ip"'),
        ({"proxy": "direct://", "dns": "fake-ip"}, "dns: fake-ip needs a proxy that resolves names"),
        ({"proxy": "http://h", "dns": "fake-ip", "fake_ip_v4": "off", "fake_ip_v6": ""}, "fake-ip needs a range"),
        ({"proxy": "http://h", "fake_ip_v4": "fc00::/18"}, 'fake_ip_v4: "fc00::/18" is not an IPv4 range'),
        ({"proxy": "http://h", "dns": "fake-ip", "dns_listen": "x"}, 'dns_listen: "x" is no IP address'),
        ({"proxy": "direct://", "dns_hijack": True}, "dns_hijack: needs dns_server"),
        ({"proxy": "direct://", "dns_hijack": 1}, "dns_hijack: must be true or false"),
        ({"proxy": "direct://", "dns_hijack": True, "dns_server": "dns.example"}, 'dns_server: "dns.example" is'),
        ({"proxy": "direct://", "qeues": 1}, 'qeues: unknown key; did you mean "queues"'),
        ({"queues": 1}, "proxy: is missing"),
        ({"proxy": "direct://", "password": "x"}, "password: needs a username"),
        ({"proxy": "direct://", "tun_fd": 99_999, "queues": 2}, "an inherited descriptor is one queue"),
    ],
)
def test_settings_that_cannot_be(keys, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        Tunnel(TunnelConfig.from_mapping(keys))


def test_the_core_refuses_by_itself():
    for config, told in [
        ("[]", "expected a map"),
        ('{"proxy": "direct://", "que": 1}', "que: unknown field"),
        ('{"proxy": "direct://", "password": 12345}', "password: is not a string"),
    ]:
        with pytest.raises(ConfigError) as caught:
            _core.Tunnel(config)
        assert told in str(caught.value)
        assert "12345" not in str(caught.value)


def test_devices_and_proxies_that_cannot_be_had():
    with pytest.raises(TunnelError, match="not a usable TUN device"):
        Tunnel("direct://", tun_fd=99_999)
    with pytest.raises(TunnelError, match="cannot resolve the proxy"):
        Tunnel("socks5://name.invalid", tun_fd=99_999)


def test_a_device_whose_other_end_is_gone_ends_the_tunnel():
    ours, theirs = device()
    with theirs, Tunnel("direct://", tun_fd=theirs.fileno(), log_level="off") as tunnel:
        assert not tunnel.wait(0)
        ours.close()
        with pytest.raises(TunnelError, match="the device failed"):
            tunnel.wait(5)
        assert not tunnel.running


def test_secrets_stay_secret(file):
    config = TunnelConfig(proxy=f"socks5://u:{SECRET}@h", username="u", password=SECRET)
    assert SECRET not in repr(config)
    assert json.loads(config.to_json())["password"] == SECRET
    for text in (
        f'proxy = "u:{SECRET}@h:1"',
        f'proxy = "direct://u:{SECRET}@h"',
        f'proxy = "socks5://u:{SECRET}%zz@h"',
        f'proxy = "socks5://h"\npassword = "{SECRET}"',
        f'proxy = "direct://"\npassword = ["{SECRET}"]',
    ):
        result = run("--config", file(text))
        assert result.exit_code == 2, result.output
        assert SECRET not in result.output


def test_the_file_names_line_and_nearest_key(file):
    path = file('proxy = "direct://"\n\nlog-levle = "info"\n')
    result = run("--config", path)
    assert result.exit_code == 2
    assert f'{path}:3: log-levle: unknown key; did you mean "log_level"?' in result.output
    path = file('proxy = "direct://"\nmtu = "big"\n')
    assert f"{path}:2: mtu: must be a whole number" in run("--config", path).output
    assert "not TOML" in run("--config", file("proxy =")).output
    assert "twice" in run("--config", file('log-level = "off"\nlog_level = "off"')).output
    assert "cannot be read" in run("--config", path.with_name("none.toml")).output


def test_flags_outweigh_environment_outweighs_file(file):
    path = file('proxy = "socks5://file"\nmtu = 1400\nstats_interval = 5\nusername = "u"\npassword = "p"\n')
    found = load({}, path, {})
    assert (found.tunnel.proxy, found.tunnel.mtu, found.stats_interval, found.shutdown_timeout) == (
        "socks5://file",
        1400,
        5,
        2.0,
    )
    found = load({"mtu": 1500}, path, {"T2S_PROXY": "socks5://environ", "T2S_PASSWORD": "q"})
    assert (found.tunnel.proxy, found.tunnel.mtu) == ("socks5://environ", 1500)
    assert (found.tunnel.username, found.tunnel.password) == ("u", "q")
    found = load({"proxy": "socks5://flag"}, path, {"T2S_PROXY": "socks5://environ"})
    assert found.tunnel.proxy == "socks5://flag"


def test_credentials_from_a_file(tmp_path):
    path = tmp_path / "credentials"
    path.write_text(f"alice:{SECRET}:x\n", encoding="utf-8")
    found = load({"proxy": "socks5://h", "credentials_file": str(path)}, None, {"T2S_USERNAME": "bob"})
    assert (found.tunnel.username, found.tunnel.password) == ("alice", f"{SECRET}:x")
    path.write_text(SECRET, encoding="utf-8")
    result = run("--proxy", "socks5://h", "--credentials-file", path)
    assert result.exit_code == 2
    assert "first line must be user:password" in result.output
    assert SECRET not in result.output
    assert run("--proxy", "socks5://h", "--credentials-file", tmp_path / "none").exit_code == 2


def test_exit_codes_of_what_does_not_start():
    assert "no proxy" in run(env={"T2S_PROXY": ""}).output
    assert run("--proxy", "direct://", "--stats-interval", "0").exit_code == 2
    assert run("--proxy", "direct://", "--tun-fd", "99999").exit_code == 1
    for arguments in (["--listen", "nonsense"], ["--listen", "192.0.2.1:1"]):
        result = CliRunner().invoke(app, ["proxy", *arguments])
        assert result.exit_code == 1
        assert "cannot listen" in result.output
    for arguments in (["--password", SECRET], ["--log-level", "loud"], ["--user", ""]):
        result = CliRunner().invoke(app, ["proxy", "--listen", "127.0.0.1:0", *arguments])
        assert result.exit_code == 2
        assert SECRET not in result.output


def test_counters_in_a_file_are_whole_and_its_trouble_is_named(tmp_path):
    path = tmp_path / "counters.json"
    cli_tunnel._save({"flows": 1}, path)
    cli_tunnel._save({"flows": 2}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"flows": 2}
    assert [item.name for item in tmp_path.iterdir()] == ["counters.json"]
    with pytest.raises(ConfigError, match=r"stats_file: .*No such file"):
        cli_tunnel._save({}, tmp_path / "none" / "counters.json")


def test_a_summary_says_rates():
    zero = {"bytes_up": 0, "bytes_down": 0, "flows": 1, "flows_opened": 2, "sessions": 3, "datagrams_up": 4}
    zero |= {"datagrams_down": 5, "packets_dropped": {"bad_version": 6}, "dial_failures": {}}
    line = cli_tunnel.summary(zero | {"bytes_down": 10_000_000}, zero, 2.0, 9.0)
    assert "9 s: 1 flows (2 opened, 0 not connected), 3 UDP sessions" in line
    assert "down 10.0 MB (40.0 Mbit/s)" in line
    assert "6 packets dropped" in line


def test_the_proxy_serves_and_leaves_nothing_behind():
    before = None
    for _ in range(50):
        with socket.create_server(("127.0.0.1", 0)) as target, Proxy("127.0.0.1:0", log_level="info") as proxy:
            host, port = proxy.address
            with socket.create_connection((str(host), port), timeout=5) as client:
                client.sendall(b"\x05\x01\x00")
                assert client.recv(2) == b"\x05\x00"
                client.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target.getsockname()[1].to_bytes(2, "big"))
                assert client.recv(10)[:2] == b"\x05\x00"
                upstream, _ = target.accept()
                with upstream:
                    client.sendall(b"ping")
                    assert upstream.recv(4) == b"ping"
            assert proxy.lines() == [("info", f"listening at {host}:{port}")]
            assert proxy.lines() == []
        proxy.stop()
        before = before or settled()  # the first round pays what Python keeps
    assert settled(before) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_proxy_command_ends_with_a_signal(number):
    command = [sys.executable, "-c", "from t2s.cli import main; main()", "proxy", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "listening at 127.0.0.1:" in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(5) == 0
        finally:
            process.kill()


def test_the_tunnel_loads_no_heavy_library():
    code = """
import sys
from typer.testing import CliRunner
from t2s.cli import app
assert CliRunner().invoke(app, ["run", "--proxy", "direct://", "--tun-fd", "99999"]).exit_code == 1
heavy = {"polars", "jinja2", "pyroute2", "t2s.lab", "t2s.tunnel.routes", "t2s.tunnel.route_guard", "t2s.tunnel.execute"}
print(sorted(heavy & set(sys.modules)))  # typer brings pydantic along
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"


def test_errors_have_the_root():
    assert issubclass(TunnelError, t2s.T2sError)
