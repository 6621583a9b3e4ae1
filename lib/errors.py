"""The errors a user can cause. Each message names the thing, what was found, what was expected and the next step.

Scripts print the message of a ParallaxError without a traceback and leave with status 2; any other exception is a bug of ours.
"""


class ParallaxError(Exception):
    """Base of every error that a user can mend."""


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
