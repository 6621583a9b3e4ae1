"""Choices by name: a table maps a name to an object, or to the text "package.module:attribute" that is imported on use.

Tables of texts let `lib` name things above it (such as "refiner.task:RefineTask") without importing them.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from lib.errors import ConfigError


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was probably meant to be, or None; letter case does not count."""
    by_lower = {n.lower(): n for n in names}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def unknown(name: object, names: Iterable[str], key: str) -> ConfigError:
    """The error for a name that is not in a table: it lists the known ones and guesses which was meant."""
    names = sorted(names)
    guess = nearest(str(name), names)
    hint = f" (did you mean {guess}?)" if guess else ""
    return ConfigError(f"{key}: {name!r} is not one of {', '.join(names)}{hint}")


def resolve(table: Mapping[str, Any], name: str, key: str) -> Any:
    """The object that `table` holds under `name`.

    Args:
        table: name -> object, or name -> "package.module" or "package.module:attribute", imported here.
        name: what the user asked for.
        key: the configuration key or argument it came from, for the message.

    Raises:
        ConfigError: `name` is not in the table. An import error inside a listed module is not caught: it is a bug, not a typo.
    """
    if name not in table:
        raise unknown(name, table, key)
    entry = table[name]
    if not isinstance(entry, str):
        return entry
    module_name, _, attribute = entry.partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, attribute) if attribute else module
