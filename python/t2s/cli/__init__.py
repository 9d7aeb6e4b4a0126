"""The command line. `main` is the program `t2s`; `app` holds its commands.

Layers: above `t2s.lab` and `t2s.tunnel`, which it imports when a command is called.
"""

from t2s.cli.app import app, main

__all__ = ["app", "main"]
