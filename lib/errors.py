"""The errors a user can cause. Each message names the thing, what was found, what was expected and the next step.

Scripts print the message of a ParallaxError without a traceback and leave with status 2; any other exception is a bug of ours.
"""

import lzma
import pickle
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


class ParallaxError(Exception):
    """Base of every error that a user can mend."""

    shared = False  # raised by every process of a run alike, so that the main one says it for all


class ConfigError(ParallaxError):
    """A configuration key, its value, or a combination of both is wrong."""


class DataError(ParallaxError):
    """An annotation, image, calibration or skeleton is missing, damaged or does not fit."""


class GeometryError(ParallaxError, ValueError):
    """Shapes do not fit, or the geometry is degenerate (too few points, one plane, no baseline)."""


class WeightsError(ParallaxError):
    """A checkpoint cannot be read, is not trusted, or does not fit the model."""


class RunError(ParallaxError):
    """The run itself cannot go on: run directory, resume, a loss that is not finite."""


# What a damaged file makes its reader raise: libraries about bytes, our own code about contents that are not what they should be.
# A reader catches it around the parsing of one file, and raises DataError (WeightsError, RunError) with the name of the file.
# OSError is not among them: it tells of the place, not of the contents.
MALFORMED = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
    lzma.LZMAError, pickle.UnpicklingError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def interruptible(main: Callable[[], int], said: str = "stopped; what was written is complete") -> int:
    """The exit status of a command, which Ctrl-C ends with a word and no traceback. Files appear whole or not at all."""
    try:
        return main()
    except KeyboardInterrupt:
        print(said, file=sys.stderr)
        return INTERRUPTED
