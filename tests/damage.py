"""Hypothesis draws damage: to the bytes of a file, to the words of a text, to the fields of JSON, archives, pickles and MATLAB files."""

import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from hypothesis import strategies as st

ODD_BYTES = (
    b"", b"\0" * 9, b"\xff\xfe\xff", b"nan", b"-1", b"1e999", b"9" * 400, b"[" * 1500, b"{}", b"null", b"\n", b"\x80\x04K\x01.", b",,",
)  # fmt: skip
ODD_WORDS = (
    "", "nan", "inf", "-1", "0", "1e999", "9" * 400, "1" * 5000, "[[", "]", "{}", "null", "true", "x", "é", "2 3", "\0", "!!python/tuple",
    "&a", "*a",
)  # fmt: skip
NUMBERS = (0, -1, 1, 1.5, 7, 2**31, 2**63, -(2**70), 10**400, 1e-300, 1e38, 1e300, float("nan"), float("inf"), True)
ODD_VALUES = (None, "", "x", "0", "nan", [], {}, [None], [[]], [1], [[1, 2], [3]], ["x"], {"x": 1}, [[[0.0] * 3] * 3] * 2, *NUMBERS)
WORD = re.compile(r"[^\s,;:\[\]{}()<>=\"']+")


def damage(path: Path, data: bytes, loads: Callable, dumps: Callable) -> st.SearchStrategy[bytes]:
    """Other contents for a file that holds `data`: half of them damaged as files are, half well written with wrong contents.

    loads and dumps: of pickles.
    """
    fields = FIELDS.get(path.suffix)
    if path.suffix == ".pkl":
        return _bytes(data) | changed(loads(data)).map(dumps)
    if fields is None and is_text(data):
        fields = _words
    return _bytes(data) if fields is None else _bytes(data) | fields(data)


def is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


# ----------------------------------------------------------------------------------------------------------------- bytes


@st.composite
def _bytes(draw, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        end = min(len(made), at + draw(st.sampled_from((1, 1, 1, 2, 4, 16, 200))))
        kind = draw(st.sampled_from(("flip", "set", "cut", "zero", "delete", "repeat", "insert")))
        if kind == "flip" and made:
            made[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and made:
            made[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del made[at:]
        elif kind == "zero":
            made[at:end] = bytes(end - at)
        elif kind == "delete":
            del made[at:end]
        elif kind == "repeat":
            made[at:at] = made[at:end] * 3
        else:
            made[at:at] = draw(st.sampled_from(ODD_BYTES))
    return bytes(made)


@st.composite
def _words(draw, data: bytes) -> bytes:
    text = data.decode()
    for _ in range(draw(st.integers(1, 2))):
        words = list(WORD.finditer(text))
        if not words:
            break
        word = words[draw(st.integers(0, len(words) - 1))]
        text = text[: word.start()] + draw(st.sampled_from(ODD_WORDS)) + text[word.end() :]
    return text.encode()


# ---------------------------------------------------------------------------------------------------------------- fields


@st.composite
def changed(draw, value: Any, most: int = 2) -> Any:
    """The value with one or two of its parts replaced, left out or exchanged. Parts are tuples, lists, dicts and arrays."""
    for _ in range(draw(st.integers(1, most))):
        seed = draw(st.integers(0, 2**32 - 1))
        value = _changed(value, random.Random(seed))
    return value


def _changed(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """Goes down a random way; deep places are as likely as shallow ones."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _other_array(value, rng)
    inside = _children(value)
    if not inside or rng.random() < 0.12:
        return value if depth == 0 and inside else _other(value, rng)
    key, child = rng.choice(inside)
    if rng.random() < 0.08:
        return _replaced(value, key, None, drop=True)
    return _replaced(value, key, _changed(child, rng, depth + 1))


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, np.ndarray) and value.dtype == object:
        return list(enumerate(value.ravel()))
    return list(vars(value).items()) if hasattr(value, "__dict__") else []


def _replaced(value: Any, key: Any, new: Any, drop: bool = False) -> Any:
    if isinstance(value, dict):
        return {k: new if k == key else v for k, v in value.items() if not (drop and k == key)}
    if isinstance(value, list | tuple):
        return type(value)([new if k == key else v for k, v in enumerate(value) if not (drop and k == key)])
    if isinstance(value, np.ndarray):
        flat = list(value.ravel())
        flat[key] = new
        made = np.empty(len(flat), object)
        made[:] = flat
        return made[1:] if drop else made.reshape(value.shape)
    made = type(value).__new__(type(value))
    vars(made).update({k: new if k == key else v for k, v in vars(value).items() if not (drop and k == key)})
    return made


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int | float) and rng.random() < 0.6:
        return rng.choice(NUMBERS)
    return rng.choice(ODD_VALUES)


def _other_array(a: np.ndarray, rng: random.Random) -> Any:
    kind = rng.randrange(9)
    number = a.dtype.kind in "fiub"
    if kind == 0:
        return a[:-1] if a.ndim else np.array([a])
    if kind == 1:
        return a[None] if rng.random() < 0.5 else a[..., None]
    if kind == 2:
        return a.ravel() if a.ndim != 1 else a.reshape(-1, 1)
    if kind == 3:
        return a[:0] if a.ndim else a.astype(np.float64) if number else np.array(0.0)
    if kind == 4:
        return np.swapaxes(a, 0, -1).copy() if a.ndim > 1 else np.concatenate([np.atleast_1d(a)] * 2)
    if kind == 5:
        return a.astype(rng.choice(("S3", "U3", "i1", "c8", "?", "f2"))) if number else np.zeros(a.shape)
    if kind == 6 and number and a.size:
        made = a.astype(np.float64) if rng.random() < 0.7 or a.dtype.kind == "b" else a.copy()
        flat = made.reshape(-1)
        first, value = rng.randrange(a.size), rng.choice([n for n in NUMBERS if abs(n) < 1e301 or n != n])
        with np.errstate(all="ignore"):
            try:
                flat[first : first + rng.choice((1, 1, 3, a.size))] = value
            except (OverflowError, ValueError):  # more than the integers of the array hold
                flat[first] = -1 if made.dtype.kind == "i" else 0
        return made
    if kind == 7:
        return rng.choice((np.array("x"), np.array(np.nan), np.zeros((0, 3)), np.array([b"\xff\xfe"]), np.zeros((2, 2, 2, 2, 2))))
    return rng.choice(ODD_VALUES[:14])


# --------------------------------------------------------------------------------------------------------- kinds of files


def _json(data: bytes) -> st.SearchStrategy[bytes]:
    return changed(json.loads(data)).map(lambda value: json.dumps(value, default=str).encode())


def _jsonl(data: bytes) -> st.SearchStrategy[bytes]:
    rows = [json.loads(line) for line in data.splitlines()]
    return changed(rows).map(lambda value: "\n".join(map(json.dumps, value if isinstance(value, list) else [value])).encode())


def _npz(data: bytes) -> st.SearchStrategy[bytes]:
    with np.load(io.BytesIO(data), allow_pickle=True) as file:
        arrays = {name: _opened(file[name]) for name in file.files}
    return changed(arrays).map(_as_npz)


def _opened(array: np.ndarray) -> Any:
    return array.item() if array.dtype == object and array.ndim == 0 else array


def _as_npz(arrays: Any) -> bytes:
    file = io.BytesIO()
    named = {k: _closed(v) for k, v in arrays.items()} if isinstance(arrays, dict) else {"a": _closed(arrays)}
    np.savez(file, **named)
    return file.getvalue()


def _closed(value: Any) -> np.ndarray:
    """Plain values as arrays of numbers where they are some, others as objects."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.array(value) if not isinstance(value, dict) and np.array(value).dtype != object else _object(value)
    except ValueError:  # ragged
        return _object(value)


def _object(value: Any) -> np.ndarray:
    made = np.empty((), object)
    made[()] = value
    return made


def _npy(data: bytes) -> st.SearchStrategy[bytes]:
    return changed({"a": np.load(io.BytesIO(data))}).map(_as_npy)


def _as_npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, _closed(value["a"] if isinstance(value, dict) and "a" in value else value))
    return file.getvalue()


def _mat(data: bytes) -> st.SearchStrategy[bytes]:
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[512:520] == b"\x89HDF\r\n\x1a\n":
        return _hdf(data)
    content = {k: v for k, v in scipy.io.loadmat(io.BytesIO(data)).items() if not k.startswith("__")}
    return changed(content).map(_as_mat)


def _as_mat(value: Any) -> bytes:
    file = io.BytesIO()
    content = value if isinstance(value, dict) else {"a": value}
    try:
        scipy.io.savemat(file, {k: v for k, v in content.items() if v is not None})
    except Exception:  # the format holds less than Python does
        file = io.BytesIO()
        scipy.io.savemat(file, {k: 0.0 for k in content})
    return file.getvalue()


def _hdf(data: bytes) -> st.SearchStrategy[bytes]:
    import h5py

    arrays: dict[str, np.ndarray] = {}
    with h5py.File(io.BytesIO(data), "r") as file:
        file.visititems(lambda name, node: arrays.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None)
    plain = {name: a for name, a in arrays.items() if a.dtype.kind in "fiub"}

    def written(value: Any) -> bytes:
        file = io.BytesIO()
        file.write(data)
        with h5py.File(file, "r+") as out:
            for name in plain:
                new = _closed(value.get(name)) if isinstance(value, dict) and name in value else None
                if new is plain[name]:
                    continue
                del out[name]
                if new is not None and new.dtype.kind in "fiub":
                    out[name] = new
        return file.getvalue()

    return changed(plain).map(written)


FIELDS: dict[str, Callable[[bytes], st.SearchStrategy[bytes]]] = {
    ".json": _json, ".jsonl": _jsonl, ".npz": _npz, ".npy": _npy, ".mat": _mat,
}  # fmt: skip
