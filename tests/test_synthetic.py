"""The embedded world: pure, exact, human."""

import pickle

import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.errors import ConfigError, DataError
from lib.synthetic import body as bodies
from lib.synthetic import detector, looks, rig
from lib.synthetic.actions import ACTIONS, SEATED
from lib.synthetic.body import Body
from lib.synthetic.motion import HEAD_LIMITS, TRUNK_LIMITS, Motion
from lib.synthetic.render import NEAR, assemble, bounds, camera_rays, cones, first_hits, intersect
from lib.synthetic.wardrobe import Face, Outfit
from lib.synthetic.world import BOX_MM, SUBJECTS, World

SMALL = {"frames": 6, "size": (96, 96)}
J = {name: i for i, name in enumerate(bodies.JOINTS)}


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=1, **SMALL)


@pytest.fixture(scope="module")
def ann(world):
    return world.annotations().check("world")


def poses(action: str, seed: int = 0, fps: float = 10.0, seconds: float = 8.0):
    """A body that does something, at instants of a given rate."""
    rng = np.random.default_rng(seed)
    body = Body.draw(rng)
    motion = Motion.draw(ACTIONS[action](body, rng), body, rng)
    return body, motion, bodies.pose(body, motion.at(np.arange(0, seconds, 1 / fps)))


def test_same_arguments_give_the_same_bytes_and_another_seed_does_not(world, ann):
    again, other = World(seed=1, **SMALL), World(seed=2, **SMALL)
    assert np.array_equal(again.image(9), world.image(9))  # asked for in another order, from a fresh object
    assert np.array_equal(world.image(9), pickle.loads(pickle.dumps(world)).image(9))
    assert np.array_equal(again.annotations().x_img, ann.x_img)
    assert not np.array_equal(other.image(9), world.image(9))
    assert np.abs(other.annotations().X_world - ann.X_world).max() > 10


def test_tables_agree_with_each_other(world, ann):
    assert len(ann) == len(world) == 6 * 4 and len(set(ann.images)) == len(ann)
    x, depth = ann.cameras[torch.from_numpy(ann.camera)].project(torch.from_numpy(ann.X_world[ann.pose]).double())
    np.testing.assert_allclose(x.numpy(), ann.x_img, atol=1e-3)
    assert (depth > 1000).all()
    # The crop box is BOX_MM wide at the pelvis, and has it in the middle.
    wide = ann.box[:, 2] - ann.box[:, 0]
    focal = ann.cameras.K[ann.camera, 0, 0].numpy()
    np.testing.assert_allclose(wide, BOX_MM * focal / depth[:, J["pelvis"]].numpy(), rtol=1e-5)
    np.testing.assert_allclose((ann.box[:, :2] + ann.box[:, 2:]) / 2, ann.x_img[:, J["pelvis"]], atol=1e-2)


def test_rays_are_those_of_the_distorted_lens():
    cameras = rig.rig("h36m", (120, 90), rng=np.random.default_rng(0))
    rays = camera_rays(cameras[2])  # (2, H, W)
    u, v = np.meshgrid(np.arange(120), np.arange(90))
    x = cameras[2].from_norm(torch.from_numpy(rays.reshape(2, -1).T).double())
    np.testing.assert_allclose(x.numpy(), np.stack([u, v], -1).reshape(-1, 2), atol=1e-4)
    assert float(cameras[2].dist.abs().max()) > 0.1


def brute_force(scene, R, t, x, y):
    """Depth at which a ray enters the hull of each solid's two balls: the first of many balls between them, in
    float64.
    """
    best = np.inf
    for k in range(len(scene.length)):
        A = scene.axes[k].T / scene.scale[k][:, None]
        o = A @ (-R.T @ t - scene.origin[k])
        d = A @ (R.T @ np.array([x, y, 1.0]))
        s = np.linspace(0, 1, 2001) if scene.length[k] else np.zeros(1)
        radius = scene.radius[k, 0] * (1 - s) + scene.radius[k, 1] * s
        gap = o[:, None] - np.array([[0], [0], [1.0]]) * scene.length[k] * s
        b, dd = d @ gap, d @ d
        square = b * b - dd * ((gap * gap).sum(0) - radius**2)
        depth = (-b - np.sqrt(np.where(square >= 0, square, np.nan))) / dd
        depth = depth[depth > NEAR]
        best = min(best, depth.min(initial=np.inf))
    return best


def test_fast_rays_equal_their_slow_twin():
    """Every pixel of a tiny image, against a tracer without bounds, batches, float32 or cone formula."""
    world = World(seed=5, frames=1, size=(14, 13), people=2, rig="panoptic5", objects=False, actions=("Waving",))
    sequence, picture = world._sequence(0, painted=True), world.render(1)
    scene = sequence.scene._replace(origin=sequence.scene.origin[0], axes=sequence.scene.axes[0])
    camera = world.cameras[1]
    R, t, rays = camera.R.numpy(), camera.t.numpy(), camera_rays(camera).astype(float)
    slow = np.array([[brute_force(scene, R, t, *rays[:, v, u]) for u in range(14)] for v in range(13)])
    room = sequence.views[1].depth
    np.testing.assert_allclose(picture.depth, np.minimum(slow, room), rtol=0, atol=0.05)  # mm
    assert np.array_equal(picture.person >= 0, slow < room) and 8 < (slow < room).sum() < 100


def test_every_kind_of_solid_from_every_side():
    """Ball, capsule, cone and stretched ones, seen along their axis too, where the cone formula changes its sign."""
    rng = np.random.default_rng(3)
    n = 60
    axes = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    axes *= np.sign(np.linalg.det(axes))[:, None, None]
    axes[:20, :, 2] = np.array([0, 0.05, 1.0]) / np.hypot(0.05, 1)  # nearly along the rays
    axes[:20, :, 0] = [1, 0, 0]
    axes[:20, :, 1] = np.cross(axes[:20, :, 2], axes[:20, :, 0])
    length = rng.uniform(60, 300, n) * (rng.random(n) < 0.8)
    radius = np.where(length[:, None] > 0, rng.uniform(5, 55, (n, 2)), 80.0)
    person = World(seed=0, frames=1, size=(9, 9))._sequence(0, painted=False).scene
    origin = rng.uniform(-60, 60, (n, 3)) + [0, 0, 3000]
    scene = person._replace(origin=origin, axes=axes, scale=rng.uniform(0.5, 1.5, (n, 3)), length=length, radius=radius)
    R, t = np.eye(3), np.zeros(3)
    x, y = rng.uniform(-0.03, 0.03, (2, 25))
    depth, _, _ = intersect(cones(scene, R, t)[:, :, None], x.astype(np.float32), y.astype(np.float32))
    single = [
        scene._replace(**{k: getattr(scene, k)[i : i + 1] for k in ("origin", "axes", "scale", "length", "radius")}) for i in range(n)
    ]
    slow = np.array([[brute_force(one, R, t, *ray) for ray in zip(x, y, strict=True)] for one in single])
    hit = np.isfinite(slow)
    grazing = np.abs(np.where(hit, depth - np.where(hit, slow, 0), 0)) > 0.5
    assert (np.isfinite(depth) != hit).mean() < 0.005 and grazing.mean() < 0.005  # float32 at the silhouette
    assert 0.15 < hit.mean() < 0.85
    box = bounds(scene, R, t).box[:, None]
    inside = (x >= box[..., 0]) & (y >= box[..., 1]) & (x <= box[..., 2]) & (y <= box[..., 3])
    assert not (hit & ~inside).any()


def test_visible_joints_lie_just_below_the_surface_and_hidden_ones_do_not(world, ann):
    cams = ann.cameras[torch.from_numpy(ann.camera)]
    z = cams.to_cam(torch.from_numpy(ann.X_world[ann.pose]).double())[..., 2].numpy()
    seen = hidden = 0
    for row in range(0, len(ann), 3):
        picture = world.render(int(ann.image[row]))
        u, v = np.rint(ann.x_img[row]).astype(int).T
        gap = z[row] - picture.depth[v.clip(0, 95), u.clip(0, 95)]  # mm of flesh in front of the joint
        limit = world._sequence(int(ann.sequence[row]), False).depth[0]
        agree = np.where(ann.visible[row], gap < limit + 25, gap > limit - 25)  # a pixel is up to 40 mm wide here
        assert agree.mean() > 0.75, (row, gap, limit)
        seen, hidden = seen + (agree & ann.visible[row]).sum(), hidden + (agree & ~ann.visible[row]).sum()
    assert seen > 60 and hidden > 10


def test_a_person_in_front_hides_the_one_behind():
    one = World(seed=0, frames=1, size=(64, 64), objects=False, distortion=False, actions=("Directions",))
    sequence, camera = one._sequence(0, painted=False), one.cameras[0]
    joints, depth = torch.from_numpy(sequence.joints[0, 0]), sequence.depth[0]
    x_norm = camera.to_norm(camera.project(joints)[0]).numpy()
    z = camera.to_cam(joints)[:, 2].numpy()
    R, t = camera.R.numpy(), camera.t.numpy()
    person, frame = sequence.people[0], bodies.pose(sequence.people[0].body, stance_of(one))
    towards = (camera.center.numpy() - joints[0].numpy()) * [1, 1, 0]
    towards = 900 * towards / np.linalg.norm(towards)
    twin = frame._replace(origin=frame.origin + towards)  # the same person again, 0.9 m nearer to the camera
    clear = first_hits(assemble([person], [frame]), R, t, x_norm[None])[0] >= z - depth
    crowded = first_hits(assemble([person, person], [frame, twin]), R, t, x_norm[None])[0] >= z - depth
    assert clear.sum() >= 9 and crowded.sum() <= 3


def stance_of(world: World):
    """The stance of the first instant of a world's first person."""
    name = world.plans[0].subject
    body = Body.draw(world._rng("subject", name))
    rng = world._rng("sequence", world.split, 0)
    place = tuple(rng.uniform(-220, 220, 2))
    chance = world._rng("motion", world.split, 0, 0)
    return Motion.draw(ACTIONS[world.plans[0].action](body, chance), body, chance, place).at(np.zeros(1))


def test_front_and_back_of_people_differ():
    """From the front the face is skin, from behind the head is hair: nothing else in an image tells left from right."""
    rng = np.random.default_rng(0)
    body = Body.draw(rng)
    face = Face(np.array([0.9, 0.7, 0.6]), np.array([0.1, 0.07, 0.05]), "short", False, False)
    person = looks.dress(body, face, Outfit.draw(rng))
    k = person.names.index("head")
    around, along = person.tex_size[k]
    texture = person.atlas[person.tex_start[k] :][: around * along].reshape(along, around, 3)
    face_side, back_side = (
        texture[along // 3 : along * 2 // 3, around // 2 - 3 : around // 2 + 3],
        texture[along // 3 : along * 2 // 3, :3],
    )
    assert face_side.mean() > 2 * back_side.mean()
    # And in pictures: heads of people who turn towards and away from the camera.
    world = World(seed=4, frames=40, size=(160, 160), actions=("Turning",), objects=False, length=8)
    ann = world.annotations()
    R = ann.cameras.R[ann.camera].numpy()
    nose, shoulders = (
        ann.X_world[:, J["nose"]] - ann.X_world[:, J["thorax"]],
        ann.X_world[:, J["l_shoulder"]] - ann.X_world[:, J["r_shoulder"]],
    )
    ahead = np.cross(shoulders, [0, 0, 1.0])  # forward = left x up
    assert (np.sum(ahead * nose, -1) > 0).mean() > 0.95
    facing = np.einsum("ni,ni->n", ahead[ann.pose] / np.linalg.norm(ahead[ann.pose], axis=-1, keepdims=True), R[:, 2])
    patches = {True: [], False: []}
    for row in np.flatnonzero(np.abs(facing) > 0.85)[:60]:
        image = world.image(int(ann.image[row])).astype(float)
        u, v = np.rint((ann.x_img[row, J["head"]] + ann.x_img[row, J["nose"]]) / 2).astype(int)
        patches[bool(facing[row] < 0)].append(image[v - 1 : v + 2, u - 1 : u + 2].mean((0, 1)))
    front, back = np.mean(patches[True], 0), np.mean(patches[False], 0)
    assert min(map(len, patches.values())) >= 8 and np.abs(front - back).max() > 12


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_are_human(action):
    """Constant limbs, joints within their limits, smooth, feet on the floor, hands outside the trunk."""
    for seed in range(4):
        body, motion, posed = poses(action, seed)
        X, n = posed.joints, body.lengths
        limbs = {
            ("l_hip", "l_knee"): "thigh",
            ("r_knee", "r_ankle"): "shank",
            ("l_shoulder", "l_elbow"): "upperarm",
            ("r_elbow", "r_wrist"): "forearm",
        }
        for (a, b), name in limbs.items():
            np.testing.assert_allclose(np.linalg.norm(X[:, J[a]] - X[:, J[b]], axis=-1), n[name], atol=1e-6)
        for a, b in (
            ("pelvis", "spine"),
            ("spine", "thorax"),
            ("nose", "head"),
            ("thorax", "l_shoulder"),
            ("pelvis", "r_hip"),
        ):
            assert np.ptp(np.linalg.norm(X[:, J[a]] - X[:, J[b]], axis=-1)) < 1e-6
        for side in "lr":
            for (a, b, c), limit in ((("hip", "knee", "ankle"), "knee"), (("shoulder", "elbow", "wrist"), "elbow")):
                p, q, r = (X[:, J[f"{side}_{name}"]] for name in (a, b, c))
                cos = (bodies.unit(q - p) * bodies.unit(r - q)).sum(-1)
                assert np.degrees(np.arccos(cos.clip(-1, 1))).max() <= bodies.MAX_FLEXION[limit] + 1e-6
            thigh = posed.R[:, bodies.SEGMENTS.index(f"{side}_thigh")]
            shank = X[:, J[f"{side}_ankle"]] - X[:, J[f"{side}_knee"]]
            assert (np.einsum("ti,ti->t", thigh[..., 0], shank) < 1e-6).all()  # knees bend backwards only
        assert X[..., 2].min() > 0.03 * body.height and X[:, J["head"], 2].max() < 1.03 * body.height
        lowest = X[:, [J["l_ankle"], J["r_ankle"]], 2].min(-1)
        assert (np.abs(lowest - n["ankle"]) < 70).mean() > 0.9
        hip = X[:, J["pelvis"]]
        assert (hip[:, 2] < body.leg + 1).all()
        wrists = X[:, [J["l_wrist"], J["r_wrist"]]] - X[:, J["spine"]][:, None]
        assert np.linalg.norm(wrists, axis=-1).min() > 0.055 * body.height
        _, _, fine = poses(action, seed, fps=50.0, seconds=4.0)
        speed = np.linalg.norm(np.diff(fine.joints, axis=0), axis=-1) * 50 / 1000
        assert speed.max() < 9.0  # m/s
        assert (motion.seat is not None) == (action in SEATED)


def test_actions_differ_and_trunks_keep_their_limits():
    assert len(ACTIONS) >= 8
    heights = {a: np.mean([poses(a, s)[2].joints[:, J["pelvis"], 2].mean() for s in range(3)]) for a in ("Walking", "Sitting", "Squatting")}
    assert heights["Sitting"] < 650 < heights["Squatting"] < heights["Walking"]
    travel = {a: np.ptp(poses(a, 1)[2].joints[:, 0, :2], axis=0).max() for a in ("Walking", "Waving")}
    assert travel["Walking"] > 800 > 100 > travel["Waving"]
    for action in ACTIONS:
        body, motion, _ = poses(action, 7)
        stance = motion.at(np.arange(0, 20, 0.1))
        for upper, lower, limits in (
            (stance.chest_R, stance.pelvis_R, TRUNK_LIMITS),
            (stance.head_R, stance.chest_R, HEAD_LIMITS),
        ):
            turn = np.arccos(np.clip((np.trace(lower.swapaxes(1, 2) @ upper, axis1=1, axis2=2) - 1) / 2, -1, 1))
            assert turn.max() < np.sqrt(sum(max(map(abs, v)) ** 2 for v in limits.values())) + 0.05


def test_motion_does_not_depend_on_the_frame_rate():
    slow, fast = poses("Walking", 3, fps=5.0)[2].joints, poses("Walking", 3, fps=25.0)[2].joints
    np.testing.assert_allclose(slow, fast[::5], atol=1e-6)


def test_splits_share_nobody_and_cover_their_subjects():
    assert not set(SUBJECTS["train"]) & set(SUBJECTS["valid"])
    train, valid, pretrain = (World(split=s, frames=n, size=(32, 32)) for s, n in (("train", 140), ("valid", 56), ("pretrain", 40)))
    assert {p.subject for p in train.plans} == {"S1", "S5", "S6", "S7", "S8"} and {p.subject for p in valid.plans} == {
        "S9",
        "S11",
    }
    assert {p.action for p in train.plans} == {p.action for p in valid.plans} == set(ACTIONS)
    assert [p.subject for p in pretrain.plans] == [f"P{k:03d}" for k in range(1, 11)]
    heights = [Body.draw(train._rng("subject", name)).height for name in ("S1", "S5", "S6", "S7", "S8", "S9", "S11")]
    assert len(set(heights)) == 7


def test_pretraining_has_2d_labels_only_and_a_camera_per_sequence():
    world = World(split="pretrain", frames=10, size=(48, 48))
    ann = world.annotations().check("pretrain")
    assert (ann.pose == -1).all() and len(ann.X_world) == 0 and (ann.conf == 1).all()
    assert len(ann.cameras) == len(ann.subjects) == 3 and len(ann) == 10
    inside = (ann.x_img >= ann.box[:, None, :2]).all(-1) & (ann.x_img <= ann.box[:, None, 2:]).all(-1)
    assert inside.all()


@pytest.mark.parametrize(("name", "views"), [("h36m", 4), ("panoptic5", 5), ("ring", 4), ("ring7", 7)])
def test_rigs_see_the_middle(name, views):
    for distortion in (True, False):
        cameras = rig.rig(name, (200, 100), distortion, np.random.default_rng(0))
        assert len(cameras) == views and cameras.K.dtype == torch.float64
        assert bool((cameras.dist != 0).any()) == distortion
        x, depth = cameras.project(torch.tensor([[0.0, 0.0, 930.0]], dtype=torch.float64))
        assert (depth > 2000).all() and ((x - torch.tensor([99.5, 49.5])).abs() < 8).all()


def test_a_zoomed_rig_shows_the_same_larger():
    plain, near = (rig.rig("panoptic5", (200, 100), False, np.random.default_rng(0), zoom) for zoom in (1.0, 1.5))
    X = torch.tensor([[0.0, 0.0, 930.0], [300.0, -200.0, 1700.0]], dtype=torch.float64)
    middle = plain.K[:, None, :2, 2]
    assert torch.allclose(near.project(X)[0] - middle, 1.5 * (plain.project(X)[0] - middle))
    assert World(zoom=1.5, frames=1).cameras.K[0, 0, 0] == pytest.approx(1.5 * World(frames=1).cameras.K[0, 0, 0].item())
    with pytest.raises(DataError, match="zoom is 0"):
        World(zoom=0)


def test_sequences_may_differ_in_their_number_of_people():
    options = {"seed": 2, "frames": 12, "length": 2, "rig": "panoptic5", "size": (24, 20)}
    world = World(people=(2, 4), **options)
    ann = world.annotations().check("people")
    number = [len(np.unique(ann.person[ann.sequence == s])) for s in range(6)]
    assert number == world.crowd.tolist() and {2, 4} <= set(number) <= {2, 3, 4}
    assert len(ann.X_world) == 2 * sum(number) == world.first_pose[-1]
    rows, starts = ann.group("pose")  # a pose is one person at one instant, seen by all five
    for a, b in zip(starts, starts[1:], strict=False):
        assert all(len(set(getattr(ann, k)[rows[a:b]])) == 1 for k in ("sequence", "frame", "person"))
    x = ann.observing().project(torch.from_numpy(ann.X_world[ann.pose]).double())[0]
    assert np.abs(x.numpy() - ann.x_img).max() < 0.01
    again = pickle.loads(pickle.dumps(world))
    assert again.arguments == world.arguments and np.array_equal(again.image(7), world.image(7))
    assert World(people=(3, 3), **options).arguments == World(people=3, **options).arguments
    with pytest.raises(DataError, match="from 4 to 2"):
        World(people=(4, 2), **options)


def test_several_people_stand_apart_and_have_rows_of_their_own():
    world = World(seed=2, people=3, rig="panoptic5", **SMALL)
    ann = world.annotations().check("people")
    assert len(ann) == 6 * 5 * 3 and len(ann.X_world) == 6 * 3
    pelvis = ann.X_world[:, 0].reshape(6, 3, 3)
    gap = np.linalg.norm(pelvis[:, :, None, :2] - pelvis[:, None, :, :2], axis=-1)[:, ~np.eye(3, dtype=bool)]
    assert gap.min() > 400
    assert set(np.unique(world.render(0).person)) <= {-1, 0, 1, 2}


def test_strangers_are_met_once_and_friends_again():
    def thighs(**options):
        ann = World(frames=8, people=2, length=1, actions=("Greeting",), **options).annotations()
        thigh = np.linalg.norm(ann.X_world[:, J["r_hip"]] - ann.X_world[:, J["r_knee"]], axis=-1)
        return len(np.unique(thigh.round(1)))  # mm; of 16 persons

    assert thighs() == len(SUBJECTS["train"])
    assert thighs(strangers=True) == 16


def test_another_skeleton_is_converted_by_name():
    native, other = (World(seed=1, frames=2, size=(32, 32), skeleton=s).annotations() for s in ("h36m17", "coco17"))
    assert other.skeleton == "coco17"
    a, b = skeletons.get("h36m17").index("l_knee"), skeletons.get("coco17").index("l_knee")
    np.testing.assert_array_equal(native.x_img[:, a], other.x_img[:, b])
    assert (other.conf[:, skeletons.get("coco17").index("l_ear")] == 0).all()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"split": "test"}, ConfigError, "pretrain, train, valid"),
        ({"rig": "h63m"}, ConfigError, "did you mean h36m"),
        ({"actions": ("Waling",)}, ConfigError, "did you mean Walking"),
        ({"frames": 0}, DataError, "frames is 0"),
        ({"size": (64, -1)}, DataError, "height is -1"),
        ({"length": -5}, DataError, "length is -5"),
    ],
)
def test_wrong_arguments_are_answered(options, error, text):
    with pytest.raises(error, match=text):
        World(**options)


def test_detections_err_more_where_joints_are_hidden_and_say_so():
    rng = np.random.default_rng(0)
    x, box = rng.uniform(50, 150, (800, 17, 2)), np.tile([0.0, 0, 200, 200], (800, 1))
    visible = rng.random((800, 17)) < 0.7
    noisy, conf = detector.detect(x, visible, box, "h36m17", np.random.default_rng(1))
    again, _ = detector.detect(x, visible, box, "h36m17", np.random.default_rng(1))
    assert np.array_equal(noisy, again) and noisy.dtype == conf.dtype == np.float32
    error = np.linalg.norm(noisy - x, axis=-1)
    assert 0.5 < np.median(error[visible]) < 3 < np.median(error[~visible]) < 12
    assert 0 <= conf.min() == 0 and conf.max() <= 1
    assert 0.05 < (conf[~visible] == 0).mean() < 0.2 and (conf[visible] == 0).mean() < 0.03
    found = conf > 0
    assert np.corrcoef(np.log(error[found] + 0.1), conf[found])[0, 1] < -0.4
    legs = [J["l_knee"], J["l_ankle"]]
    quiet = detector.Noise(jitter=1e-6, outlier=0, swap=0.5)
    swapped, _ = detector.detect(x, visible, box, "h36m17", np.random.default_rng(1), quiet)
    crossed = np.linalg.norm(swapped[:, legs] - x[:, [J["r_knee"], J["r_ankle"]]], axis=-1) < 0.1
    assert np.array_equal(crossed[:, 0], crossed[:, 1]) and 0.15 < crossed.mean() < 0.35


def test_detected_table_keeps_the_truth_in_3d(ann):
    found = detector.detected(ann, seed=3)
    assert np.array_equal(found.X_world, ann.X_world) and not np.array_equal(found.x_img, ann.x_img)
    assert np.array_equal(detector.detected(ann, seed=3).x_img, found.x_img)


@pytest.mark.parametrize("frames", [29, 40, 57])
def test_every_sequence_has_an_instant(frames):
    world = World(split="valid", frames=frames, size=(32, 32))
    assert all(plan.length > 0 for plan in world.plans) and sum(plan.length for plan in world.plans) == frames
