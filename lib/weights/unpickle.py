"""Reading torch files without trusting them.

`torch.load(weights_only=True)` comes first. Files it refuses, because they also hold foreign objects (a NumPy random
state, a camera class), are read by an unpickler of our own that can build tensors and containers and nothing else: any
other class or function becomes an inert placeholder, so nothing in the file is ever called.
"""

import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lib.errors import WeightsError

AGAIN = "download or copy the file again"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of files written by torch < 1.6
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip


class Inert:
    """Stands for an object of a foreign class; holds nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self

    def append(self, value: Any) -> None:
        """Accepts and forgets, as `extend` and `add` do: pickles of containers call them."""

    extend = add = append


def load_file(path: str | Path) -> tuple[Any, bool]:
    """The object in a torch file, and whether foreign objects in it were replaced by Inert; tensors are on the host.

    Raises:
        WeightsError: missing, a directory, empty, a web page, truncated, damaged, or no torch file at all.
    """
    path = Path(path)
    head = _head(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols
            return torch.load(path, map_location=stay_on_host, weights_only=True), False
    except Exception as error:  # a damaged or hostile pickle can raise anything
        refused = str(error).strip().split("\n")[0]
    try:
        with path.open("rb") as file:
            return (_read_zip(file) if head.startswith(b"PK") else _read_legacy(file)), True
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}; {AGAIN}") from error
    except Exception as error:
        kind = "a truncated or damaged torch file" if head.startswith(b"PK") else "not a torch checkpoint, or damaged"
        reason = "" if "weights_only" in refused else f" ({refused[:200]})"  # torch's advice to read it without care is left out
        raise WeightsError(f"{path}: {kind}{reason}; expected a .pth or .pth.tar file; {AGAIN}") from error


def stay_on_host(storage: Any, location: str) -> Any:
    """The `map_location` that leaves tensors in main memory, whatever device they were saved from."""
    return storage


def _head(path: Path) -> bytes:
    """The first bytes; common things that are no checkpoint get their own message."""
    if path.is_dir():
        raise WeightsError(f"{path}: is a directory, expected a checkpoint file inside of it; give the file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; see models/README.md for the downloads") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    text = head.lstrip().lower()
    if not head:
        raise WeightsError(f"{path}: the file is empty, expected a checkpoint; {AGAIN}")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path}: holds a web page, not a checkpoint (a download that needs a login?); {AGAIN}")
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a Git LFS pointer, not the checkpoint itself; run `git lfs pull`")
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"Rar!")):
        raise WeightsError(f"{path}: is a compressed archive; unpack it and give the checkpoint file inside")
    return head


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; `storage` turns a persistent id into a flat tensor."""

    def __init__(self, file: BinaryIO, storage: Any):
        super().__init__(file, encoding="latin1")  # checkpoints written by Python 2 hold byte strings
        self.persistent_load = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        if module.split(".")[0] == "torch" and name in _STORAGES:  # of any device
            return _Storage(_STORAGES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        return type(name, (Inert,), {"__module__": f"inert.{module}"})


class _Storage:
    """The type of a storage: only its dtype matters. Not a class, so a pickle cannot instantiate it."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


def _rebuild_tensor(flat: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return flat.as_strided(tuple(size), tuple(stride), int(offset))  # checks the bounds of the storage


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_REBUILD = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
}


def _dtype(kind: Any) -> torch.dtype:
    if not isinstance(kind, _Storage):
        raise WeightsError("holds tensors of a kind that is not known")
    return kind.dtype


def _read_zip(file: BinaryIO) -> Any:
    """Files of torch >= 1.6: a zip archive with data.pkl and one entry per storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
        if not pickles:
            raise WeightsError("is a zip archive without data.pkl, not a torch checkpoint")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise WeightsError("was written on a big-endian machine")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise WeightsError("is a compressed zip archive, which torch does not write")
        storages: dict[str, Tensor] = {}

        def storage(pid: Any) -> Tensor:
            _, kind, key, _, _ = pid
            if key not in storages:
                data = bytearray(archive.read(f"{folder}data/{key}"))
                dtype = _dtype(kind)
                storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return storages[key]

        with archive.open(pickles[0]) as stream:
            return _Unpickler(stream, storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """Files of torch < 1.6: magic, protocol, system, object, storage keys, then the storages in that order."""
    size = file.seek(0, 2)
    file.seek(0)

    def refuse(pid: Any) -> Any:
        raise WeightsError("has a damaged head")

    if _Unpickler(file, refuse).load() != _LEGACY_MAGIC:
        raise WeightsError("is a pickle, but not a torch checkpoint")
    _Unpickler(file, refuse).load()  # protocol
    _Unpickler(file, refuse).load()  # system
    storages: dict[str, Tensor] = {}

    def storage(pid: Any) -> Any:
        if pid[0] == "module":  # a whole pickled network: its class, and that one's source code, which is left alone
            return pid[1]
        _, kind, key, _, count, view = pid
        dtype = _dtype(kind)
        if key not in storages:
            if sum(flat.nbytes for flat in storages.values()) + count * dtype.itemsize > size:
                raise WeightsError("is truncated: a tensor is larger than the file")
            storages[key] = torch.empty(count, dtype=dtype)
        if view is None:
            return storages[key]
        _, offset, length = view
        return storages[key][offset : offset + length]

    value = _Unpickler(file, storage).load()
    for key in _Unpickler(file, refuse).load():
        (count,) = struct.unpack("<q", file.read(8))
        flat = storages[key]
        data = bytearray(file.read(flat.numel() * flat.itemsize))
        if count != flat.numel() or len(data) != flat.numel() * flat.itemsize:
            raise WeightsError("is truncated inside a tensor")
        if data:
            flat.copy_(torch.frombuffer(data, dtype=flat.dtype))
    return value
