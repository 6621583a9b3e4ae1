"""Correction of single 3D poses at test time by 2D evidence, of all samples of a batch at once; nothing that was trained changes.

`OnlineCorrector` looks through a projector that was learned, `correct_by_projection` through the camera where it is known.
"""

from lib.correction.online import Corrected, OnlineCorrector
from lib.correction.reprojection import Reprojected, correct_by_projection, shared_lengths
from lib.correction.rules import DECISIONS, StopRule, counts

__all__ = ["DECISIONS", "Corrected", "OnlineCorrector", "Reprojected", "StopRule", "correct_by_projection", "counts", "shared_lengths"]
