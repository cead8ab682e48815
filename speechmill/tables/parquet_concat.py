"""Concatenate Parquet files by copying their row groups as they are, without decoding them.

A Parquet file is the pages of its columns, and a footer that says where they are. The pages are copied as they are, and
the footers become one with other offsets. Footers are structs in Thrift's compact protocol, which pyarrow does not let
us write. Source: https://github.com/apache/parquet-format (README.md, src/main/thrift/parquet.thrift) and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
TRUE, FALSE, BYTE, BINARY, LIST, STRUCT = 1, 2, 3, 8, 9, 12  # types
INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits
# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
SCHEMA, NUM_ROWS, ROW_GROUPS = 2, 3, 4
COLUMNS, GROUP_OFFSET, ORDINAL = 1, 5, 7
CHUNK_OFFSET, META_DATA = 2, 3
INDEXES = (4, 5, 6, 7)  # of pages: not copied
COMPRESSED_SIZE, DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE = 7, 9, 10, 11
STATISTICS = (12, 13, 14, 15, 16, 17)  # and bloom filters: most of a footer, and of no use for rows without an order

Struct = dict[int, tuple[int, Any]]  # field -> type, value; a list's value is its elements' type and they


class RowGroupCopier:
    """Writes a Parquet file of row groups that other files have; without statistics and page indexes.

    All must have the columns of `schema`, of the same types and in its order.
    """

    def __init__(self, out: BinaryIO, schema: pa.Schema):
        empty = io.BytesIO()
        pq.write_table(schema.empty_table(), empty)
        self._footer = read_footer(empty.getbuffer())
        self._groups: list[Struct] = []
        self._rows = 0
        self._out = out
        self._at = out.write(MAGIC)

    def takes(self, footer: Struct, least_rows: int) -> bool:
        """Whether a file has the schema, and on average at least so many rows in a row group."""
        groups = footer[ROW_GROUPS][1][1]
        return footer[SCHEMA] == self._footer[SCHEMA] and footer[NUM_ROWS][1] >= least_rows * max(1, len(groups))

    def append(self, data: bytes | memoryview, footer: Struct) -> None:
        """Copy the row groups of a file, its whole content, that has the schema."""
        end, shift = len(MAGIC), self._at - len(MAGIC)
        for group in footer[ROW_GROUPS][1][1]:
            for chunk in group[COLUMNS][1][1]:
                end = max(end, _move(chunk, shift))
            group.pop(GROUP_OFFSET, None)
            group.pop(ORDINAL, None)
            self._groups.append(group)
        self._at += self._out.write(memoryview(data)[len(MAGIC) : end])
        self._rows += footer[NUM_ROWS][1]

    def close(self) -> None:
        """Write the footer."""
        kind = self._footer[NUM_ROWS][0]
        self._footer[NUM_ROWS] = (kind, self._rows)
        self._footer[ROW_GROUPS] = (LIST, (STRUCT, self._groups))
        footer = bytearray()
        _write_struct(footer, self._footer)
        self._out.write(footer + len(footer).to_bytes(4, "little") + MAGIC)


def _move(chunk: Struct, shift: int) -> int:
    """Move the pages of a column by an offset; returns where they ended before."""
    for field in INDEXES:
        chunk.pop(field, None)
    described: Struct = chunk[META_DATA][1]
    for field in STATISTICS:
        described.pop(field, None)
    starts = [described[field][1] for field in (DICTIONARY_PAGE, DATA_PAGE) if field in described]
    for field in (DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE):
        if field in described:
            kind, offset = described[field]
            described[field] = (kind, offset + shift)
    chunk[CHUNK_OFFSET] = (chunk[CHUNK_OFFSET][0], 0)  # deprecated: readers use the offsets of pages
    return min(starts) + described[COMPRESSED_SIZE][1]


def read_footer(data: bytes | memoryview) -> Struct:
    """The FileMetaData of the content of a Parquet file."""
    size = int.from_bytes(data[-8:-4], "little")
    return _read_struct(bytes(data[-8 - size : -8]), 0)[0]


def _read_struct(data: bytes, at: int) -> tuple[Struct, int]:
    fields: Struct = {}
    field = 0
    while head := data[at]:
        kind = head & 15
        if head >> 4:
            field, at = field + (head >> 4), at + 1
        else:
            field, at = _read_integer(data, at + 1)
        if kind in (TRUE, FALSE):
            value = None
        else:
            value, at = _read_value(data, at, kind)
        fields[field] = kind, value
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in INTEGERS:
        return _read_integer(data, at)
    if kind == BINARY:
        size, at = _read_number(data, at)
        return data[at : at + size], at + size
    if kind == STRUCT:
        return _read_struct(data, at)
    if kind == LIST:
        size, element, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _read_number(data, at)
        elements = []
        for _ in range(size):
            value, at = _read_value(data, at, element)
            elements.append(value)
        return (element, elements), at
    if kind in (TRUE, FALSE, BYTE):  # a boolean in a list has a byte
        return data[at], at + 1
    raise ValueError(f"type {kind} in the footer of a Parquet file")  # doubles, sets, maps: it has none


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _read_number(data, at)
    return (number >> 1) ^ -(number & 1), at


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while (byte := data[at]) > 127:
        number |= (byte & 127) << shift
        shift += 7
        at += 1
    return number | byte << shift, at + 1


def _write_struct(out: bytearray, fields: Struct) -> None:
    before = 0
    for field in sorted(fields):
        kind, value = fields[field]
        if 0 < field - before < 16:
            out.append((field - before) << 4 | kind)
        else:
            out.append(kind)
            _write_integer(out, field)
        before = field
        if kind not in (TRUE, FALSE):
            _write_value(out, kind, value)
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in INTEGERS:
        _write_integer(out, value)
    elif kind == BINARY:
        _write_number(out, len(value))
        out += value
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind == LIST:
        element, elements = value
        if len(elements) < 15:
            out.append(len(elements) << 4 | element)
        else:
            out.append(0xF0 | element)
            _write_number(out, len(elements))
        for one in elements:
            _write_value(out, element, one)
    else:
        out.append(value)


def _write_integer(out: bytearray, value: int) -> None:
    _write_number(out, value << 1 ^ value >> 63)


def _write_number(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
