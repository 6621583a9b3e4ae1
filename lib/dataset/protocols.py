"""Selections of Human3.6M by name: who is trained on and who is judged, where papers differ.

Not to be mixed up with the protocols that later papers number by metric (lib.metrics.report.PROTOCOLS): these say which frames count, and
every metric can be computed on each. Reports should carry `describe`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.dataset.annotations import Annotations
from lib.errors import DataError
from lib.registry import resolve

# What makes a table that has the frames of every protocol below.
PREPARE = "`python scripts/prepare.py h36m --release FOLDER --out data/h36m-machine --train-step 25 --valid-step 1`"
FRONTAL = 3  # the slot of camera 60457274, which papers call cam-3 and frontal


@dataclass(frozen=True)
class Selection:
    """Which observations: of these subjects, views and trials (empty = all), every `step`-th frame of each sequence."""

    subjects: tuple[str, ...]
    step: int = 1
    views: tuple[int, ...] = ()
    trials: tuple[str, ...] = ()  # subactions


_TRAIN = Selection(("S1", "S5", "S6", "S7", "S8"), step=25)  # 50 -> 2 frames per second: the paper's 104 frames of a sequence
# Of Wang et al., 3D Human Pose Machines with Self-supervised Learning, TPAMI 2019. Their text says 2 frames per second, which its numbers
# of pictures confirm (62437 and 21911 in machine1), the read-me of their code every 5th frame: `step` can be given.
PROTOCOLS: dict[str, dict[str, Selection]] = {
    "machine1": {"train": _TRAIN, "test": Selection(("S9", "S11"), step=25)},
    "machine2": {"train": _TRAIN, "test": Selection(("S9", "S11"), step=5, views=(FRONTAL,), trials=("1",))},
    "machine3": {"train": Selection((*_TRAIN.subjects, "S9"), step=25), "test": Selection(("S11",), step=64)},
}


def selection(name: str, part: str) -> Selection:
    """A part of a protocol by name.

    Raises:
        ConfigError: no such protocol, or a part that is neither train nor test.
    """
    return resolve(resolve(PROTOCOLS, name, key="protocol"), part, key="part of the protocol")


def select(
    ann: Annotations,
    name: str,
    part: str,
    step: int = 0,
    views: Sequence[int] = (),
    actions: Sequence[str] = (),
    source: str = "the table",
) -> Annotations:
    """The observations of a table that belong to a part of a protocol.

    Args:
        ann: a table of Human3.6M, every frame of it or thinned already: frames count by their numbers, from the first of the sequence.
        name: in PROTOCOLS.
        part: train or test.
        step: every how many frames; 0 = the protocol's.
        views: slots of cameras; empty = the protocol's.
        actions: of these alone, as for a model of one action; empty = all.
        source: what the table is called in messages.

    Raises:
        ConfigError: no such protocol or part.
        DataError: the table is too thin for the step, a subject, view or action is not in it, no sequence is of the trial, or no frame is
            left.
    """
    rule = selection(name, part)
    step, what = step or rule.step, f"protocol {name} ({part})"
    chosen = ann.protocol(rule.subjects, step, views or rule.views)
    for subject, spacing in _spacings(ann.select(ann.chosen(rule.subjects))).items():
        if spacing and step % spacing:
            raise DataError(f"{source}: holds one frame in {spacing} of {subject}, but {what} takes one in {step}, most of which are not "
                            f"there; make a table that has them with {PREPARE}, or set MACHINE.FRAMES to a multiple of {spacing}")
    keep = np.ones(len(chosen), bool)
    for values, wanted, title in ((chosen.subactions, rule.trials, "trials"), (chosen.actions, actions, "actions")):
        if wanted:
            own = np.isin(values, np.array([w.encode() for w in wanted]))[chosen.sequence]
            if not own.any():
                known = ", ".join(sorted({v.decode() for v in values[np.unique(chosen.sequence)]}))
                raise DataError(f"{what}: no sequence is of the {title} {', '.join(wanted)}, there are {known}; use another table")
            keep &= own
    if not keep.any():
        raise DataError(f"{what}: no observation is left, expected one or more; check the table, the frame step and the actions")
    return chosen if keep.all() else chosen.select(keep)


def _spacings(ann: Annotations) -> dict[str, int]:
    """By subject the number of which all frames of its sequences are multiples, from the first of each; 0 = there are no others."""
    first = np.full(len(ann.subjects), np.iinfo(np.int64).max)
    np.minimum.at(first, ann.sequence, ann.frame)
    names, who = np.unique(ann.subjects[ann.sequence], return_inverse=True)
    spacing = np.zeros(len(names), np.int64)
    np.gcd.at(spacing, who, ann.frame - first[ann.sequence])
    return {name.decode(): int(n) for name, n in zip(names, spacing, strict=True)}


def describe(name: str, part: str = "test", step: int = 0) -> dict[str, Any]:
    """What a report should say about the frames it was made on."""
    rule = selection(name, part)
    return {
        "selection": name,
        "subjects": list(rule.subjects),
        "every_nth_frame": step or rule.step,
        "views": list(rule.views) or "all",
        "trials": list(rule.trials) or "all",
        "source": "Wang et al., 3D Human Pose Machines, TPAMI 2019; not the protocols that later papers number",
    }
