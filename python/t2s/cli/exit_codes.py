"""Exit codes that several commands share; what a command adds to them stands in its own module."""

FAILED = 1
"""What could not start, ended by itself, or could not be removed."""
BAD_INPUT = 2
"""Input that cannot be used; typer's own for wrong options."""
INTERRUPTED = 130
"""Ctrl-C before a command has begun to listen for it; typer's own."""
