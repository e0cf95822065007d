"""A serialised message, looked over before protobuf gets it.

What protobuf makes of a file may be a hundred times as large as the file: an empty message takes
two bytes there. Fields are counted first, texts are checked to be UTF-8, and the data of the
weights is left where it lies: the messages around it are parsed without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

MOST_FIELDS = 500_000
"""Fields of a file that are read at most; a Swin transformer has 57,000."""
DEEPEST = 64
"""Levels of messages; protobuf ends at 100."""

_STRING = FieldDescriptor.TYPE_STRING
_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5


class MalformedError(Exception):
    """The bytes are no such message; the text says why."""


class TooLargeError(Exception):
    """There is more of something than is read; the text says of what."""


class Field(NamedTuple):
    """A field of a message: its number, where it begins, and where its contents lie."""

    number: int
    kind: int
    first: int
    start: int
    end: int


class Look:
    """One reading of a file: how many fields may still come."""

    def __init__(self, data: Any, fields: int = MOST_FIELDS) -> None:
        self.data = data
        self.left = fields

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message between two places.

        Raises:
            MalformedError: they are cut short, or no fields.
            TooLargeError: there are too many.
        """
        data, at = self.data, start
        while at < end:
            first = at
            tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            begin = at
            if kind == _SIZED:
                length, begin = self._varint(at, end)
                at = begin + length
            elif kind == _VARINT:
                while at < end and data[at] & 0x80:
                    at += 1
                at += 1
            elif kind in (_EIGHT, _FOUR):
                at += 8 if kind == _EIGHT else 4
            else:
                raise MalformedError("it holds something that is no field")
            if at > end:
                raise MalformedError("it ends too early")
            self.left -= 1
            if self.left < 0:
                raise TooLargeError(f"it has more than {MOST_FIELDS:,} fields")
            yield Field(number, kind, first, begin, at)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise MalformedError("it ends too early" if at >= end else "a number has too many digits")

    def check(self, start: int, end: int, descriptor: Descriptor, depth: int = 0) -> None:
        """Look over a message and all in it.

        Raises:
            MalformedError: it is no such message, or a text is not UTF-8.
            TooLargeError: it has too many fields or levels.
        """
        if depth > DEEPEST:
            raise TooLargeError(f"its messages are nested more than {DEEPEST} levels deep")
        known = _fields_of(descriptor)
        for field in self.fields(start, end):
            inner = known.get(field.number)
            if inner is None or field.kind != _SIZED:
                continue
            if isinstance(inner, Descriptor):
                self.check(field.start, field.end, inner, depth + 1)
            else:
                check_text(self.data[field.start : field.end])


def check_text(text: bytes) -> None:
    """Make sure that a text is one.

    Raises:
        MalformedError: it is not UTF-8.
    """
    try:
        text.decode()
    except UnicodeDecodeError:
        shown = ascii(text[:40])[1:]
        raise MalformedError(f"a name or text is not UTF-8: {shown}") from None


@lru_cache(maxsize=64)
def _fields_of(descriptor: Descriptor) -> dict[int, Descriptor | bool]:
    """The fields that hold messages, with their descriptors, and those that hold text."""
    found: dict[int, Descriptor | bool] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            found[field.number] = field.message_type
        elif field.type == _STRING:
            found[field.number] = True
    return found
