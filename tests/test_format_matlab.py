"""MATLAB files: what SciPy writes passes the check and is read the same; anything that does not fit together is refused before SciPy."""

import struct

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from lib.dataset.formats.matlab import HEAD, load_mat


def content() -> dict:
    cells = np.empty((1, 2), object)
    cells[:] = [[np.arange(3.0), "text"]]
    point = np.array([(1.0, 2)], [("x", float), ("id", int)])
    return {"a": np.arange(6.0).reshape(2, 3), "z": np.array([[1 + 2j]]), "cells": cells, "s": {"name": "b", "point": point}, "none": []}


@pytest.mark.parametrize("packed", [False, True])
def test_whole_files_are_read_as_scipy_does(tmp_path, packed):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, content(), do_compression=packed)
    ours, theirs = load_mat(path), scipy.io.loadmat(path)
    assert ours.keys() == theirs.keys()
    np.testing.assert_array_equal(ours["a"], theirs["a"])
    assert ours["cells"][0, 1] == theirs["cells"][0, 1] and ours["s"]["point"][0, 0]["id"] == theirs["s"]["point"][0, 0]["id"]
    assert load_mat(path, ["a"], squeeze_me=True)["a"].shape == (2, 3) and "z" not in load_mat(path, ["a"])


@pytest.mark.parametrize("packed", [False, True])
def test_files_that_end_early_are_refused(tmp_path, packed):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"cells": content()["cells"]}, do_compression=packed)
    data = path.read_bytes()
    for end in range(HEAD + 1, len(data) - 8, 3):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError):
            load_mat(path)


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.arange(6.0).reshape(2, 3)})
    data = path.read_bytes()
    sizes = data.index(struct.pack("<ii", 2, 3))
    for wrong, said in (((2, 4), "6 numbers in a matrix of 8"), ((-2, -3), "a matrix of size")):
        path.write_bytes(data[:sizes] + struct.pack("<ii", *wrong) + data[sizes + 8 :])
        with pytest.raises(ValueError, match=said):
            load_mat(path)


def test_what_no_data_set_has_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": scipy.sparse.eye(3, format="csc")})
    with pytest.raises(ValueError, match="class 5"):
        load_mat(path)
    path.write_bytes(b"not a mat file at all" * 20)
    with pytest.raises(ValueError, match="no MATLAB file"):
        load_mat(path)
