"""Windows of tracks: those of VideoPose3D number by number, tables with repeated ends and mirrored copies, whole tracks in pieces."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lib.dataset.chunks import ChunkSamples, TrackSamples, Windows
from lib.dataset.loader import Key, StepSampler, make_loader, steps_per_epoch
from lib.dataset.tracks import Tracks, concat, from_annotations, hashed_number
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.screen import from_screen, mirrored, project_held, screen_cameras, to_screen
from lib.skeleton import get
from lib.synthetic.world import World
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "videopose3d"
FACTS = json.loads((GOLDEN / "generators.json").read_text())
SIDES = {"2d": (FACTS["kps_left"], FACTS["kps_right"]), "3d": (FACTS["joints_left"], FACTS["joints_right"])}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "generators.npz") as file:
        return {name: file[name] for name in file.files}


def tracks(lengths=(7, 10, 3), seed=0, subjects=None) -> Tracks:
    """Random tracks of h36m17 before four different cameras."""
    rng = np.random.default_rng(seed)
    count = len(lengths)
    K = np.zeros((4, 3, 3))
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = 1100 + 10 * np.arange(4), 1090, 1
    K[:, :2, 2] = 500 + rng.normal(size=(4, 2)) * 10
    dist = rng.normal(size=(4, 5)) * [0.2, 0.2, 0.001, 0.001, 0.01]
    X_cam = rng.normal(size=(sum(lengths), 17, 3)).astype(np.float32) * 300 + np.float32([0, 0, 5000])
    return Tracks(
        layout="h36m17", skeleton="h36m17", keypoints=rng.uniform(100, 900, (sum(lengths), 17, 2)).astype(np.float32), X_cam=X_cam,
        start=np.concatenate([[0], np.cumsum(lengths)]), subject=np.array(subjects or ["S1"] * count),
        action=np.array(["Walking", "Walking 1", "Sitting", "SittingDown 2"][:count]), view=np.arange(count, dtype=np.int32) % 4,
        person=np.zeros(count, np.int32), camera=np.arange(count, dtype=np.int32) % 4, has_3d=np.ones(count, bool),
        cameras=Cameras.make(K, np.tile(np.eye(3), (4, 1, 1)), np.zeros((4, 3)), dist, np.full((4, 2), [1000.0, 1002.0])),
        tangential="h36m", fps=50.0,
    ).check("test")  # fmt: skip


def windows_of(golden, chunk, pad, shift, flip) -> tuple[Windows, dict[str, torch.Tensor]]:
    parts = {name: [torch.from_numpy(golden[f"data/poses_{name}_{s}"]) for s in range(3)] for name in ("2d", "3d")}
    windows = Windows(np.concatenate([[0], np.cumsum(FACTS["lengths"])]), chunk, pad, shift, flip)
    tables = {}
    for name, values in parts.items():
        values = torch.cat(values)
        left, right = SIDES[name]
        order = np.arange(values.shape[1])
        order[left + right] = right + left
        turned = values[:, order] * torch.tensor([-1.0] + [1.0] * (values.shape[-1] - 1))
        tables[name] = windows.table(values, turned if flip else None)
    return windows, tables


# ------------------------------------------------------------------------------------- the published generators


@pytest.mark.parametrize("case", FACTS["chunked"], ids=lambda c: c["id"])
def test_windows_are_those_of_the_published_generator(golden, case):
    windows, tables = windows_of(golden, case["chunk_length"], case["pad"], case["causal_shift"], case["augment"])
    pairs = golden[f"{case['id']}/pairs"]
    found = np.stack([windows.track, windows.first, windows.first + case["chunk_length"], windows.flipped], 1)
    assert (found == pairs).all()

    options = {"chunk": case["chunk_length"], "flip": case["augment"], "order": "reference", "seed": case["random_seed"]}
    order = ChunkSamples(tracks(FACTS["lengths"]), **options).order
    steps = len(case["batch_sizes"]) if case["take"] is None else sum(case["take"])
    sampler = StepSampler(
        len(windows), case["batch_size"], num_steps=steps, shuffle=case["shuffle"], order=order if case["shuffle"] else None, ragged=True
    )
    batches = list(sampler)
    assert [len(keys) for keys in batches] == case["batch_sizes"]
    for k, keys in enumerate(batches):
        entries = np.array([key.index for key in keys])
        if "3d" in case["use"]:
            assert np.array_equal(windows.predicted(tables["3d"], entries), golden[f"{case['id']}/b{k}/3d"])
        assert np.array_equal(windows.seen(tables["2d"], entries), golden[f"{case['id']}/b{k}/2d"])
        if "cam" in case["use"]:
            cameras = np.stack([golden[f"data/camera_{s}"] for s in windows.track[entries]])
            cameras[np.ix_(windows.flipped[entries], [2, 7])] *= -1
            assert np.array_equal(cameras, golden[f"{case['id']}/b{k}/cam"])


@pytest.mark.parametrize("case", FACTS["unchunked"], ids=lambda c: c["id"])
def test_whole_tracks_are_padded_as_published(golden, case):
    """A track of L frames as one window of L frames; mirrored ones follow it."""
    for s, length in enumerate(FACTS["lengths"]):
        values = torch.from_numpy(golden[f"data/poses_2d_{s}"])
        windows = Windows(np.array([0, length]), length, case["pad"], case["causal_shift"])
        seen = windows.seen(windows.table(values), np.array([0]))
        assert np.array_equal(seen[0], golden[f"{case['id']}/b{s}/2d"][0])


@pytest.mark.parametrize("low, high, text, expected", FACTS["deterministic_random"])
def test_the_hashed_number_is_the_published_one(low, high, text, expected):
    assert hashed_number(low, high, text) == expected


@pytest.mark.parametrize("case", FACTS["subset_selection"], ids=lambda c: f"{c['length']}-{c['downsample']}-{c['subset']}")
def test_a_subset_is_the_published_piece(case):
    table = tracks((case["length"], 5))
    kept = table.subset(case["subset"], case["downsample"])
    assert kept.lengths[0] == case["resulting_length"]
    assert np.array_equal(kept.keypoints[: kept.lengths[0]], table.keypoints[case["start"] :: case["downsample"]][: kept.lengths[0]])


def test_a_share_of_the_recordings_keeps_whole_ones_before_all_cameras():
    one = concat([tracks((5, 6, 7, 8), seed) for seed in range(10)])
    name = np.array([f"Walking {k // 2 % 10}" for k in range(40)])
    subject, view = np.repeat(["S1", "S5"], 20), np.arange(40, dtype=np.int32) % 2
    table = dataclasses.replace(one, subject=subject, action=name, view=view)
    kept = table.recordings(0.3)
    for subject in ("S1", "S5"):
        mine = kept.subject == subject
        assert len(set(kept.action[mine])) == 3 and mine.sum() == 6 and set(kept.view[mine]) == {0, 1}
    assert set(kept.action[kept.subject == "S1"]) != set(kept.action[kept.subject == "S5"])
    mixed = table.select(np.random.default_rng(0).permutation(40)).recordings(0.3)  # names decide, not places
    assert set(zip(mixed.subject, mixed.action, strict=True)) == set(zip(kept.subject, kept.action, strict=True))
    for s in range(len(kept)):
        source = np.flatnonzero((table.subject == kept.subject[s]) & (table.action == kept.action[s]) & (table.view == kept.view[s]))[0]
        assert np.array_equal(kept.select([s]).keypoints, table.select([source]).keypoints)
    assert len(set(table.recordings(0.01).action)) <= 2 and len(table.recordings(1.0)) == 40
    with pytest.raises(DataError, match="a subset of 0"):
        table.recordings(0.0)


# ------------------------------------------------------------------------------------- screen coordinates


def test_screen_coordinates_keep_the_aspect_and_come_back():
    size = torch.tensor([640.0, 480.0])
    corners = torch.tensor([[0.0, 0], [640, 480], [320, 240]])
    x = to_screen(corners, size)
    assert torch.allclose(x, torch.tensor([[-1, -0.75], [1, 0.75], [0, 0]]))
    assert torch.allclose(from_screen(x, size), corners, atol=1e-4)


def test_a_screen_camera_sees_what_the_camera_sees_and_its_mirror_image():
    table = tracks()
    cameras, X = table.observing(), torch.from_numpy(table.X_cam[:3]).double()
    x_img = cameras.from_norm(X[..., :2] / X[..., 2:], tangential="h36m")
    plain = screen_cameras(cameras)
    x = project_held(X, plain, near_mm=0)
    assert torch.allclose(x, to_screen(x_img, cameras.size), atol=1e-12)
    flipped = project_held(X * torch.tensor([-1.0, 1, 1]), mirrored(plain), near_mm=0)
    assert torch.allclose(flipped, x * torch.tensor([-1.0, 1]), atol=1e-12)


def test_projection_of_points_behind_the_camera_is_held():
    camera = screen_cameras(tracks().cameras[0])
    X = torch.tensor([[300.0, 0, 0], [300, 0, -4000], [100, 0, 4000]], dtype=torch.float64, requires_grad=True)
    x = project_held(X, camera, distort=False)
    assert x.isfinite().all() and x[0, 0] == x[1, 0]  # both are seen at the limit, on their own side
    x.sum().backward()
    assert X.grad.isfinite().all()


# ------------------------------------------------------------------------------------- samples


def test_a_batch_holds_the_frames_around_the_predicted_one_and_their_mirror_image():
    table = tracks((5, 4))
    data = ChunkSamples(table, pad=2, cameras=True)
    assert len(data) == 2 * 9
    batch = data.__getitems__([Key(1), Key(6)])  # frame 1 of the first track, and its mirror image
    size = table.cameras.size[0].float()
    x = to_screen(torch.from_numpy(table.keypoints[[0, 0, 1, 2, 3]]), size)
    assert torch.allclose(batch["x_screen"][0], x, atol=1e-6)
    flip = torch.as_tensor(get("h36m17").flip.copy())
    assert torch.allclose(batch["x_screen"][1], x[:, flip] * torch.tensor([-1.0, 1]), atol=1e-6)
    assert torch.equal(batch["X_cam"][0, 0], torch.from_numpy(table.X_cam[1]))
    assert torch.equal(batch["X_cam"][1, 0], torch.from_numpy(table.X_cam[1])[flip] * torch.tensor([-1.0, 1, 1]))
    camera = batch["camera"]
    assert camera.K[0, 0, 2] == -camera.K[1, 0, 2] != 0 and camera.dist[0, 3] == -camera.dist[1, 3] != 0


@pytest.mark.parametrize("piece", [1, 4, 100])
def test_pieces_of_a_track_see_the_same_frames_as_the_whole_track(piece):
    table, pad, shift = tracks((7, 10, 3)), 3, 3
    data = TrackSamples(table, pad, shift, piece=piece)
    batch = data.__getitems__([Key(i) for i in range(len(data))])
    assert batch["id"].tolist() == list(range(20))
    assert torch.equal(batch["X_cam"], torch.from_numpy(table.X_cam))
    windows = Windows(table.start, 1, pad, shift)
    x = to_screen(torch.from_numpy(table.keypoints), table.cameras.size[0].float())
    expected = windows.seen(windows.table(x), np.arange(20))
    own = batch["x_screen"].unfold(1, 2 * pad + 1, 1).movedim(-1, 2)[batch["frames"]]
    assert torch.equal(own, expected)


def test_the_reference_order_continues_over_epochs_and_can_be_asked_again():
    data = ChunkSamples(tracks(), order="reference")
    rng = np.random.RandomState(1234)
    drawn = [rng.permutation(len(data)) for _ in range(4)]
    for epoch in (0, 1, 3, 1, 2):
        assert np.array_equal(data.order(epoch), drawn[epoch])
    loader = make_loader(data, 16, workers=3, num_steps=6)
    sizes = [len(batch["id"]) for batch in loader]
    assert loader.num_workers == 0 and sizes == [16, 16, 8, 16, 16, 8]


def test_a_single_last_window_joins_the_batch_before():
    """Batch norms cannot be trained on one value; every window of the epoch is still seen once, in the published order."""
    data = ChunkSamples(tracks(), order="reference")  # 40 windows
    batches = [batch["id"].tolist() for batch in make_loader(data, 13, num_steps=6)]
    assert [len(ids) for ids in batches] == [13, 13, 14] * 2 and steps_per_epoch(40, 13, data.least) == 3
    assert [i for ids in batches[:3] for i in ids] == data.order(0).tolist() and sum(batches[3:], []) == data.order(1).tolist()
    longer = ChunkSamples(tracks((4, 5, 6, 5)), chunk=4, flip=False, order="reference")  # of several frames each
    sizes = [len(batch["id"]) for batch in make_loader(longer, 3, num_steps=3)]
    assert len(longer) == 7 and sizes == [3, 3, 1]


# ------------------------------------------------------------------------------------- tracks


def test_a_protocol_selects_by_subject_order_action_and_trial():
    table = tracks((4, 5, 6, 7), subjects=["S1", "S5", "S1", "S5"])
    assert table.protocol(["S5", "S1"]).subject.tolist() == ["S5", "S5", "S1", "S1"]
    assert table.protocol(actions=["Walking"]).action.tolist() == ["Walking", "Walking 1"]
    assert table.protocol(actions=["Sitting"]).action.tolist() == ["Sitting"]  # not SittingDown
    assert table.protocol(actions=["Sitting*"]).action.tolist() == ["Sitting", "SittingDown 2"]
    assert table.protocol(actions=["Walking 1"]).lengths.tolist() == [5]
    assert table.protocol(views=[1, 3]).lengths.tolist() == [5, 7]
    assert table.protocol() is table
    for wrong in ({"subjects": ["S2"]}, {"actions": ["Runing"]}, {"views": [7]}):
        with pytest.raises(DataError, match="expected some of"):
            table.protocol(**wrong)
    thin = table.thinned(3)
    assert thin.lengths.tolist() == [2, 2, 2, 3] and thin.fps == pytest.approx(50 / 3)
    assert np.array_equal(thin.keypoints[:2], table.keypoints[[0, 3]])


def test_annotations_become_tracks_before_each_camera():
    ann = World(split="train", frames=6, length=6, objects=False).annotations()
    table = from_annotations(ann).check("world")
    assert len(table) == 4 and table.lengths.tolist() == [6] * 4 and table.view.tolist() == [0, 1, 2, 3]
    cameras = table.observing()
    x_img = cameras.project_cam(torch.from_numpy(table.X_cam).double().reshape(4, -1, 3)).reshape(-1, 17, 2)
    assert (x_img.numpy() - table.keypoints).__abs__().max() < 0.02
    both = concat([table, table])
    assert len(both) == 8 and both.camera.max() == 2 * len(ann.cameras) - 1 and np.array_equal(both.keypoints[24:], table.keypoints)


def test_joints_that_are_not_seen_repeat_where_they_were_seen_last():
    ann = World(split="train", frames=6, length=6, objects=False).annotations().protocol(views=[0])
    conf = ann.conf.copy()
    conf[[0, 2, 3], 4] = 0
    table = from_annotations(dataclasses.replace(ann, conf=conf))
    expected = ann.x_img[[1, 1, 1, 1, 4, 5], 4]
    assert np.array_equal(table.keypoints[:, 4], expected)
    conf[:, 4] = 0
    with pytest.raises(DataError, match="never seen"):
        from_annotations(dataclasses.replace(ann, conf=conf))


def test_faults_are_named():
    table = tracks()
    broken = table.keypoints.copy()
    broken[8, 3] = np.nan
    with pytest.raises(DataError, match="frame 1 of S1 'Walking 1' camera 1"):
        dataclasses.replace(table, keypoints=broken).check("file.npz")
    with pytest.raises(DataError, match="features, expected 3"):
        ChunkSamples(table, features=3)
    with pytest.raises(DataError, match="no tracks"):
        ChunkSamples(table.select([]))
    unknown = dataclasses.replace(table, cameras=dataclasses.replace(table.cameras, K=table.cameras.K * np.nan))
    assert len(ChunkSamples(unknown)) and not unknown.has_intrinsics.any()
    with pytest.raises(DataError, match="intrinsics of 3 of 3 tracks"):
        ChunkSamples(unknown, cameras=True)
    with pytest.raises(DataError, match="no 3D poses"):
        TrackSamples(dataclasses.replace(table, has_3d=np.array([True, False, True])))
    with pytest.raises(DataError, match="several processes"):
        StepSampler(10, 2, world=2, ragged=True)
