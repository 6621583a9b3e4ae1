"""MATLAB files (version 5 to 7), checked before SciPy reads them: its reader crashes on damaged ones.

A file is a header of 128 bytes and elements: a type, a size in bytes, the bytes. Matrices hold elements of their own: flags, sizes,
name, then numbers, cells or fields. The check follows them all. Source: MathWorks, MAT-File Format, chapter 1.
"""

import io
import struct
import zlib
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lib.dataset.formats.files import need

HEAD = 128
MATRIX, COMPRESSED = 14, 15
BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}  # of a number, by type
CELL, STRUCT, OBJECT, CHAR, SPARSE, NUMBERS = 1, 2, 3, 4, 5, range(6, 16)  # classes of matrices
COMPLEX = 0x800
DEEPEST = 64
LARGEST = 1 << 33  # bytes of one compressed element: more than any data set has


class Element(NamedTuple):
    kind: int
    first: int  # of its bytes
    end: int
    after: int  # where the next one begins


def load_mat(path: str | Path, variables: Collection[str] | None = None, **options: Any) -> dict[str, Any]:
    """The variables of a file by name, as scipy.io.loadmat gives them.

    Args:
        variables: those wanted; None = all.
        options: of scipy.io.loadmat.

    Raises:
        DataError: SciPy is missing. OSError: the file cannot be read. Anything else: damaged, or no such file.
    """
    reader = need("scipy.io", f"{path}: reading it")
    data = Path(path).read_bytes()
    if data[:4] and 0 not in data[:4]:  # not version 4, which SciPy reads without harm
        _check_file(memoryview(data))
    return reader.loadmat(io.BytesIO(data), variable_names=variables, **options)


def _check_file(data: memoryview) -> None:
    """ValueError unless the elements of a file are whole and fit into one another."""
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None or len(data) < HEAD:
        raise ValueError("no MATLAB file of version 5 to 7")
    if bytes(data[124:126]) not in (b"\x00\x01", b"\x01\x00"):
        raise ValueError("of another version than 5 to 7")
    at = HEAD
    while at < len(data):
        element = _element(data, at, len(data), order)
        if element.kind == COMPRESSED:
            unpack = zlib.decompressobj()
            inside = memoryview(unpack.decompress(data[element.first : element.end], LARGEST))
            if not unpack.eof:
                raise ValueError("a compressed variable is cut short or too large")
            _check_matrix(inside, _element(inside, 0, len(inside), order), order)
            at = element.end  # compressed elements are not filled up to 8 bytes
        else:
            _check_matrix(data, element, order)
            at = element.after


def _element(data: memoryview, at: int, end: int, order: str) -> Element:
    if at + 8 > end:
        raise ValueError(f"it ends within an element, at byte {at}")
    kind, size = struct.unpack_from(order + "II", data, at)
    if kind >> 16:  # a small element: size, type and up to 4 bytes within 8
        kind, size = kind & 0xFFFF, kind >> 16
        first, after = at + 4, at + 8
        if size > 4:
            raise ValueError(f"a small element of {size} bytes, at byte {at}")
    else:
        first = at + 8
        after = first + (size if kind == COMPRESSED else -(-size // 8) * 8)
    if first + size > end or kind not in BYTES and kind not in (MATRIX, COMPRESSED):
        raise ValueError(f"an element of type {kind} and {size} bytes, at byte {at}")
    return Element(kind, first, first + size, after)


def _check_matrix(data: memoryview, matrix: Element, order: str, depth: int = 0) -> None:
    if matrix.kind != MATRIX or depth > DEEPEST:
        raise ValueError(f"an element of type {matrix.kind} where a matrix is expected, at byte {matrix.first}")
    if matrix.first == matrix.end:
        if depth == 0:
            raise ValueError("an empty variable")
        return
    at = matrix.first

    def numbers(*kinds: int) -> Element:
        nonlocal at
        element = _element(data, at, matrix.end, order)
        if element.kind not in (kinds or BYTES) or (element.end - element.first) % BYTES.get(element.kind, 1):
            raise ValueError(f"an element of type {element.kind} where others are expected, at byte {at}")
        at = element.after
        return element

    def matrices(count: int) -> None:
        nonlocal at
        if count > (matrix.end - at) // 8:
            raise ValueError(f"{count} parts in {matrix.end - at} bytes, at byte {at}")
        for _ in range(count):
            inner = _element(data, at, matrix.end, order)
            _check_matrix(data, inner, order, depth + 1)
            at = inner.after

    flags = numbers(6)
    if flags.end - flags.first != 8:
        raise ValueError(f"flags of {flags.end - flags.first} bytes, at byte {flags.first}")
    (flag,) = struct.unpack_from(order + "I", data, flags.first)
    kind = flag & 0xFF
    sizes = numbers(5)
    count = (sizes.end - sizes.first) // 4
    shape = struct.unpack_from(f"{order}{count}i", data, sizes.first)
    if not 2 <= count <= 32 or min(shape) < 0:
        raise ValueError(f"a matrix of size {shape[:4]}, at byte {sizes.first}")
    numbers(1, 2, 16)  # the name
    total = prod(shape)
    if kind in NUMBERS or kind == CHAR:
        for _ in range(2 if flag & COMPLEX else 1):
            part = numbers()
            held = (part.end - part.first) // BYTES[part.kind]
            if kind in NUMBERS and held != total:
                raise ValueError(f"{held} numbers in a matrix of {total}, at byte {part.first}")
            if kind == CHAR and held < total and part.kind not in (1, 2, 16):
                raise ValueError(f"{held} letters in a text of {total}, at byte {part.first}")
    elif kind == CELL:
        matrices(total)
    elif kind in (STRUCT, OBJECT):
        if kind == OBJECT:
            numbers(1)
        length = numbers(5)
        if length.end - length.first != 4:
            raise ValueError(f"no length of field names, at byte {length.first}")
        (width,) = struct.unpack_from(order + "i", data, length.first)
        names = numbers(1)
        if width < 1 or (names.end - names.first) % width:
            raise ValueError(f"field names of {names.end - names.first} bytes, {width} each, at byte {names.first}")
        matrices(total * ((names.end - names.first) // width))
    else:  # sparse matrices, functions, objects: no data set has them
        raise ValueError(f"a matrix of class {kind}, at byte {matrix.first}; expected numbers, texts, cells and structs")
