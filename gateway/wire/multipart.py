"""A form with files, looked at just far enough to read its short fields and to replace one. Files are not copied.

The boundary is taken from the body's own first line, so what we look at and what the instance is told cannot differ,
whatever the client's header says. A part ends where RFC 2046 says: at a line that begins with the boundary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_PARTS = 64
MAX_HEAD = 4096  # bytes of a part's headers
MAX_FIELD = 64 * 1024  # bytes of a field that is read; files are not

_OPENING = re.compile(rb"--([0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])[ \t]*\r\n")
_NAME = re.compile(
    rb"""^content-disposition:[ \t]*form-data[^\r\n]*?;[ \t]*name="?([^";\r\n]*)""", re.IGNORECASE | re.MULTILINE
)
_ENCODED_NAME = re.compile(rb";[ \t]*name\*", re.IGNORECASE)  # another way to write a name, which we do not read
_LAST = re.compile(rb"--[ \t]*(?:\r\n|\Z)")
_LINE_END = re.compile(rb"[ \t]*\r\n")
_FILE = re.compile(rb"""^content-disposition:[^\r\n]*;[ \t]*filename\*?=""", re.IGNORECASE | re.MULTILINE)


class FormProblem(ValueError):
    """Why a form cannot be read, in words for the client who sent it."""


class _Part(NamedTuple):
    name: str
    start: int  # where the content begins and ends in the body
    end: int
    is_file: bool


class Form:
    """One multipart/form-data body. Raises FormProblem."""

    def __init__(self, body: bytes) -> None:
        opening = _OPENING.match(body)
        if opening is None:
            raise FormProblem("the body must be multipart/form-data")
        self._body = body
        self.boundary = opening[1]
        self._parts = list(self._cut(opening.end()))

    @property
    def content_type(self) -> bytes:
        return b'multipart/form-data; boundary="' + self.boundary + b'"'

    def field(self, name: str) -> str:
        """The text of a field, "" where there is none. Raises FormProblem where there are two, or it is no text."""
        part = self._field(name)
        if part is None:
            return ""
        if part.is_file or part.end - part.start > MAX_FIELD:
            raise FormProblem(f"{name} must be a short text")
        try:
            return self._body[part.start : part.end].decode().strip()
        except UnicodeDecodeError:
            raise FormProblem(f"{name} is not valid UTF-8") from None

    def has_file(self, name: str) -> bool:
        part = self._field(name)
        return part is not None and part.is_file

    def with_field(self, name: str, text: str) -> bytes:
        """The body with another text in that field; all other bytes as they came."""
        part = self._field(name)
        if part is None:
            raise FormProblem(f"{name} is required")
        return b"".join((self._body[: part.start], text.encode(), self._body[part.end :]))

    def _field(self, name: str) -> _Part | None:
        found = [part for part in self._parts if part.name == name]
        if len(found) > 1:
            raise FormProblem(f"the form names the field {name} twice")
        return found[0] if found else None

    def _cut(self, at: int) -> Iterator[_Part]:
        """The parts, each from its headers to the delimiter that follows it."""
        delimiter = b"\r\n--" + self.boundary
        for _ in range(MAX_PARTS):
            blank = self._body.find(b"\r\n\r\n", at, at + MAX_HEAD)
            if blank < 0:
                raise FormProblem("a part of the form has no end to its headers")
            head, start = self._body[at:blank], blank + 4
            # Two bytes back: the delimiter of an empty part may begin with the line end of the headers.
            end, at, last = self._delimiter(delimiter, start - 2)
            name = _NAME.search(head)
            if name is None or _ENCODED_NAME.search(head):
                raise FormProblem("a part of the form has no plain name")
            yield _Part(name[1].decode("utf-8", "replace"), start, max(start, end), _FILE.search(head) is not None)
            if last:
                return
        raise FormProblem(f"the form has more than {MAX_PARTS} parts")

    def _delimiter(self, delimiter: bytes, at: int) -> tuple[int, int, bool]:
        """Where the next delimiter line begins, where it ends, and whether it is the last."""
        while (found := self._body.find(delimiter, at)) >= 0:
            after = found + len(delimiter)
            if last := _LAST.match(self._body, after):
                return found, last.end(), True
            if line := _LINE_END.match(self._body, after):
                return found, line.end(), False
            at = after  # the boundary is only the beginning of this line
        raise FormProblem("the form ends too early")
