"""Real motion capture as archives that lifting networks learn from."""

from collections.abc import Sequence
from pathlib import Path

from lib.dataset.formats import h36m_constants
from lib.errors import DataError
from lib.files import locked
from lib.synthetic import mocap, stage
from lib.synthetic.world import SUBJECTS
from lib.tasks.world import ARCHIVES, write_archives


def prepare_mocap(
    train: Sequence[str], test: Sequence[str], out: str | Path, shapes: int = 0, seed: int = 0
) -> tuple[dict[str, int], dict[str, str]]:
    """Real motion capture as archives like those of the embedded world's motions, with exact 2D joints and with a detector's.

    Training actors play S1, S5, S6, S7, S8 in turn, the others S9 and S11: the cameras that readers of these archives know are those
    of these seven. An action's name keeps the actor's own: "slow-walk CMU08:08_03:1".

    Args:
        train, test: files as lib.synthetic.mocap.read takes them.
        out: folder of the archives.
        shapes: bodies for every actor; 0 = as recorded (see lib.synthetic.mocap.clips).
        seed: of bodies, headings, places and noise.

    Returns:
        Frames of each subject, and the role of each actor.

    Raises:
        DataError: a file that cannot be read, an actor who is in both, or archives that exist (they are never overwritten).
    """
    out = Path(out)
    splits = [[m for path in files for m in mocap.read(path)] for files in (train, test)]
    both = {m.subject for m in splits[0]} & {m.subject for m in splits[1]}
    if both:
        raise DataError(f"{', '.join(sorted(both))}: in the training files and in the test files; give each actor to one of the two")
    rigs = {name: h36m_constants.cameras(name) for name in stage.subjects()}
    roles = mocap.cast(splits[0], SUBJECTS["train"]) | mocap.cast(splits[1], SUBJECTS["valid"])
    clips = list(mocap.clips([*splits[0], *splits[1]], roles, rigs, seed, shapes))
    if not clips:
        raise DataError(f"{', '.join([*train, *test])}: no clip of {mocap.SHORTEST:g} s or more; give other files")
    with locked(out):
        there = [name for name in ARCHIVES if (out / name).exists()]
        if there:
            raise DataError(f"{out}: has {', '.join(there)} already, which are not overwritten; name another folder or delete them")
        return write_archives(out, clips, rigs, seed), roles
