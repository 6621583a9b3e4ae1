"""What lib/config.py is made of: typed keys, the checks on their values, and the reading of YAML files and arguments.

Files are walked as YAML nodes rather than read as values: each value then knows its line, a key that is set twice is
seen, and nothing is evaluated.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import yaml

from lib.errors import ConfigError
from lib.registry import nearest, unknown


class Check(NamedTuple):
    """A range: `holds(value)`, and the words for it that follow "expected"."""

    holds: Callable[[Any], bool]
    words: str


class Key(NamedTuple):
    """A leaf of the tree. The type of a value is the type of `default`; that of a list's elements is `of`."""

    default: Any
    doc: str
    check: Check | None = None
    choices: tuple = ()
    of: type = int  # element type, lists only
    alias: Mapping = {}  # values of another type that are taken as one of ours
    path: str = ""  # non-empty: an input file, and what to do when it is missing
    path_except: tuple = ()  # values of a path key that are words rather than files
    each: "Key | None" = None  # mappings only: what every value in it must be; None = anything


class Group(NamedTuple):
    """A section: its documentation, and its keys and sub-sections."""

    doc: str
    keys: dict[str, "Key | Group"]


class Schema:
    """A tree of keys by dotted name, and the answers to names that are not in it.

    Attributes:
        keys, groups: leaves and sections by dotted name.
        tree: the root group.   legacy: names that load although nothing reads them; a section stands for all below it.
    """

    def __init__(self, tree: Group, legacy: Mapping[str, str]):
        self.tree, self.legacy = tree, legacy
        self.keys: dict[str, Key] = {}
        self.groups: dict[str, Group] = {}
        self._add(tree, "")
        self.free = tuple(dotted for dotted, key in self.keys.items() if isinstance(key.default, dict))

    def _add(self, group: Group, prefix: str) -> None:
        for name, entry in group.keys.items():
            if isinstance(entry, Group):
                self.groups[prefix + name] = entry
                self._add(entry, f"{prefix}{name}.")
            else:
                self.keys[prefix + name] = entry

    def owner(self, dotted: str) -> str | None:
        """The leaf that a dotted name sets: itself, or the free mapping (any name may stand in it) that it lies in."""
        if dotted in self.keys:
            return dotted
        return next((free for free in self.free if dotted.startswith(free + ".")), None)

    def is_legacy(self, dotted: str) -> bool:
        return any(dotted == key or dotted.startswith(key + ".") for key in self.legacy)

    def unknown_key(self, place: str, dotted: str) -> ConfigError:
        """The error for a name that is no key: it looks for the same name in other sections, then for a similar one."""
        section, _, leaf = dotted.rpartition(".")
        names = [*self.keys, *self.groups]
        leaf_of = {name: name.rpartition(".")[2] for name in names}
        found = [name for name in names if leaf_of[name].lower() == leaf.lower()]
        here = [name for name in found if name.rpartition(".")[0] == section]
        if here:  # only the letter case is wrong
            found = here
        elif len(found) > 1 and section and section not in self.groups:  # the section is misspelt as well
            found = [nearest(dotted, found) or found[0]]
        if not found:
            siblings = {leaf_of[name]: name for name in names if name.rpartition(".")[0] == section}
            anywhere = {leaf_of[name]: name for name in reversed(names)}
            guess = siblings.get(nearest(leaf, siblings)) or nearest(dotted, names)
            guess = guess or anywhere.get(nearest(leaf, anywhere))
            found = [guess] if guess else []
        hint = "see docs/config.md for all keys"
        if found:
            top = " at the top level" if section in self.groups else ""
            hint = "did you mean " + " or ".join(name if "." in name else name + top for name in found) + "?"
        return ConfigError(f"{place}: {dotted} is not a key; {hint}")


# ------------------------------------------------------------------------------------------- values and their types


@dataclass(frozen=True)
class Setting:
    """One assignment, and where it was made."""

    key: str
    value: Any
    place: str  # "file:line" or "command line"
    text: str | None = None  # the value as typed on the command line
    own: bool = True  # False: from a BASE file

    def error(self, expected: str, got: str, hint: str = "") -> ConfigError:
        """On the command line the value is repeated in front, so it is not told again at the end."""
        hint = f"; {hint}" if hint else ""
        if self.text is not None:
            return ConfigError(f"{self.place}: {self.key} {self.text}: expected {expected}{hint}")
        return ConfigError(f"{self.place}: {self.key}: expected {expected}, got {got}{hint}")


_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # 1e-3 is a number, but a text to PyYAML (YAML 1.1)


def _words(value: Any) -> str:
    """A value as the user knows it, for the end of a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return shown(value)
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "the list " + shown(value)
    kind = {int: "number", float: "number", str: "text"}.get(type(value), type(value).__name__)
    return f"the {kind} {shown(value)}"


def shown(value: Any) -> str:
    """A value as YAML would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return repr(value) if isinstance(value, str) else str(value)


def _scalar(value: Any, kind: type) -> Any:
    """`value` as `kind`, or None if it is of another type. An int fits float, so does the text 1e-3, no more."""
    if kind is float and type(value) in (int, float, str):
        if isinstance(value, str) and not _EXPONENT.fullmatch(value):
            return None
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return value if type(value) is kind else None


def fit(setting: Setting, key: Key) -> Any:
    """The value of a setting in the type of its key, within its range.

    Raises:
        ConfigError: of the wrong type, out of range, or not one of the choices.
    """
    value = setting.value
    for other, ours in key.alias.items():
        if type(value) is type(other) and value == other:
            value = ours
    kind = type(key.default)
    if kind is dict:
        if not isinstance(value, Mapping):
            raise setting.error("a mapping such as {name: value}", _words(value))
        return {name: fit_below(replace(setting, key=f"{setting.key}.{name}", value=v), key) for name, v in value.items()}
    if kind is list:
        value = _fit_list(setting, value, key)
    else:
        if kind is str and setting.text is not None and not isinstance(value, str):
            value = setting.text  # EXP_NAME 007 on the command line is a text; in a file it needs its quotes
        fitted = _scalar(value, kind)
        if fitted is None:
            quotable = kind is str and not isinstance(value, list | Mapping)
            hint = "write '' for an empty one" if quotable and value is None else "put it in quotes" if quotable else ""
            raise setting.error(_TYPE_WORDS[kind], _words(value), hint)
        value = fitted
    if key.choices and value not in key.choices:
        if kind is str:
            raise ConfigError(f"{setting.place}: {unknown(value, key.choices, setting.key)}")
        raise setting.error("one of " + ", ".join(map(str, key.choices)), shown(value))
    if key.check and not key.check.holds(value):
        raise setting.error(key.check.words, shown(value))
    return value


def _fit_list(setting: Setting, value: Any, key: Key) -> list:
    if isinstance(value, list | tuple):
        fitted = [_scalar(v, key.of) for v in value]
        if None not in fitted:
            return fitted
        wrong = next(v for v, f in zip(value, fitted, strict=True) if f is None)
        raise setting.error(f"a list of {_TYPE_WORDS[key.of].removeprefix('a ')}s", f"{_words(wrong)} in it")
    parts = [_scalar(_parse(part), key.of) for part in str(value).split(",")]  # was `[90, 110]` meant by `90,110`?
    example = parts if None not in parts else key.default or [0, 1]
    raise setting.error(f"a list such as {shown(example)}", _words(value))


def fit_below(setting: Setting, owner: Key) -> Any:
    """The value of one name in a mapping, which may be anything unless its key says what the values are."""
    return fit_free(setting, setting.value) if owner.each is None else fit(setting, owner.each)


def fit_free(setting: Setting, value: Any) -> Any:
    """A value below a free key: anything that YAML and JSON both can hold, so that the configuration can be stored."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise setting.error("texts as names", _words(name))
        return {k: fit_free(replace(setting, key=f"{setting.key}.{k}"), v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [fit_free(setting, v) for v in value]
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    raise setting.error("a text, a number, true, false or a list", _words(value), "put dates in quotes")


def _parse(text: str) -> Any:
    """The value of a YAML scalar or flow text; the text itself where it is not YAML."""
    try:
        value = yaml.safe_load(text)
        json.dumps(value, default=str, skipkeys=True)  # raises ValueError where it contains itself, as aliases can
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2020-99-99 looks like a date
        return text
    return value


# ------------------------------------------------------------------------------------------------ files and arguments


class _File:
    """One YAML file as a list of settings, beside that of its BASE."""

    def __init__(self, schema: Schema, path: str, chain: tuple[str, ...] = ()):
        self.schema, self.path, self.chain = schema, path, (*chain, path)
        self.settings: list[Setting] = []
        self.base: list[Setting] = []
        text = self._text()
        try:
            self.loader = yaml.SafeLoader(text)
            root = self.loader.get_single_node()
            if root is not None:
                self._refuse_duplicates(root)
                self._section(root, schema.tree, "")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            tab = " (indent with blanks, not with tabs)" if "'\\t'" in str(error.problem) else ""
            raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}{tab}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None

    def _text(self) -> str:
        try:
            with open(self.path, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            folder, name = os.path.split(self.path)
            guess = nearest(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else None
            hint = f"did you mean {os.path.join(folder, guess)}?" if guess else "those of the repository are under experiments/"
            raise ConfigError(f"no configuration file {self.path!r}; {hint}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: not a UTF-8 text, so not a YAML configuration") from None
        except IsADirectoryError:
            raise ConfigError(f"{self.path}: is a folder; expected the YAML file of an experiment, such as one of those in it") from None
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _place(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"

    def _refuse_duplicates(self, root: yaml.Node) -> None:
        """PyYAML keeps the last of two equal keys without a word."""
        stack, visited = [(root, "")], set()
        while stack:
            node, prefix = stack.pop()
            if id(node) in visited or not isinstance(node, yaml.CollectionNode):
                continue
            visited.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                stack.extend((child, prefix) for child in node.value)
                continue
            first: dict[str, yaml.Node] = {}
            for key_node, value_node in node.value:
                name = str(key_node.value)
                if name in first:
                    line = first[name].start_mark.line + 1
                    raise ConfigError(f"{self._place(key_node)}: {prefix}{name} is set twice, first in line {line}")
                first[name] = key_node
                stack.append((value_node, f"{prefix}{name}."))

    def _pairs(self, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[yaml.Node, str, yaml.Node]]:
        """Key node, name and value node; `<<` is merged, what a section sets itself comes last and wins."""
        self.loader.flatten_mapping(node)
        pairs = {str(key_node.value): (key_node, value_node) for key_node, value_node in node.value}
        for name, (key_node, value_node) in pairs.items():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                shown = name if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                where = f" in {prefix.rstrip('.')}" if prefix else ""
                raise ConfigError(f"{self._place(key_node)}: expected the name of a key{where}, got {shown}")
            yield key_node, name, value_node

    def _value(self, node: yaml.Node, dotted: str, place: str) -> Any:
        try:
            return self.loader.construct_object(node, deep=True)
        except ValueError as error:  # PyYAML on 2020-99-99, or on a number of thousands of digits
            raise ConfigError(f"{place}: {dotted}: cannot be read: {error}") from None

    def _section(self, node: yaml.Node, group: Group, prefix: str) -> None:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return  # a section whose keys are all commented out
        if not isinstance(node, yaml.MappingNode):
            found = _words(self._value(node, prefix.rstrip("."), self._place(node)))
            name = f"{prefix.rstrip('.')}: expected" if prefix else "expected"
            raise ConfigError(f"{self._place(node)}: {name} a section of keys such as 'SEED: 0', got {found}")
        for key_node, name, value_node in self._pairs(node, prefix):
            dotted, place = prefix + name, self._place(key_node)
            entry = group.keys.get(name)
            if not prefix and name == "BASE":
                self._read_base(self._value(value_node, name, place), place)
            elif isinstance(entry, Group):
                self._section(value_node, entry, dotted + ".")
            elif entry and isinstance(entry.default, dict) and isinstance(value_node, yaml.MappingNode):
                for child, child_name, child_value in self._pairs(value_node, dotted + "."):
                    free, at = f"{dotted}.{child_name}", self._place(child)
                    self.settings.append(Setting(free, self._value(child_value, free, at), at))
            elif entry or self.schema.is_legacy(dotted):
                self.settings.append(Setting(dotted, self._value(value_node, dotted, place), place))
            elif not prefix and self.schema.owner(dotted):
                section, _, leaf = dotted.rpartition(".")
                raise ConfigError(f"{place}: {dotted}: dotted names are for the command line; "
                                  f"in a file write {leaf} inside the section {section}")
            else:
                raise self.schema.unknown_key(place, dotted)

    def _read_base(self, base: Any, place: str) -> None:
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{place}: BASE: expected the path of a YAML file, got {_words(base)}")
        path = os.path.normpath(os.path.join(os.path.dirname(self.path), base))
        if not os.path.isfile(path):
            raise ConfigError(f"{place}: BASE: no file {path!r}; the path is relative to the file that names it")
        if any(os.path.samefile(path, other) for other in self.chain):
            raise ConfigError(f"{place}: BASE: {' -> '.join((*self.chain, path))} is a circle")
        file = _File(self.schema, path, self.chain)
        self.base = [*file.base, *(replace(s, own=False) for s in file.settings)]


def read_file(schema: Schema, path: str) -> list[Setting]:
    """The settings of a YAML file, those of its BASE first.

    Raises:
        ConfigError: with file and line: no such file, no YAML, unknown or repeated keys, a BASE that leads in a circle.
    """
    file = _File(schema, path)
    return [*file.base, *file.settings]


def read_arguments(schema: Schema, arguments: Sequence[str]) -> list[Setting]:
    """`KEY VALUE` and `KEY=VALUE`, mixed, as settings; the later one wins.

    Raises:
        ConfigError: unknown key, a section, or a key without value.
    """
    settings, rest = [], list(arguments)
    while rest:
        key, equals, text = str(rest.pop(0)).partition("=")
        if key == "BASE":
            raise ConfigError("command line: BASE can be set in a file only; give that file to --cfg")
        if key in schema.groups:
            first = next(name for name in schema.keys if name.startswith(key + "."))
            raise ConfigError(f"command line: {key} is a section; set one of its keys, such as {first}")
        if schema.owner(key) is None and not schema.is_legacy(key):
            raise schema.unknown_key("command line", key)
        if not equals:
            if not rest:
                raise ConfigError(f"command line: {key} has no value; write {key} VALUE or {key}=VALUE")
            text = str(rest.pop(0))
        settings.append(Setting(key, _parse(text), "command line", text))
    return settings


