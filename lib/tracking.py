"""Who is who from one instant to the next: people of a sequence joined into tracks by the distance of their joints."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lib.errors import GeometryError

GATE_MM = 400.0  # people of neighbouring instants farther apart are not the same
GROWTH_MM = 100.0  # that limit is so much wider for every instant that is missing between the two
FAR = 1e9  # mm, beyond every gate
GAP = 10  # instants at most that a person may be lost


def track(
    X: Tensor, valid: Tensor, found: Tensor, gate_mm: float = GATE_MM, growth_mm: float = GROWTH_MM, max_gap: int = GAP, min_length: int = 1
) -> Tensor:
    """Numbers of people that stay the same through a sequence, in order of their first instants.

    X (F,P,J,3) mm, valid (F,P,J) bool, found (F,P) bool -> (F,P) long, -1 where nobody is or the track is too short. Two people are as far
    apart as the median of the distances of their common joints. At every instant as many people as possible are joined to tracks, nobody
    across more than the gate, and among those ways the one whose distances have the least sum is taken.

    Args:
        gate_mm, growth_mm: see above.
        max_gap: instants that a person may be lost and still be the same afterwards; 0 = none.
        min_length: tracks seen at fewer instants get no number.

    Raises:
        GeometryError: shapes do not fit, or a limit is below 0.
    """
    if X.ndim != 4 or X.shape[-1] != 3 or valid.shape != X.shape[:-1] or found.shape != X.shape[:2]:
        shapes = f"X {tuple(X.shape)}, valid {tuple(valid.shape)}, found {tuple(found.shape)}"
        raise GeometryError(f"track: {shapes}; expected (F,P,J,3), (F,P,J) and (F,P)")
    if gate_mm <= 0 or growth_mm < 0 or max_gap < 0:
        raise GeometryError(f"track: gate {gate_mm:g} mm, growth {growth_mm:g} mm, gap {max_gap}; expected above 0, and 0 or more")
    frames = len(X)
    apart = [_apart(X, valid & found[..., None], lag) for lag in range(1, min(max_gap + 1, max(frames - 1, 0)) + 1)]
    there, ids = found.cpu().numpy(), np.full(found.shape, -1, np.int64)
    last = np.zeros((0, 2), np.int64)  # instant and place where each track was seen last
    for f in range(frames):
        people = np.flatnonzero(there[f])
        open_tracks = np.flatnonzero(f - last[:, 0] <= len(apart)) if len(last) else np.zeros(0, np.int64)
        if len(people) and len(open_tracks):
            lag = f - last[open_tracks, 0]
            distance = np.stack([apart[g - 1][last[t, 0], last[t, 1]][people] for t, g in zip(open_tracks, lag, strict=True)])
            gate = (gate_mm + growth_mm * (lag - 1))[:, None]
            rows, columns = linear_sum_assignment(np.where(distance < gate, distance, FAR))
            near = distance[rows, columns] < np.broadcast_to(gate, distance.shape)[rows, columns]
            ids[f, people[columns[near]]] = open_tracks[rows[near]]
            last[open_tracks[rows[near]]] = np.stack([np.full(near.sum(), f), people[columns[near]]], 1)
        new = people[ids[f, people] < 0]
        ids[f, new] = len(last) + np.arange(len(new))
        last = np.concatenate([last, np.stack([np.full(len(new), f), new], 1)])
    length = np.bincount(ids[ids >= 0], minlength=len(last))
    kept = length >= min_length
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # nobody stays nobody
    return torch.from_numpy(number[ids]).to(found.device)


def _apart(X: Tensor, known: Tensor, lag: int) -> np.ndarray:
    """Median distances of everyone from everyone `lag` instants later, inf without a common joint.   -> (F-lag,P,P) mm"""
    common = known[:-lag, :, None] & known[lag:, None]
    distance = torch.linalg.vector_norm(X[:-lag, :, None] - X[lag:, None], dim=-1).masked_fill(~common, torch.nan)
    return distance.nanmedian(-1).values.nan_to_num(torch.inf, posinf=torch.inf).cpu().numpy()
