"""Reading pickles of published data sets without trusting them.

Only plain containers, numbers, texts, NumPy arrays and records of classes named by the caller come out; any other class
or function in the file is refused by name before anything is called. Nothing of a file is ever executed, and even NumPy's
own reconstruction code is replaced: an array is made here, from a plain type, a shape and bytes.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import DataError

_PLAIN_KINDS = "biufSU"  # booleans, real numbers, texts


class Record:
    """An object of a named class: its attributes, none of its behaviour."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if part is not None and not isinstance(part, dict):
                raise pickle.UnpicklingError(f"the state of a record is {type(part).__name__}, expected attributes by name")
            self.__dict__.update({str(k): v for k, v in (part or {}).items()})


class _Type:
    """A NumPy type under construction: `dtype(code)` and a state that holds the byte order."""

    def __init__(self, code: Any, *_: Any):
        self.order, self.code = "=", code.decode("latin1") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode() if isinstance(order, bytes) else str(order)

    @property
    def dtype(self) -> np.dtype:
        if self.code in ("O", "O8", "|O"):
            return np.dtype(object)
        kind = _plain(np.dtype(self.code))
        return kind.newbyteorder(self.order) if self.order in "<>" else kind


def _plain(kind: np.dtype) -> np.dtype:
    if kind.kind not in _PLAIN_KINDS or kind.fields or kind.subdtype:
        raise pickle.UnpicklingError(f"holds an array of type {kind}; expected real numbers, booleans or text")
    return kind


class _Array:
    """A NumPy array under construction; `value` is there once its state was read."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state if len(state) == 5 else (1, *state)
        self.value = _array(data, kind.dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
    """An array from its bytes, or from a list of objects; sizes that do not fit raise ValueError."""
    shape = tuple(int(n) for n in shape)
    if dtype.kind == "O":
        if not isinstance(data, list) or len(data) != prod(shape):
            raise pickle.UnpicklingError("holds an array of objects whose number differs from its shape")
        flat = np.empty(len(data), object)
        for i, item in enumerate(data):
            flat[i] = item
    else:
        data = data.encode("latin1") if isinstance(data, str) else data  # written by Python 2
        flat = np.frombuffer(data, dtype, prod(shape)) if prod(shape) else np.empty(0, dtype)
    return flat.reshape(shape, order=order).copy()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, kind: _Type, shape: Any, order: str) -> _Array:
    made = _Array()
    made.value = _array(data, kind.dtype, shape, order)
    return made


def _scalar(kind: _Type, data: Any) -> Any:
    return _array(data, kind.dtype, (1,), "C")[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What Python 3 writes for bytes in old protocols."""
    return str(text).encode("latin1")


def _bytes(*_: Any) -> bytes:
    """What Python 3 writes for empty bytes in old protocols."""
    return b""


def _defaultdict(*_: Any) -> dict:
    """A plain dict: what would make its missing values is not even looked at."""
    return {}


def _bytearray(data: Any = b"", *_: Any) -> bytearray:
    return bytearray(data if isinstance(data, bytes) else str(data).encode("latin1"))  # a number would reserve memory


def _old_object(cls: Any, *_: Any) -> Record:
    """How protocols 0 and 1 make objects."""
    if not (isinstance(cls, type) and issubclass(cls, Record)):
        raise pickle.UnpicklingError("makes an object of a class that is not allowed")
    return cls()


class _Maker:
    """What a name in a pickle may stand for besides classes: it can be called, never changed. Without a function: not even called."""

    __slots__ = ("_make",)

    def __init__(self, make: Any = None):
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("gives a function attributes")


_NO_CLASS = _Maker()  # fills the argument slots of reconstruction calls: numpy.ndarray, object
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NO_CLASS,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Maker(_encode),
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _Maker(_defaultdict),
    ("copyreg", "_reconstructor"): _Maker(_old_object),
    ("copy_reg", "_reconstructor"): _Maker(_old_object),
    ("builtins", "object"): _NO_CLASS,
    ("__builtin__", "object"): _NO_CLASS,
    ("builtins", "list"): _NO_CLASS,  # what makes the missing values of a defaultdict
    ("__builtin__", "list"): _NO_CLASS,
    ("builtins", "bytes"): _Maker(_bytes),
    ("__builtin__", "bytes"): _Maker(_bytes),
    ("builtins", "bytearray"): _Maker(_bytearray),
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Maker(_reconstruct)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _Maker(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _Maker(_from_buffer)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, records: Collection[str]):
        super().__init__(file, encoding="latin1")
        self.records = {name: type(name.rpartition(".")[2], (Record,), {"__module__": "record"}) for name in records}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self.records:
            return self.records[f"{module}.{name}"]
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]


class _Refused(Exception):
    """A class or function that is not allowed."""


def load(path: str | Path, records: Collection[str] = ()) -> Any:
    """The object in a pickle.

    Args:
        path: the file.
        records: full names of classes whose objects may appear; each becomes a Record with the same attributes.

    Raises:
        DataError: missing, damaged, or it names another class or function, which the message tells.
    """
    return _guarded(path, "a pickle", lambda file: _finished(_Unpickler(file, records).load()), records)


def load_npz(path: str | Path) -> dict[str, Any]:
    """The arrays of an .npz archive by name. Arrays of objects, which NumPy stores as pickles, are read as `load` reads them.

    A single object comes as an array of shape (), as from `np.load(path, allow_pickle=True)`: `.item()` is the object.

    Raises:
        DataError: missing, damaged, or it names a class or function, which the message tells.
    """

    def members(file: Any) -> dict[str, Any]:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy"): _member(archive, name) for name in archive.namelist() if name.endswith(".npy")}

    return _guarded(path, "an .npz archive", members)


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an archive."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = head(file)
        if dtype.hasobject:
            value = _finished(_Unpickler(file, ()).load())
            if dtype.kind != "O" or not isinstance(value, np.ndarray) or value.dtype.kind != "O" or value.shape != shape:
                raise pickle.UnpicklingError(f"{name} holds something else than an array of objects of shape {shape}")
            return value
        _plain(dtype)
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _guarded(path: str | Path, kind: str, read: Callable[[Any], Any], records: Collection[str] = ()) -> Any:
    """What `read` makes of a file, or one DataError for all that can be wrong with it."""
    try:
        with open(path, "rb") as file:
            return read(file)
    except _Refused as error:
        raise DataError(
            f"{path}: the pickle wants to call {error}, expected plain data and NumPy arrays"
            f"{' and ' + ', '.join(records) if records else ''}; nothing was run. Get the file again from its source"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise DataError(f"{path}: not {kind}, cut short or damaged ({error}); copy or download the file again") from None


def _finished(value: Any, done: dict[int, Any] | None = None) -> Any:
    """The object with every array under construction replaced by the array; shared parts stay shared."""
    done = {} if done is None else done
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array has no contents")
        if value.value.dtype.kind != "O":
            return value.value
    elif not isinstance(value, list | tuple | dict | Record):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, tuple):
        return tuple(_finished(v, done) for v in value)
    done[id(value)] = value
    if isinstance(value, _Array):
        done[id(value)] = array = value.value
        flat = array.reshape(-1)
        for i in range(flat.size):
            flat[i] = _finished(flat[i], done)
        return array
    if isinstance(value, Record):
        _finished(value.__dict__, done)
    elif isinstance(value, dict):
        for key in value:
            value[key] = _finished(value[key], done)
    else:
        value[:] = [_finished(v, done) for v in value]
    return value
