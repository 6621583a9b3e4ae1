"""Numbers of people that stay: walks that are known, with people who cross, leave, return and are missed."""

import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.tracking import track

BODY = torch.tensor([[0.0, 0, 900], [0, 0, 1400], [250, 0, 1200], [-250, 0, 1200], [100, 0, 50], [-100, 0, 50]])


def walks(paths: torch.Tensor, noise: float = 0.0, seed: int = 0):
    """People of paths (F,N,2) mm in an order of its own at every instant.   -> X (F,N,J,3), who (F,N)"""
    rng = torch.Generator().manual_seed(seed)
    place = torch.cat([paths, torch.zeros_like(paths[..., :1])], -1)
    X = place[:, :, None] + BODY + noise * torch.randn(*paths.shape[:2], len(BODY), 3, generator=rng)
    who = torch.rand(paths.shape[:2], generator=rng).argsort(1)
    return X.take_along_dim(who[..., None, None], 1), who


def lines(starts, steps, frames: int) -> torch.Tensor:
    """(F,N,2) mm"""
    return torch.tensor(starts).float() + torch.arange(frames)[:, None, None] * torch.tensor(steps).float()


def all_of(X):
    return torch.ones(X.shape[:-1], dtype=torch.bool), torch.ones(X.shape[:2], dtype=torch.bool)


def consistent(ids: torch.Tensor, who: torch.Tensor) -> bool:
    """Each person has one number and each number is one person."""
    pairs = {(int(a), int(b)) for a, b in zip(ids[ids >= 0], who[ids >= 0], strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_people_keep_their_numbers_though_their_order_changes():
    X, who = walks(lines([[0, 0], [3000, 0], [0, 3000], [-2500, 500]], [[40, 10], [-50, 20], [20, -40], [60, 0]], 40), noise=15.0)
    ids = track(X, *all_of(X))
    assert consistent(ids, who) and sorted(ids.unique().tolist()) == [0, 1, 2, 3]
    assert ids[0].tolist() == [0, 1, 2, 3]


def test_the_sum_of_distances_decides_not_the_nearest_pair():
    """Two people in a row both step forward: the nearest pair would join the wrong ones."""
    X, who = walks(torch.tensor([[[0.0, 0], [350, 0]], [[300.0, 0], [650, 0]]]))
    ids = track(X, *all_of(X), gate_mm=400)
    assert consistent(ids, who) and ids.unique().tolist() == [0, 1]


def test_short_gaps_are_bridged_and_long_ones_end_a_track():
    X, who = walks(lines([[0, 0], [2500, 0]], [[30, 0], [0, 30]], 30))
    valid, found = all_of(X)
    lost = (who == 1) & ((torch.arange(30) >= 8) & (torch.arange(30) < 13))[:, None]
    found[lost] = False
    ids = track(X, valid, found, max_gap=5)
    assert (ids[lost] == -1).all() and consistent(ids, who) and ids.max() == 1
    ids = track(X, valid, found, max_gap=4)
    after = (who == 1) & (torch.arange(30) >= 13)[:, None]
    assert ids[after].unique().tolist() == [2] and consistent(ids[:8], who[:8]) and ids[who == 0].unique().numel() == 1


def test_who_appears_far_away_is_somebody_else():
    X, _ = walks(torch.tensor([[[0.0, 0]], [[100.0, 0]], [[3000.0, 0]]]))
    assert track(X, *all_of(X))[:, 0].tolist() == [0, 0, 1]
    assert track(X, *all_of(X), gate_mm=5000)[:, 0].tolist() == [0, 0, 0]
    assert track(X, *all_of(X), min_length=2)[:, 0].tolist() == [0, 0, -1]


def test_unknown_joints_do_not_count_and_numbers_are_dense():
    X, who = walks(lines([[0, 0], [2000, 0]], [[20, 0], [20, 0]], 6), noise=5.0)
    valid, found = all_of(X)
    rng = np.random.default_rng(0)
    for f in range(6):
        for p in range(2):
            wrong = rng.integers(len(BODY))
            valid[f, p, wrong], X[f, p, wrong] = False, torch.tensor([1e5, torch.nan, 0])
    assert consistent(track(X, valid, found), who)
    found[0] = False
    ids = track(X, valid, found, min_length=3)
    assert (ids[0] == -1).all() and sorted(ids[1:].unique().tolist()) == [0, 1]
    valid[3] = False  # nothing in common: nobody can be told to be the same
    ids = track(X, valid, found, max_gap=0)
    assert not set(ids[3].tolist()) & set(ids[2].tolist())


def test_nobody_and_wrong_shapes():
    X = torch.zeros(4, 2, 6, 3)
    valid, found = all_of(X)
    assert (track(X, valid, ~found) == -1).all() and track(X[:0], valid[:0], found[:0]).shape == (0, 2)
    assert track(X[:1], valid[:1], found[:1]).tolist() == [[0, 1]]
    with pytest.raises(GeometryError, match=r"expected \(F,P,J,3\)"):
        track(X[0], valid, found)
    with pytest.raises(GeometryError, match="gate -1 mm"):
        track(X, valid, found, gate_mm=-1)
