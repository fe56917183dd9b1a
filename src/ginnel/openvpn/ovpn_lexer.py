"""From the bytes of an ``.ovpn`` file to its statements, as stock reads them (``options_parse.c``).

A statement is a line of words: a name and values. Words are separated by white space; double quotes
and backslashes, or single quotes without, keep white space in a word; "#" or ";" where a word could
begin opens a comment. A line ``<name>`` opens a block that lasts until a line that begins with
``</name>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ginnel.errors import ConfigError
from ginnel.openvpn.words import SPACE, escape, split_words


@dataclass(frozen=True)
class Statement:
    """``words`` come after the name. ``block`` is the text between ``<name>`` and ``</name>``, None
    for a line of its own; its first line is ``line`` + 1."""

    line: int
    name: str
    words: tuple[str, ...] = field(default=(), repr=False)
    block: str | None = field(default=None, repr=False)


def decode(data: bytes | str) -> str:
    """The text of a file, without a byte order mark. Bytes that aren't UTF-8 stay as lone surrogates:
    a comment may have them, a word may not. Raises ConfigError for what is no text at all."""
    if isinstance(data, bytes):
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigError("this is UTF-16 text", instead="save it as UTF-8")
        data = data.decode("utf-8", "surrogateescape")
    if "\0" in data:
        line = data.count("\n", 0, data.index("\0")) + 1
        raise ConfigError("a NUL byte: this is no text file", line=line)
    return data.removeprefix("\ufeff")


def statements(text: str, first_line: int = 1) -> Iterator[Statement]:
    """Raises ConfigError with a line, without a file."""
    lines = enumerate(text.split("\n"), first_line)
    for number, line in lines:
        stripped = line.strip(SPACE)
        if not stripped or stripped[0] in "#;":
            continue
        if stripped.startswith("-----BEGIN "):
            # What follows is no options, and if it is a key's it belongs in no message.
            yield Statement(number, PEM, block="")
            next((None for _, line in lines if line.strip(SPACE).startswith("-----END ")), None)
            continue
        if not (words := _read_line(line, number)):
            continue
        name = words.pop(0)
        name = name[2:] if name.startswith("--") and len(name) > 2 else name
        if words or not re.fullmatch(r"<[^<>]*>", name):
            yield Statement(number, name, tuple(words))
            continue
        name = name[1:-1]
        if name.startswith("/") or not name:
            raise ConfigError(f"<{escape(name)}> closes a block that was not opened", line=number)
        yield Statement(number, name, block=_read_block(name, number, lines))


def _read_line(line: str, number: int) -> list[str]:
    line = line.rstrip("\r")
    if len(line.encode("utf-8", "surrogatepass")) > MAX_LINE:
        raise ConfigError(
            f"the line is longer than {MAX_LINE} bytes, which OpenVPN refuses too",
            line=number,
            instead="move long values to a file or a block",
        )
    try:
        words = split_words(line)
    except ValueError as error:
        raise ConfigError(str(error), line=number) from None
    if len(words) > MAX_WORDS:
        raise ConfigError(f"more than {MAX_WORDS} words; OpenVPN would drop the rest", line=number)
    for word in words:
        for char in word:
            if not char.isprintable() and char != "\t":
                raise ConfigError(_describe(char), line=number)
    return words


def _describe(char: str) -> str:
    if "\ud800" <= char <= "\udfff":
        return "a byte that is not UTF-8 text: save the file as UTF-8, if it is text at all"
    return f"the character U+{ord(char):04X} can't be part of a word; it is invisible in most editors"


def _read_block(name: str, start: int, lines: Iterator[tuple[int, str]]) -> str:
    content: list[str] = []
    for _, line in lines:
        if line.lstrip(SPACE).startswith(f"</{name}>"):
            return "\n".join(content)
        content.append(line.removesuffix("\r"))
    shown = escape(name)
    raise ConfigError(
        f"the <{shown}> block is not closed", line=start, option=name, instead=f"write </{shown}> after it"
    )


# The name of a statement that is a certificate or a key where none can be.
PEM = "-----BEGIN"
# OPTION_LINE_SIZE and MAX_PARMS of options.h; the former counts the line's end and a NUL.
MAX_LINE = 254
MAX_WORDS = 16
