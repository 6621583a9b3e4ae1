"""People of several views put together: exact and disturbed synthetic scenes, Shelf's real detections, Pose2Sim's two people."""

import json
import re

import cv2
import numpy as np
import pytest
import torch

from lib import unpickle
from lib.errors import GeometryError
from lib.geometry.association import associate_people, triangulate_people
from lib.geometry.camera import Cameras
from lib.geometry.triangulation import enough_views
from lib.metrics import people
from lib.metrics.people_evaluator import PCPEvaluator, PeopleEvaluator
from lib.skeleton import get
from tests.scene import ring_of_cameras

# Offsets of 14 joints from the middle of the hips, mm: a person who stands with bent arms.
BODY = torch.tensor([
    [-90.0, 0, -820], [-100, 20, -420], [-95, 0, 0], [95, 0, 0], [100, 60, -420], [90, 160, -790],
    [-260, 220, 250], [-240, 30, 230], [-170, 0, 500], [170, 0, 500], [260, 20, 240], [230, -60, 20], [0, 10, 580], [0, 20, 760],
])  # fmt: skip


def crowd(frames: int, number: int, views: int, noise: float = 0.0, lost: float = 0.0, ghosts: int = 0, seed: int = 0):
    """People who stand apart, seen by level cameras with lens distortion; each view lists them in its own order.

    -> X (F,N,J,3), cameras (V,), x_img (F,V,M,J,2), conf (F,V,M,J), who (F,V,M): the person of each place, -1 = a false one
    """
    rng = torch.Generator().manual_seed(seed)
    cameras = ring_of_cameras(views, distortion=True, radius=6000.0)
    cell = torch.rand(frames, 9, generator=rng).argsort(1)[:, :number]
    place = 1000.0 * torch.stack([cell % 3 - 1, cell // 3 - 1, torch.zeros_like(cell)], -1)
    place = place + torch.tensor([150.0, 150, 0]) * torch.randn(frames, number, 3, generator=rng) + torch.tensor([0.0, 0, 900])
    angle = 6.3 * torch.rand(frames, number, generator=rng)
    turn = torch.zeros(frames, number, 3, 3)
    turn[..., 0, 0] = turn[..., 1, 1] = angle.cos()
    turn[..., 0, 1], turn[..., 1, 0], turn[..., 2, 2] = -angle.sin(), angle.sin(), 1.0
    body = BODY + 60 * torch.randn(frames, number, *BODY.shape, generator=rng)
    X = ((turn[:, :, None] @ body[..., None])[..., 0] + place[:, :, None]).double()
    x = cameras.project(X.flatten(1, 2)[:, None])[0].unflatten(2, (number, -1))  # (F,V,N,J,2)
    x = x + noise * torch.randn(x.shape, generator=rng, dtype=torch.double)
    conf = 0.5 + 0.5 * torch.rand(x.shape[:-1], generator=rng, dtype=torch.double)
    conf = conf * (torch.rand(*conf.shape[:3], 1, generator=rng) >= lost)
    false = torch.stack([x[:, v, :ghosts].roll(1 + v, 0) for v in range(views)], 1)  # people of other moments
    x, conf = torch.cat([x, false], 2), torch.cat([conf, torch.ones(false.shape[:-1], dtype=torch.double)], 2)
    who = torch.cat([torch.arange(number), torch.full((ghosts,), -1)]).expand(frames, views, -1)
    order = torch.rand(who.shape, generator=rng).argsort(-1)
    x, conf, who = x.take_along_dim(order[..., None, None], 2), conf.take_along_dim(order[..., None], 2), who.gather(2, order)
    return X, cameras, x.where(conf[..., None] > 0, torch.nan), conf, who


def identities(member: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
    """Who each person was put together from.    member (F,P,V), who (F,V,M) -> (F,P,V), -2 = no 2D person"""
    found = who.gather(2, member.clamp(min=0).transpose(1, 2)).transpose(1, 2)
    return found.masked_fill(member < 0, -2)


def mixed(member: torch.Tensor, who: torch.Tensor) -> float:
    """Part of the 2D people that were given to a person made mostly of somebody else."""
    found = identities(member, who)
    votes = (found[..., None] == torch.arange(int(who.max()) + 1)).sum(2)  # (F,P,N)
    return 1 - float(votes.amax(-1).sum() / (found > -2).sum())


@pytest.mark.parametrize(("number", "views"), [(1, 2), (3, 3), (5, 5), (6, 8)])
def test_people_are_found_again_exactly(number, views):
    X, cameras, x, conf, who = crowd(4, number, views)
    found = associate_people(x, conf, cameras, max_people=8)
    assert found.found.sum(1).tolist() == [number] * 4 and found.valid[found.found].all()
    assert mixed(found.member, who) == 0 and (found.member[found.found] >= 0).all() and (found.views[found.found] == views).all()
    person = identities(found.member, who)[:, :number, 0]
    truth = X.take_along_dim(person[..., None, None], 1)
    assert (found.X_world[:, :number] - truth).norm(dim=-1).max() < 1e-3
    assert not found.X_world[:, number:].any() and (found.score[:, :-1] >= found.score[:, 1:]).all()


def test_noise_misses_and_false_people():
    X, cameras, x, conf, who = crowd(30, 4, 5, noise=4.0, lost=0.15, ghosts=1)
    found = associate_people(x, conf, cameras)
    valid = torch.ones(X.shape[:3], dtype=torch.bool)
    distance = people.person_distances(people.fill_joints(found.X_world, found.valid), X, valid)
    assigned = people.assign(distance, found.score, found.found, valid.any(-1))
    ap, recall = people.average_precision(assigned, 100)
    assert ap > 0.97 and recall > 0.97 and people.matched(assigned).distance.mean() < 30
    counts = []
    for strictness in ({"min_score": 0.0}, {}, {"min_score": 1.5}, {"min_views": 3}):  # false people go first
        some = associate_people(x, conf, cameras, **strictness)
        real = (some.found & (identities(some.member, who) >= 0).any(-1)).sum()
        counts.append((int(real), int(some.found.sum() - real)))
    reals, falses = zip(*counts, strict=True)
    assert reals[0] == reals[2] == 120 and reals[3] > 110 and falses[0] > falses[1] > falses[2] > falses[3] and falses[3] < 2


def test_the_number_of_frames_at_a_time_and_the_order_of_people_change_nothing(monkeypatch):
    X, cameras, x, conf, _ = crowd(6, 3, 4, noise=2.0, lost=0.1)
    whole = associate_people(x, conf, cameras)
    monkeypatch.setattr("lib.geometry.association.BLOCK", 1)
    for part, one in zip(whole, associate_people(x, conf, cameras.expand(6, 4)), strict=True):
        torch.testing.assert_close(part, one)
    flipped = associate_people(x.flip(2), conf.flip(2), cameras)
    torch.testing.assert_close(flipped.X_world, whole.X_world)


def test_nobody_one_view_and_padding():
    _, cameras, x, conf, _ = crowd(3, 2, 4)
    conf[0], conf[1, 1:] = 0, 0  # nobody, and people whom one camera sees alone
    found = associate_people(x, conf, cameras)
    assert found.found.sum(1).tolist() == [0, 0, 2] and found.X_world.isfinite().all() and not found.X_world[:2].any()
    assert (found.member[:2] == -1).all() and not found.score[:2].any()
    none = associate_people(x[:, :, :0], conf[:, :, :0], cameras)
    assert not none.found.any() and none.X_world.shape == (3, 10, 14, 3)
    assert associate_people(x[:0], conf[:0], cameras).found.shape == (0, 10)


def test_a_person_listed_twice_is_found_once():
    _, cameras, x, conf, _ = crowd(3, 2, 4)
    again = x + 2.0 * torch.randn(x.shape, dtype=torch.double)
    found = associate_people(torch.cat([x, again], 2), torch.cat([conf, conf], 2), cameras)
    assert found.found.sum(1).tolist() == [2, 2, 2]


def test_a_joint_that_one_view_has_wrong_is_made_from_the_others():
    X, cameras, x, conf, who = crowd(2, 2, 5)
    x[:, 2, :, 6] += 90.0
    found = associate_people(x, conf, cameras)
    assert (found.views[:, :2, 6] == 4).all() and (found.views[:, :2, 7] == 5).all()
    truth = X.take_along_dim(identities(found.member, who)[:, :2, 0, None, None], 1)
    assert (found.X_world[:, :2] - truth).norm(dim=-1).max() < 1e-3


def test_shapes_that_do_not_fit_are_refused():
    _, cameras, x, conf, _ = crowd(1, 1, 3)
    with pytest.raises(GeometryError, match=r"expected \(F,V,M,J,2\)"):
        associate_people(x, conf[..., :-1], cameras)
    with pytest.raises(GeometryError, match="at least two"):
        associate_people(x[:, :1], conf[:, :1], cameras[:1])


# ------------------------------------------------------------------------------------------------------------ real people


def test_real_detections_on_shelf(samples):
    """OpenPose's joints of 151 frames, five cameras; which person a joint belongs to is known but not told."""
    with np.load(samples / "shelf" / "shelf_multiview_150-300.npz") as file:
        gt, matched, K, RT = (torch.from_numpy(file[k]).double() for k in ("gt3d", "matched2d", "K", "RT"))
    cameras = Cameras.make(K, RT[..., :3], 1000 * RT[..., 3])
    who = torch.rand(matched.shape[:3], generator=torch.Generator().manual_seed(0)).argsort(-1)
    x = matched.take_along_dim(who[..., None, None], 2)
    found = associate_people(x[..., :2], x[..., 2].nan_to_num(0.0), cameras)
    truth = 1000 * gt[:, :, :14, :3]
    known = truth.isfinite().all(-1)
    assert found.found.sum() == known.any(-1).sum() and mixed(found.member, who) < 0.002

    fourteen = get("shelf14")
    limbs = torch.tensor([k for k, joint in enumerate(fourteen.joints) if joint not in ("upper_neck", "head")])
    known[..., fourteen.indices(("upper_neck", "head"))] = False  # no such joints among the detections
    shape = *found.found.shape, fourteen.num
    X, valid = torch.zeros(*shape, 3), torch.zeros(shape, dtype=torch.bool)
    X[:, :, limbs], valid[:, :, limbs] = found.X_world.float(), found.valid
    evaluator = PCPEvaluator("shelf14")
    pred = {"X_world": X, "score": found.score, "found": found.found, "valid": valid}
    evaluator.update(pred, {"id": torch.arange(len(X)), "X_world": truth, "X_valid": known})
    report = evaluator.compute()
    print(report.table())
    metrics = report.metrics
    assert metrics["pcp_percent"] > 94.5 and metrics["pcp_recall500_percent"] == 100 and metrics["mpjpe_mm"] < 60


def shelf_cameras(samples) -> Cameras:
    """calibration_shelf.json, whose T is the camera's centre in mm."""
    told = json.loads((samples / "shelf" / "calibration_shelf.json").read_text()).values()
    K = [[[c["fx"], 0, c["cx"]], [0, c["fy"], c["cy"]], [0, 0, 1]] for c in told]
    centers = [np.ravel(c["T"]) for c in told]
    return Cameras.make(np.array(K, float), np.array([c["R"] for c in told]), center=np.array(centers), size=(1032, 776))


def test_a_detector_s_whole_people_on_shelf(samples):
    """Mask R-CNN and HRNet, one instant: 3 to 5 people per view, false ones among them; there is no truth for it but the images."""
    path = samples / "shelf" / "pred_shelf_maskrcnn_hrnet_coco.pkl"
    listed = unpickle.load(path)
    views, cameras = [listed[f"{v}_0"] for v in range(5)], shelf_cameras(samples)
    x = torch.zeros(1, 5, max(map(len, views)), 17, 3, dtype=torch.double)
    for v, view in enumerate(views):
        x[0, v, : len(view)] = torch.from_numpy(np.array([person["pred"] for person in view]))
    x, conf = x[..., :2], x[..., 2]
    found = associate_people(x, conf, cameras)
    everywhere = (found.member[0] >= 0).all(-1)
    assert everywhere.sum() == 3 and found.valid[0, everywhere].all()
    evaluator = PeopleEvaluator("coco17")
    pred = {"X_world": found.X_world, "score": found.score, "found": found.found, "valid": found.valid}
    evaluator.update(pred, {"id": torch.tensor([0]), "camera": cameras.expand(1, 5), "x_img": x, "conf": conf})
    metrics = evaluator.compute().metrics
    print(metrics)
    assert metrics["reprojection_matched_percent"] < 5 and metrics["reprojection_found_percent"] > 85


class Pose2Sim:
    """The demo recording with two people: 2D people of 40 frames and four cameras, and the published points in space."""

    joints = get("body25b")

    def __init__(self, folder):
        self.folder = folder
        calibration = pytest.importorskip("tomllib").loads((folder / "calibration" / "Calib_qualisys.toml").read_text())
        told = [camera for name, camera in calibration.items() if name != "metadata"]
        R = [cv2.Rodrigues(np.array(camera["rotation"]))[0] for camera in told]
        K, t, dist, size = (np.array([camera[k] for camera in told], float) for k in ("matrix", "translation", "distortions", "size"))
        self.cameras = Cameras.make(K, np.array(R), 1000 * t, dist, size)

    def people(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """x_img (F,V,M,J,2) and conf (F,V,M,J) in the order of the files; nobody where a file has an empty person."""
        cameras = [sorted((self.folder / "multi" / name / f"cam0{v}_json").glob("*.json")) for v in range(1, 5)]
        frames = [[json.loads(file.read_text())["people"] for file in moment] for moment in zip(*cameras, strict=True)]
        x = torch.zeros(len(frames), 4, max(len(view) for frame in frames for view in frame), self.joints.num, 3, dtype=torch.double)
        for f, frame in enumerate(frames):
            for v, view in enumerate(frame):
                for k, person in enumerate(view):
                    if person.get("pose_keypoints_2d"):
                        x[f, v, k] = torch.tensor(person["pose_keypoints_2d"]).unflatten(0, (-1, 3))
        return x[..., :2], x[..., 2]

    def published(self) -> tuple[torch.Tensor, np.ndarray]:
        """Points of both people (F,2,K,3) in mm of the cameras' frame, NaN where there is none, and the joints that they are."""
        found = []
        for k in (1, 2):
            (file,) = (self.folder / "multi" / "pose-3d").glob(f"*_P{k}_0-40.trc")
            lines = file.read_text().splitlines()
            names = [re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=^[LR])(?=[A-Z])", "_", n).lower() for n in lines[3].split("\t")[2:] if n]
            cells = [line.split("\t")[2 : 2 + 3 * len(names)] for line in lines[5:] if line.strip()]
            X = torch.tensor([[float(cell or "nan") for cell in row] for row in cells]).unflatten(1, (-1, 3))
            found.append(1000 * torch.stack([X[..., 2], X[..., 0], X[..., 1]], -1).double())
        return torch.stack(found, 1), self.joints.indices("upper_neck" if name == "neck" else name for name in names)


@pytest.fixture(scope="module")
def pose2sim(samples):
    return Pose2Sim(samples / "pose2sim")


def test_given_association_gives_the_published_points(pose2sim):
    x, conf = pose2sim.people("pose-associated")
    truth, joints = pose2sim.published()
    member = torch.arange(2)[:, None].expand(len(x), 2, 4)
    X, used = triangulate_people(x, conf.where(conf > 0.3, 0.0), pose2sim.cameras, member, method="dlt", near=None)
    known = (enough_views(used)[..., joints]) & truth.isfinite().all(-1)
    error = (X[..., joints, :] - truth).norm(dim=-1)
    medians = [float(error[:, k][known[:, k]].median()) for k in range(2)]
    print(f"median distance from the published points: {medians[0]:.2f} and {medians[1]:.2f} mm")
    assert known.float().mean() > 0.9 and max(medians) < 1


def test_own_association_finds_the_published_people(pose2sim):
    x, conf = pose2sim.people("pose")
    same_x, same_conf = pose2sim.people("pose-associated")
    truth, joints = pose2sim.published()
    found = associate_people(x, conf, pose2sim.cameras)
    # which of the listed people each published one is, by content
    equal = ((x[:, :, None] == same_x[:, :, :, None]).flatten(-2).all(-1)) & (same_conf > 0).any(-1)[..., None]  # (F,V,2,M)
    wanted = torch.where(equal.any(-1), equal.to(torch.int8).argmax(-1), -1).transpose(1, 2)  # (F,2,V)
    agrees = (found.member[:, None] == wanted[:, :, None]).all(-1).any(-1)  # (F,2)
    print(f"{int(agrees.sum())} of {agrees.numel()} people put together from the same 2D people")
    assert agrees.float().mean() > 0.95
    distance = (found.X_world[:, :, None, joints] - truth[:, None]).norm(dim=-1)  # (F,P,2,K)
    distance = distance.masked_fill(~found.valid[:, :, None, joints], torch.nan).nanmedian(-1).values.nan_to_num(torch.inf)
    assert distance.amin(1).median() < 20 and distance.amin(1).max() < 60
