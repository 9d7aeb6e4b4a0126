"""The program `t2s`: all commands under one parser, and the short way into `t2s run`.

This module stays light: a command imports what it needs when it is called, so that the tunnel never loads the lab's
libraries.
"""

from __future__ import annotations

import sys

import typer

from t2s.cli import exec as exec_command
from t2s.cli import lab, tunnel
from t2s.cli.exit_codes import INTERRUPTED
from t2s.cli.flags import parse

app = typer.Typer(
    help="Route traffic through a SOCKS5 proxy, and measure the packet path that does it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (tunnel, exec_command, lab):
    commands.register(app)


def main() -> None:
    """Run the command line: a plain `t2s run` without the weight of typer's parser, all else with it."""
    if sys.argv[1:2] == ["run"] and (flags := parse(tunnel.run, sys.argv[2:])) is not None:
        try:
            tunnel.run(**flags)
        except typer.Exit as end:
            sys.exit(end.exit_code)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
    else:
        app()
