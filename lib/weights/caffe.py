"""Weights in Caffe's files (.caffemodel), read without Caffe: a protobuf message of layers with blobs, old (V1) and new ones.

Only the fields that hold names, types and blobs are looked at, see caffe.proto of BVLC Caffe; all others are stepped over.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.errors import WeightsError

# Numbers of fields in caffe.proto.
_NET_NAME, _NET_V1, _NET_LAYER = 1, 2, 100
_NET_FIELDS = (2, 3, 4, 5, 6, 7, 8, 100)  # behind the name
_V1_FIELDS = {"name": 4, "type": 5, "blobs": 6}
_FIELDS = {"name": 1, "type": 2, "blobs": 7}
_SIZES, _DATA, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8  # of a blob
_DIM = 1  # of a shape
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 39: "Deconvolution"}
_MOST_AXES = 32  # Caffe's own limit


class Layer(NamedTuple):
    """A layer with weights. kind: Caffe's name of the type, a number in words for rare ones of V1."""

    name: str
    kind: str
    blobs: tuple[Tensor, ...]


class Net(NamedTuple):
    """A Caffe model: its name, layers with weights in order, how many layers it has in all, and whether they are V1."""

    name: str
    layers: tuple[Layer, ...]
    count: int
    old: bool


class _Damaged(Exception):
    """Bytes that are no such message; the text says what is wrong."""


def read_caffemodel(path: str | Path) -> Net:
    """The layers of a Caffe model that have weights.

    Blobs have the shape that the file tells; V1 files tell four sizes for all, (1, 1, out, in) for a matrix.

    Raises:
        WeightsError: missing, truncated, no Caffe model, or one without weights.
    """
    try:
        data = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    try:
        net = _net(data)
    except _Damaged as error:
        raise WeightsError(
            f"{path}: a truncated or damaged Caffe model ({error}); expected a binary .caffemodel; download or copy the file again"
        ) from error
    if not net.layers:
        what = f"{net.count} layers, but none has weights" if net.count else "no layers"
        raise WeightsError(f"{path}: a Caffe message with {what}; expected a trained .caffemodel, not a solver state or a definition")
    return net


def looks_like_caffe(head: bytes) -> bool:
    """Whether a file that begins so may be a Caffe model: the name of a network and another field of one, or a layer at once."""
    data = memoryview(head)
    try:
        key, at = _varint(data, 0)
        if key == _NET_NAME << 3 | _BYTES:
            length, at = _varint(data, at)
            if not bytes(data[at : at + length]).decode("utf-8", "replace").isprintable() or at + length >= len(data):
                return False
            key, at = _varint(data, at + length)
            return key >> 3 in _NET_FIELDS and key & 7 in (_VARINT, _BYTES)
        return key in (_NET_V1 << 3 | _BYTES, _NET_LAYER << 3 | _BYTES)
    except _Damaged:
        return False


def _net(data: memoryview) -> Net:
    name, layers, count, old = "", {}, 0, False
    for field, value in _fields(data):
        if field == _NET_NAME:
            name = _text(value)
        elif field in (_NET_V1, _NET_LAYER):
            count += 1
            old |= field == _NET_V1
            layer = _layer(_message(value), _V1_FIELDS if field == _NET_V1 else _FIELDS)
            if layer.blobs and layer.name in layers:
                raise _Damaged(f"two layers are called {ascii(layer.name)}")
            if layer.blobs:
                layers[layer.name] = layer
    return Net(name, tuple(layers.values()), count, old)


def _layer(data: memoryview, fields: dict[str, int]) -> Layer:
    name, kind, blobs = "", "", []
    for field, value in _fields(data):
        if field == fields["name"]:
            name = _text(value)
        elif field == fields["type"]:
            kind = _V1_TYPES.get(value, f"type {value}") if isinstance(value, int) else _text(value)
        elif field == fields["blobs"]:
            blobs.append(_message(value))
    return Layer(name, kind, tuple(_blob(blob, f"{ascii(name)}, blob {i}") for i, blob in enumerate(blobs)))


def _blob(data: memoryview, where: str) -> Tensor:
    sizes, shape, parts = {}, None, []
    for field, value in _fields(data):
        if field in _SIZES:
            sizes[field] = value
        elif field == _SHAPE:
            shape = _integers(_message(value))
        elif field in (_DATA, _DOUBLES):
            dtype = np.dtype("<f4" if field == _DATA else "<f8")
            if not isinstance(value, memoryview) or len(value) % dtype.itemsize:  # numbers one by one come as their bytes, too
                raise _Damaged(f"{where}: its numbers are cut in the middle")
            parts.append(np.frombuffer(value, dtype).astype(np.float32))
    flat = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if shape is None:
        shape = [sizes.get(field, 1) for field in _SIZES] if sizes else [len(flat)]
    if len(shape) > _MOST_AXES or not all(isinstance(n, int) and n >= 0 for n in shape) or prod(shape) != len(flat):
        raise _Damaged(f"{where}: {len(flat)} numbers for the shape {shape[:8]}")
    return torch.from_numpy(flat).reshape(shape)


def _integers(data: memoryview) -> list[int]:
    """The sizes of a shape, packed or one by one."""
    found = []
    for field, value in _fields(data):
        if field == _DIM and isinstance(value, int):
            found.append(value)
        elif field == _DIM:
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                found.append(size)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: an integer, or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_EIGHT, _FOUR):
            length = 8 if wire == _EIGHT else 4
        else:
            raise _Damaged(f"a field of unknown kind {wire}")
        if not field or length > len(data) - at:
            raise _Damaged(f"a field of {length} bytes, of which {len(data) - at} are there")
        yield field, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of up to 64 bits in pieces of seven, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Damaged("it ends within a number")
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise _Damaged("a number of more than 64 bits")


def _message(value: int | memoryview) -> memoryview:
    if not isinstance(value, memoryview):
        raise _Damaged("a number where a layer, a blob or a shape is expected")
    return value


def _text(value: int | memoryview) -> str:
    try:
        return bytes(_message(value)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Damaged("a name that is no text") from error
