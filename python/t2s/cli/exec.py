"""`t2s exec` and `t2s down`: commands about who goes through a tunnel.

Exit codes of `t2s exec`: the command's own, 128 and the signal's number for one that a signal ended, 126 and 127 for
one that cannot be started, 125 when the tunnel cannot, 2 for bad input. Those of `t2s down` are 0 and 1.
"""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - typer reads the annotations at run time
from typing import Annotated, Final

import typer

from t2s._core import ConfigError, T2sError
from t2s.cli.exit_codes import BAD_INPUT, FAILED
from t2s.cli.tunnel import log

NOT_STARTED = 125
"""Exit code for a command that has no tunnel, as of env(1) and timeout(1)."""
LOG_LEVEL: Final = "warn"
"""What is worth a line between the command's own."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("exec", context_settings={"allow_interspersed_args": False})(execute)
    app.command()(down)


def execute(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="The command, after --.")],
    proxy: Annotated[str | None, typer.Option(help="socks5://…, http://… or direct://; default: T2S_PROXY.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file, as for `t2s run`; default: none.")] = None,
    credentials_file: Annotated[
        str | None, typer.Option(help="File whose first line is user:password; default: none.")
    ] = None,
    mtu: Annotated[
        int | None, typer.Option(help="MTU of the interface, bytes; default: 8500 with offload, 1500 without.")
    ] = None,
    fwmark: Annotated[
        int | None, typer.Option(help="Firewall mark of sockets towards the proxy; default: none.")
    ] = None,
    dns: Annotated[
        str | None,
        typer.Option(help="direct, over-tcp or fake-ip; default: fake-ip, over-tcp with --dns-server or direct://."),
    ] = None,
    dns_server: Annotated[
        str | None, typer.Option(help="Resolver that the command asks through the proxy; default: the tunnel answers.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="Lines: off, error, warn, info or debug; default: warn.")
    ] = None,
) -> None:
    """Run one command whose only way out is the tunnel, without root where the kernel allows it."""
    given = {key: value for key, value in locals().items() if value is not None and key not in {"config", "command"}}
    from dataclasses import replace

    from t2s.tunnel import execute as executor
    from t2s.tunnel.settings import load

    try:
        settings = load(given | {"auto_route": False}, config, os.environ)
        command_line = executor.Command(argv=command, dns_server=executor.check_server(settings.tunnel.dns_server))
        tunnel = settings.tunnel
        if tunnel.log_level is None:
            tunnel = replace(tunnel, log_level=LOG_LEVEL)
        code = executor.run(command_line, tunnel, log)
    except T2sError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(BAD_INPUT if isinstance(error, ConfigError) else NOT_STARTED) from None
    raise typer.Exit(code)


def down() -> None:
    """End the tunnel of --auto-route on this host, and remove what a killed one has left."""
    from t2s.tunnel import route_guard

    try:
        ended, removed = route_guard.down()
    except T2sError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(FAILED) from None
    if ended is not None:
        typer.echo(f"ended the tunnel of process {ended}")
    if removed or ended is None:
        typer.echo(f"removed {removed} leftover rules, routes and addresses")
