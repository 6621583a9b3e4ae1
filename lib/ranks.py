"""What the processes of a distributed run do together: the main one acts, all learn how it ended. Without a run, one process is all."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lib.errors import ParallaxError
from lib.files import ADVICE, locked


def on_main(function: Callable[[], Any]) -> Any:
    """Runs `function` on the main rank only; its (small) result, or its ParallaxError, reaches every rank.

    Every rank must come here, as the main one tells all of them.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    result, error = None, None
    if not several or dist.get_rank() == 0:
        try:
            result = function()
        except ParallaxError as e:
            error = e
    if several:
        both = [result, error]
        dist.broadcast_object_list(both, src=0)
        result, error = both
    if error is not None:
        error.shared = several
        raise error
    return result


def once(paths: Sequence[Path], make: Callable[[], Any], advice: str = ADVICE) -> None:
    """Makes files of one folder where one of them is missing: by one process, of one run and of all runs that were started together.

    The main rank alone looks, so that ranks which arrive when the files are just complete do what the others do.

    Args:
        paths: the files.
        make: writes those that are missing.
        advice: the next step where the folder cannot be written.

    Raises:
        ParallaxError: that of `make`, on every rank.    DataError: the folder cannot be written.
    """

    def look() -> None:
        if all(path.exists() for path in paths):
            return
        with locked(paths[0].parent, advice):
            if not all(path.exists() for path in paths):  # another run may have made them meanwhile
                make()

    on_main(look)
