"""lib/registry.py: names to objects, and the answer to a name that is not there."""

import math

import pytest

from lib.errors import ConfigError
from lib.registry import nearest, resolve

TABLE = {"sqrt": "math:sqrt", "math": "math", "own": len, "broken": "lib.no_such_module:thing"}


def test_texts_are_imported_and_objects_returned():
    assert resolve(TABLE, "sqrt", key="X") is math.sqrt
    assert resolve(TABLE, "math", key="X") is math
    assert resolve(TABLE, "own", key="X") is len


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        resolve(TABLE, "SQRTT", key="LOSS.FN")
    assert str(caught.value) == "LOSS.FN: 'SQRTT' is not one of broken, math, own, sqrt (did you mean sqrt?)"
    with pytest.raises(ConfigError, match=r"not one of broken, math, own, sqrt$"):
        resolve(TABLE, "zzzz", key="LOSS.FN")


def test_a_bug_inside_a_listed_module_is_not_called_unknown():
    with pytest.raises(ImportError):
        resolve(TABLE, "broken", key="X")


def test_nearest_ignores_case_and_keeps_silent_about_the_far():
    assert nearest("train.lr", ["TRAIN.LR", "TEST.BATCH_SIZE"]) == "TRAIN.LR"
    assert nearest("xyzzy", ["TRAIN.LR"]) is None and nearest("x", []) is None
