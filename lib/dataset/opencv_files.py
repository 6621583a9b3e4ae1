"""The YAML and XML files of cv2.FileStorage, read without it: OpenCV's parser writes beyond its memory on damaged files.

Matrices become arrays, everything else numbers, texts, lists and dicts.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from lib.errors import MALFORMED, DataError

WORD = re.compile(r'"([^"]*)"|(\S+)')
NAMED_NUMBERS = {".nan": np.nan, ".inf": np.inf, "-.inf": -np.inf}


def read_storage(path: str | Path) -> dict[str, Any]:
    """The top nodes of a file by name.

    Raises:
        DataError: missing, neither of the two, damaged, or a matrix whose numbers are not as many as its size says.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        top = _xml(text) if text.lstrip().startswith("<") else _yaml(text)
        if not isinstance(top, dict):
            raise ValueError(f"holds {type(top).__name__}, expected named nodes")
        return {str(key): value for key, value in top.items()}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ElementTree.ParseError, *MALFORMED) as error:
        said = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot be read as YAML or XML of OpenCV ({said}); write it again with cv2.FileStorage") from None


def _matrix(node: Mapping[str, Any]) -> np.ndarray:
    """The array of a node {rows, cols or sizes, dt, data}; `dt` is the type of a number, with the channels before it."""
    sizes = np.atleast_1d(node["sizes"]) if "sizes" in node else np.array([node["rows"], node["cols"]])
    channels = int(re.match(r"\d*", str(node["dt"]))[0] or 1)
    shape = [int(n) for n in sizes] + [channels] * (channels > 1)
    data = [] if node["data"] is None else [_number(value) for value in np.ravel(np.array(node["data"], object))]
    if min(shape, default=1) < 0 or len(data) != np.prod(shape, dtype=object):
        raise ValueError(f"a matrix of size {' x '.join(map(str, shape))} with {len(data)} numbers")
    return np.array(data, np.float64).reshape(shape)


def _number(value: Any) -> float:
    """A number as OpenCV writes it: .Nan, .Inf and 1e-05 are texts in YAML."""
    text = str(value).lower()
    return NAMED_NUMBERS[text] if text in NAMED_NUMBERS else float(value)


# ----------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML with OpenCV's tags of matrices."""


def _tagged(loader: _Loader, node: yaml.Node) -> np.ndarray:
    return _matrix(loader.construct_mapping(node, deep=True))


for _kind in ("opencv-matrix", "opencv-nd-matrix"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _tagged)


def _yaml(text: str) -> Any:
    return yaml.load(re.sub(r"\A\s*%YAML.*\n", "", text), _Loader)  # older versions write %YAML:1.0, which is no directive


# ------------------------------------------------------------------------------------------------------------------ XML


def _xml(text: str) -> Any:
    if "<!ENTITY" in text or "<!DOCTYPE" in text:  # with which a few bytes can fill the memory
        raise ValueError("it declares entities, which OpenCV does not")
    return _element(ElementTree.fromstring(text.lstrip()))


def _element(element: ElementTree.Element) -> Any:
    if not len(element):
        words = [_word(*match.groups()) for match in WORD.finditer(element.text or "")]
        return words[0] if len(words) == 1 else words or None
    if all(child.tag == "_" for child in element):
        return [_element(child) for child in element]
    node = {child.tag: _element(child) for child in element}
    return _matrix(node) if "matrix" in element.get("type_id", "") else node


def _word(quoted: str | None, plain: str | None) -> float | str:
    if quoted is not None:
        return quoted
    try:
        return _number(plain)
    except ValueError:
        return plain
