"""Line numbers of keys in a TOML document.

`tomllib` gives values without positions; this scanner gives positions without values. It promises a line for each key
and array element of a document that `tomllib` has accepted, and nothing for any other text.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

KeyPath = tuple[str | int, ...]

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def key_lines(text: str) -> dict[KeyPath, int]:
    r"""Map each key path of a valid TOML document to the line (from 1) where it stands.

    >>> key_lines("a = 1\n[[b]]\nc = [1,\n  {d = 2}]\n")[("b", 0, "c", 1, "d")]
    4
    """
    return _Scanner(text).scan()


def nearest_line(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """Return the line of a key, or of the innermost table or array around it that stands in the file."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


class _Scanner:
    """A walk over the text; `pos` never moves back."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.starts = [0, *(at + 1 for at, char in enumerate(text) if char == "\n")]
        self.lines: dict[KeyPath, int] = {}
        self.array_lengths: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while True:
            self.skip(" \t\r\n")
            if self.pos >= len(self.text):
                return self.lines
            if self.text[self.pos] == "[":
                table = self.header()
            else:
                self.assignment(table)

    def header(self) -> KeyPath:
        line = self.line()
        is_array = self.text.startswith("[[", self.pos)
        self.pos += 2 if is_array else 1
        *parents, last = self.dotted_key()
        self.pos += 2 if is_array else 1
        path: KeyPath = ()
        for part in parents:
            path = self.into_array((*path, part))
            self.lines.setdefault(path, line)
        path = (*path, last)
        if is_array:
            self.lines.setdefault(path, line)
            self.array_lengths[path] = self.array_lengths.get(path, 0) + 1
            path = self.into_array(path)
        self.lines.setdefault(path, line)
        return path

    def into_array(self, path: KeyPath) -> KeyPath:
        """Point a header below an array of tables at the array's last element."""
        return (*path, self.array_lengths[path] - 1) if path in self.array_lengths else path

    def assignment(self, table: KeyPath) -> None:
        line = self.line()
        keys = self.dotted_key()
        for end in range(1, len(keys) + 1):
            self.lines.setdefault((*table, *keys[:end]), line)
        self.skip(" \t")
        self.pos += 1  # the equals sign
        self.value((*table, *keys))

    def value(self, path: KeyPath) -> None:
        self.skip(" \t")
        char = self.text[self.pos]
        if char in "\"'":
            self.string()
        elif char == "[":
            self.array(path)
        elif char == "{":
            self.inline_table(path)
        else:
            while self.pos < len(self.text) and self.text[self.pos] not in ",]}#\r\n":
                self.pos += 1

    def array(self, path: KeyPath) -> None:
        self.pos += 1
        index = 0
        while True:
            self.skip(" \t\r\n,")
            if self.text[self.pos] == "]":
                self.pos += 1
                return
            self.lines[(*path, index)] = self.line()
            self.value((*path, index))
            index += 1

    def inline_table(self, path: KeyPath) -> None:
        self.pos += 1
        while True:
            self.skip(" \t\r\n,")
            if self.text[self.pos] == "}":
                self.pos += 1
                return
            self.assignment(path)

    def dotted_key(self) -> tuple[str, ...]:
        keys: list[str] = []
        while True:
            self.skip(" \t")
            start = self.pos
            if self.text[self.pos] in "\"'":
                self.string()
                keys.append(self.text[start + 1 : self.pos - 1])
            else:
                while self.text[self.pos] in _BARE:
                    self.pos += 1
                keys.append(self.text[start : self.pos])
            self.skip(" \t")
            if self.text[self.pos] != ".":
                return tuple(keys)
            self.pos += 1

    def string(self) -> None:
        quote = self.text[self.pos]
        closing = quote * 3 if self.text.startswith(quote * 3, self.pos) else quote
        self.pos += len(closing)
        while not self.text.startswith(closing, self.pos):
            self.pos += 2 if quote == '"' and self.text[self.pos] == "\\" else 1
        self.pos += len(closing)
        while len(closing) > 1 and self.text.startswith(quote, self.pos):
            self.pos += 1  # up to two quotes may stand directly before the closing three

    def skip(self, chars: str) -> None:
        """Skip these characters, and comments where a line may end."""
        while self.pos < len(self.text):
            char = self.text[self.pos]
            if char == "#" and "\n" in chars:
                end = self.text.find("\n", self.pos)
                self.pos = len(self.text) if end < 0 else end
            elif char in chars:
                self.pos += 1
            else:
                return

    def line(self) -> int:
        return bisect_right(self.starts, self.pos)
