"""Words of a configuration line or a pushed option, as stock splits them (``options_parse.c``, parse_line),
and text from elsewhere made fit for a log."""

from __future__ import annotations

import re


def split_words(line: str) -> list[str]:
    """Double quotes and backslashes, or single quotes without, keep white space in a word; "#" or ";"
    where a word could begin opens a comment. Raises ValueError, saying what is wrong."""
    words: list[str] = []
    word: list[str] | None = None
    quotation = ""
    escaped = False
    for char in line:
        if char == "\\" and not escaped and quotation != "'":
            escaped = True
            continue
        ends = char == quotation if quotation else char in SPACE
        if word is None:
            # Between words a backslash changes nothing but a quotation mark's meaning, as in stock.
            if char in "#;":
                return words
            if char in SPACE:
                escaped = False
                continue
            word = []
            if char in "\"'" and not escaped:
                quotation = char
                continue
        elif ends and not escaped:
            words.append("".join(word))
            word, quotation = None, ""
            continue
        if escaped and char not in '\\"' + SPACE:
            raise ValueError(f"a backslash before {escape(char)!r}; a backslash itself is written as two")
        escaped = False
        word.append(char)
    if quotation:
        raise ValueError(f"the quotation mark {quotation} is not closed")
    if escaped and word is not None:
        raise ValueError("a backslash at the end of the line; a backslash itself is written as two")
    return words if word is None else [*words, "".join(word)]


def quote(word: str) -> str:
    """The word so that `split_words` reads it back. Raises ValueError for a line break or NUL."""
    if "\n" in word or "\0" in word:
        raise ValueError("a word can't have a line break or NUL in it")
    if word and not re.search(r"[\s\"'\\]|^[#;]", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def escape(text: str) -> str:
    """Control characters and the like as backslash sequences, for logs."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


SPACE = " \t\n\v\f\r"
