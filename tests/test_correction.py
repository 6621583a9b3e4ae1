"""Correction at test time: the recorded program, an optimiser for one pose at a time, the rules, and the camera's form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lib.correction import DECISIONS, OnlineCorrector, StopRule, correct_by_projection, counts, shared_lengths
from lib.correction.adam import Adam, Dense, SampleLinear, cauchy
from lib.correction.rules import CONVERGED, DISCARDED, STOPPED
from lib.errors import ConfigError, DataError, GeometryError
from lib.models.pose_machine import PoseNormalizer, Projector2D, Regressor3D
from lib.skeleton import get
from scripts.benchmarks.correction import by_least_squares, lifted, networks, one_at_a_time
from tests.conftest import golden, he, recorded_state
from tests.scene import ring_of_cameras

H16 = get("h36m16")
SPINE = H16.index("spine")
LR = 1e-2  # of small networks, so that poses move
FREE = {"eps_mm": 0.0, "tau_mm": math.inf}


def mm(p):
    """Shares whose unit is a metre."""
    return 1000 * p


@pytest.fixture(scope="module")
def small():
    """Networks wide enough that the inner layers are not handled as matrices, see lib/correction/adam.py."""
    return networks(160, torch.device("cpu"))


def samples(count: int = 5, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 16, 3, generator=draw), torch.rand(count, 16, 2, generator=draw)


def corrector(nets, **options):
    return OnlineCorrector(*nets, mm, **{"lr": LR} | options)


# ------------------------------------------------------------------------------------------------- the released program


def recorded(norm: str):
    nets = Regressor3D(), Projector2D(norm=norm)
    for module in nets:
        module.load_state_dict(recorded_state(module, he))
    values = golden("pose_machines", "projector_online")
    given = (torch.from_numpy(values["coarse3d_norm"]).view(-1, 16, 3), torch.from_numpy(values["pose2d_norm"]).view(-1, 16, 2))
    return nets, given, values


@pytest.mark.parametrize(("name", "norm", "options"), [
    ("reset_bn", "inert", {}),
    ("reset_nobn", "none", {}),
    ("carry_bn", "inert", {"carry": True}),
    ("reset_bn_torchadam", "inert", {"adam_form": "torch"}),
])  # fmt: skip
def test_trajectories_of_the_released_program(name, norm, options):
    nets, given, values = recorded(norm)
    found = OnlineCorrector(*nets, mm, params="C", rule="published", steps=5, **options)(*given, trace=True)
    ours = {"refined": found.trajectory.flatten(2), "projected": found.p2d.flatten(2),
            "point_loss": found.point_loss, "bone_loss": found.bone_loss}  # fmt: skip
    compared = 0
    for key, value in ours.items():
        if f"{key}_{name}" in values:
            expected = values[f"{key}_{name}"]
            assert np.abs(value.numpy() - expected).max() <= 2e-5, key  # the manifest allows 5e-4 in the end
            compared += 1
    assert compared >= 1
    assert (found.point_loss + found.bone_loss).mean(0).diff().max() < 0  # every update helps on average


def test_two_published_runs_are_one_update():
    nets, given, values = recorded("inert")
    found = OnlineCorrector(*nets, mm, params="C", rule="published")(*given)
    assert np.abs(found.p3d.flatten(1).numpy() - values["refined_reset_bn"][:, 1]).max() <= 1e-5
    assert np.abs(found.regressed.flatten(1).numpy() - values["change_bn"]).max() <= 1e-5
    assert found.steps.tolist() == [1] * 4 and found.p2d is None
    assert torch.equal(found.X_root, mm(found.p3d))


def test_the_losses_of_the_release():
    """Reported means over 32 coordinates, the spine left out, bones between masked places."""
    values = golden("pose_machines", "losses_metrics")
    seen, p2d = (torch.from_numpy(values[key]).view(-1, 16, 2) for key in ("pred2d", "gt2d"))
    weight = torch.ones(5, 16)
    weight[:, SPINE] = 0
    point, bone = OnlineCorrector(*networks(8, torch.device("cpu")), mm, rule="published").losses(seen, p2d, weight)
    assert point.mean().item() == pytest.approx(float(values["refine_point_loss"]), rel=1e-5)
    assert bone.mean().item() == pytest.approx(float(values["refine_bone_loss"]), rel=1e-5)


def test_published_moments_leak_and_ours_do_not(small):
    """Defect 6 of the release: its optimiser remembers the poses before."""
    p3d, p2d = samples()
    options = {"params": "C", "rule": "published"}
    there, back = torch.arange(5), torch.arange(4, -1, -1)
    leaking, ours = ([corrector(small, carry=carry, **options)(p3d[order], p2d[order]).p3d[order] for order in (there, back)]
                     for carry in (True, False))  # fmt: skip
    assert (leaking[0] - leaking[1]).abs().max() > 1e-3
    assert torch.allclose(*ours, atol=1e-5)
    assert torch.allclose(leaking[0][0], ours[0][0], atol=1e-5)  # nothing leaks into the first


def test_no_untrained_norm_by_default():
    """Defect 6 again: before the first step all is as in training."""
    nets, given, values = recorded("none")
    found = OnlineCorrector(*nets, mm, **FREE)(*given, trace=True)
    assert torch.allclose(found.p2d[:, 0], nets[1](nets[0](given[0])), atol=1e-5)
    assert np.abs(found.p2d[:, 0].flatten(1).numpy() - values["projected_nobn"]).max() <= 1e-5
    assert found.steps.max() == 2  # two updates, of which the release applies one


# ----------------------------------------------------------------------------------------------- one pose at a time, and all


@pytest.mark.parametrize("params", ["C", "CP", "pose"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_as_with_an_optimiser_for_each_pose(small, params, steps):
    p3d, p2d = samples()
    conf = torch.rand(5, 16)
    found = corrector(small, params=params, steps=steps, **FREE)(p3d, p2d, conf)
    expected = one_at_a_time(*small, p3d, p2d, conf, lr=LR, params=params, steps=steps)
    assert (found.p3d - found.regressed).abs().mean() > 1e-3
    assert torch.allclose(found.p3d, expected, atol=1e-4), (found.p3d - expected).abs().max()
    assert found.decision.tolist() == [STOPPED] * 5 and found.steps.tolist() == [steps] * 5


def test_order_and_company_do_not_matter(small):
    p3d, p2d = samples(7)
    path = corrector(small, steps=3, **FREE)(p3d, p2d).trajectory
    options = {"steps": 3, "eps_mm": 0.0, "tau_mm": StopRule(H16).moved(mm(path[:, 2]), mm(path[:, 0])).median().item() + 1e-2}
    together = corrector(small, **options)(p3d, p2d)
    assert len(set(together.steps.tolist())) > 1  # some leave early
    order = torch.randperm(7)
    shuffled = corrector(small, **options)(p3d[order], p2d[order])
    alone = [corrector(small, **options)(p3d[i : i + 1], p2d[i : i + 1]) for i in range(7)]
    chunks = corrector(small, chunk=2, **options)(p3d, p2d)
    for name in ("p3d", "steps", "decision", "trajectory"):
        value = getattr(together, name)
        for other in (getattr(shuffled, name)[order.argsort()], torch.cat([getattr(a, name) for a in alone]), getattr(chunks, name)):
            assert torch.allclose(value, other, atol=1e-5), name


def test_a_trace_changes_nothing(small):
    given = samples(7)
    plain, traced = (corrector(small, steps=3, tau_mm=150.0)(*given, trace=trace) for trace in (False, True))
    for name in ("p3d", "trajectory", "steps", "decision"):
        assert torch.allclose(getattr(plain, name), getattr(traced, name), atol=1e-5), name
    point = (traced.p2d - given[1][:, None]).square().mean((2, 3))
    live = traced.decision != DISCARDED
    assert torch.allclose(point[live], traced.point_loss[live], atol=1e-5)


def test_weights_gradients_and_modes_stay(small):
    nets = networks(160, torch.device("cpu"), seed=3)
    nets[0].train()
    before = [value.clone() for module in nets for value in module.state_dict().values()]
    with torch.inference_mode():
        found = corrector(nets)(*samples())
    assert not found.p3d.requires_grad
    after = [value for module in nets for value in module.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None and p.requires_grad for module in nets for p in module.parameters())
    assert nets[0].training and not nets[1].training
    assert all(not part._forward_hooks for module in nets for part in module.modules())


def test_leading_shapes_and_no_pose_at_all(small):
    p3d, p2d = samples(6)
    flat = corrector(small)(p3d, p2d)
    clips = corrector(small)(p3d.view(2, 3, 16, 3), p2d.view(2, 3, 16, 2))
    assert clips.trajectory.shape == (2, 3, 3, 16, 3) and clips.decision.shape == (2, 3)
    assert torch.equal(clips.p3d.view(6, 16, 3), flat.p3d)
    single = corrector(small)(p3d[0], p2d[0])
    assert single.p3d.shape == (16, 3) and torch.allclose(single.p3d, flat.p3d[0], atol=1e-5)
    assert corrector(small)(p3d[:0], p2d[:0], trace=True).p2d.shape == (0, 3, 16, 2)


# ------------------------------------------------------------------------------------------------------ evidence and weights


@pytest.mark.parametrize("rule", ["paper", "published"])
def test_what_was_not_seen_does_not_count(small, rule):
    p3d, p2d = samples()
    conf = torch.ones(5, 16)
    conf[:, [SPINE, 12]] = 0
    other = p2d.clone()
    other[:, 12], other[:, SPINE] = 77.0, math.nan
    correct = corrector(small, rule=rule, **FREE)
    found = [correct(p3d, x, conf).p3d for x in (p2d, other)]
    assert torch.equal(*found)
    assert torch.equal(found[0], correct(p3d, p2d.where(conf[..., None] > 0, math.nan)).p3d)  # NaN says the same
    assert not torch.allclose(found[0], correct(p3d, p2d).p3d, atol=1e-4)  # joint 12 counts where it was seen


@pytest.mark.parametrize("params", ["C", "CP", "pose"])
def test_a_pose_without_evidence_and_one_without_sense(small, params):
    p3d, p2d = samples()
    conf = torch.ones(5, 16)
    conf[1] = 0
    correct = corrector(small, params=params, steps=3, eps_mm=1e-6, tau_mm=1e6)
    expected = correct(p3d, p2d, conf)
    assert torch.allclose(expected.p3d[1], expected.regressed[1], atol=1e-6) and expected.decision[1] == CONVERGED
    p3d[3, 5] = math.nan
    found = correct(p3d, p2d, conf)
    others = [0, 1, 2, 4]
    assert torch.allclose(found.p3d[others], expected.p3d[others], atol=1e-5)
    assert found.decision[3] == DISCARDED and found.decision[others].tolist() == expected.decision[others].tolist()


def test_bones_count_as_much_as_their_less_certain_end(small):
    found = corrector(small, bones=True)
    seen, p2d = torch.rand(2, 3, 16, 2)
    weight = torch.rand(3, 16)
    expected = sum(
        torch.minimum(weight[:, p], weight[:, c])[:, None] * ((seen[:, p] - seen[:, c]).abs() - (p2d[:, p] - p2d[:, c]).abs()).square()
        for p, c in H16.bones.tolist()
    )
    assert torch.allclose(found.losses(seen, p2d, weight)[1], expected.sum(-1) / 32, atol=1e-6)
    assert corrector(small).losses(seen, p2d, weight)[1].tolist() == [0, 0, 0]


def test_self_supervision_improves_poses():
    """The regressor errs in a way that the projector can see: correction moves its poses towards the truth."""
    torch.manual_seed(0)
    truth = torch.rand(64, 16, 3)
    flatten = torch.zeros(32, 48)
    flatten[torch.arange(32), torch.arange(48).view(16, 3)[:, :2].flatten()] = 1

    class Plain(nn.Module):
        def __init__(self, weight, bias, dims):
            super().__init__()
            self.layer, self.dims = nn.Linear(48, len(weight)), dims
            self.layer.load_state_dict({"weight": weight, "bias": bias})

        def forward(self, p):
            return self.layer(p.flatten(-2)).unflatten(-1, (16, self.dims))

    regressor = Plain(torch.eye(48), 0.05 * torch.randn(48), 3)
    projector = Plain(flatten, torch.zeros(32), 2)
    found = OnlineCorrector(regressor, projector, mm, lr=1e-3, steps=20, params="C", **FREE)(truth, truth[..., :2], trace=True)
    error = (found.trajectory - truth[:, None])[..., :2].norm(dim=-1).mean((0, 2))
    assert error[-1] < 0.6 * error[0]
    assert (found.p3d - found.regressed)[..., 2].abs().max() == 0  # nothing tells about depth here
    assert found.point_loss[:, -1].max() < found.point_loss[:, 0].min() or (found.point_loss[:, -1] < found.point_loss[:, 0]).all()


# ----------------------------------------------------------------------------------------------------------------- the rule


def test_the_stop_rule():
    rule, first = StopRule(H16, 5.0, 20.0), torch.zeros(1, 16, 3)

    def moved(joint: str, distance: float):
        X = first.clone()
        X[:, H16.index(joint), 0] = distance
        return X

    def decide(X, last=first):
        return [bool(answer) for answer in rule(X, last, first)]

    assert decide(moved("l_hip", 24.9)) == [True, False]  # mean of five joints: 4.98 mm
    assert decide(moved("l_hip", 25.1)) == [False, False]
    assert decide(moved("l_wrist", 1e4)) == [True, False]  # wrists are not asked
    assert decide(moved("r_shoulder", 99.9)) == [False, False]
    assert decide(moved("r_shoulder", 100.1)) == [False, True]
    assert decide(moved("r_shoulder", 100.1), moved("r_shoulder", 100.0)) == [True, True]  # in total, however small the last one was
    assert decide(moved("l_hip", math.nan))[1]


def test_poses_converge_stop_or_are_discarded(small):
    p3d, p2d = samples(6)
    for name, options, steps in (
        ("converged", {"eps_mm": 1e6, "tau_mm": 1e7}, 1),
        ("stopped", FREE, 3),
        ("discarded", {"eps_mm": 0.0, "tau_mm": 1e-3}, 1),
    ):
        found = corrector(small, steps=3, **options)(p3d, p2d)
        assert counts(found.decision) == {name: 6} | {other: 0 for other in DECISIONS if other != name}
        assert found.steps.tolist() == [steps] * 6
    assert torch.equal(found.p3d, found.regressed) and not torch.equal(found.trajectory[:, 1], found.regressed)


def test_each_pose_follows_its_own_rule(small):
    p3d, p2d = samples(12)
    free = corrector(small, steps=4, **FREE)(p3d, p2d)
    path = mm(free.trajectory)
    watch = StopRule(H16)
    step = torch.stack([watch.moved(path[:, s + 1], path[:, s]) for s in range(4)], 1)
    total = torch.stack([watch.moved(path[:, s + 1], path[:, 0]) for s in range(4)], 1)
    eps, tau = step[:, 1].median().item() + 1e-3, total[:, 1].quantile(0.6).item()
    found = corrector(small, steps=4, eps_mm=eps, tau_mm=tau)(p3d, p2d)
    for i in range(12):
        decision, taken = STOPPED, 4
        for s in range(4):
            if total[i, s] > tau:
                decision, taken = DISCARDED, s + 1
                break
            if step[i, s] < eps:
                decision, taken = CONVERGED, s + 1
                break
        assert (found.decision[i], found.steps[i]) == (decision, taken)
        assert torch.allclose(found.p3d[i], free.trajectory[i, 0 if decision == DISCARDED else taken], atol=1e-4)
    assert len(set(found.decision.tolist())) > 1


def test_with_the_normalised_poses_of_the_machine(small):
    p3d, p2d = samples()
    found = OnlineCorrector(*small, PoseNormalizer(H16).denormalize)(p3d, p2d)
    assert found.X_root.shape == (5, 16, 3) and (found.X_root[:, H16.root_index] == 0).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"params": "P"}, "params"),
    ({"rule": "Paper"}, "did you mean paper"),
    ({"adam_form": "keras"}, "adam_form"),
    ({"steps": 0}, "steps 0"),
    ({"lr": -1.0}, "lr"),
    ({"eps_mm": 30.0}, "tau"),
    ({"params": "pose", "carry": True}, "carry"),
])  # fmt: skip
def test_settings_that_cannot_be(small, options, message):
    with pytest.raises(ConfigError, match=message):
        corrector(small, **options)


def test_inputs_and_networks_that_cannot_be(small):
    p3d, p2d = samples()
    with pytest.raises(GeometryError, match="p2d has shape"):
        corrector(small)(p3d, p2d[:3])
    with pytest.raises(GeometryError, match="conf has shape"):
        corrector(small)(p3d, p2d, torch.ones(5, 17))
    with pytest.raises(ConfigError, match="without linear layers"):
        OnlineCorrector(nn.Identity(), small[1], mm)
    with pytest.raises(ConfigError, match="twice"):
        corrector((nn.Sequential(nn.Flatten(), *[nn.Linear(48, 48)] * 2, nn.Unflatten(1, (16, 3))), small[1]))(p3d, p2d)
    with pytest.raises(DataError, match="elbow"):
        StopRule(H16, joints=["elbow"])


# ------------------------------------------------------------------------------------------------------------- the optimiser


def test_exponential_sums():
    draw = torch.Generator().manual_seed(0)
    y = 10 ** (torch.rand(3, 200, generator=draw) * 12 - 12)
    z = 10 ** (torch.rand(3, 150, generator=draw) * 14 - 9)
    y[0, 0], z[1, 3], z[2] = 0, math.inf, math.inf
    rows, weight, columns = cauchy(y, z)
    found = torch.einsum("bqi,bq,bqj->bij", rows.double(), weight.double(), columns.double())
    exact = 1 / (y.double()[..., None] + z.double()[:, None])
    allowed = 2e-5 * exact + 2e-6 / y.double().amax(1)[:, None, None]
    assert ((found - exact).abs() <= allowed).all()
    assert found[2].abs().max() == 0


@pytest.mark.parametrize("form", ["torch", "tensorflow"])
@pytest.mark.parametrize("shape", [(200, 150), (16, 150), (150, 16)])
@pytest.mark.parametrize("fixed", [True, False])
def test_a_layer_per_sample_against_whole_matrices(form, shape, fixed):
    """Four steps with gradients of very different size, some of them 0."""
    outputs, inputs = shape
    adam = Adam(1e-2, form)
    layer = nn.Linear(inputs, outputs)
    own, weight, bias = SampleLinear(layer, adam), Dense(adam), Dense(adam)
    W, b = layer.weight.detach().repeat(3, 1, 1), layer.bias.detach().repeat(3, 1)
    x = torch.randn(3, inputs).relu()
    for step in range(1, 5):
        x = x if fixed else torch.randn(3, inputs).relu()
        given = x.clone().requires_grad_(not fixed)
        out = own.forward(given, layer(given))
        assert torch.allclose(out, torch.einsum("boi,bi->bo", W, x) + b, atol=2e-5)
        a = torch.randn(3, outputs).relu() * 10.0 ** torch.randint(-9, 1, (3, outputs))
        if not fixed:
            assert torch.allclose(torch.autograd.grad(out, given, a)[0], torch.einsum("boi,bo->bi", W, a), atol=2e-5)
        own.step(a)
        W, b = W + weight.change(a[..., None] * x[:, None], step), b + bias.change(a, step)


# ------------------------------------------------------------------------------------------------------------ through a camera


@pytest.fixture(scope="module")
def seen():
    """People of 250 mm bones before four cameras with lenses: poses lifted badly, roots, keypoints in px, truth."""
    X_root, root, _, lengths = lifted(40)
    skeleton = get("h36m17")
    rng = np.random.default_rng(1)
    pose = np.zeros((40, 17, 3))
    for parent, child in skeleton.bones:
        way = rng.normal(size=(40, 3))
        pose[:, child] = pose[:, parent] + 250 * way / np.linalg.norm(way, axis=1, keepdims=True)
    truth = torch.from_numpy(pose)
    error = torch.from_numpy(rng.normal(scale=40, size=pose.shape))
    error[:, skeleton.root_index] = 0
    cameras = ring_of_cameras(4, distortion=True)[torch.arange(40) % 4]
    x_img = cameras.project_cam(truth + root[:, None]) + torch.from_numpy(rng.normal(scale=3, size=(40, 17, 2)))
    return {"X_root": truth + error, "x_img": x_img, "camera": cameras, "root": root}, truth, lengths


def mpjpe(X, truth):
    return (X - truth).norm(dim=-1).mean().item()


@pytest.mark.parametrize("placed", [True, False])
def test_keypoints_improve_poses(seen, placed):
    given, truth, lengths = seen
    given = given if placed else given | {"root": None}
    before = mpjpe(given["X_root"], truth)
    plain = correct_by_projection(**given, noise=0.004, bone_mm=math.inf)
    sized = correct_by_projection(**given, noise=0.004, lengths_mm=lengths)
    assert mpjpe(plain.X_root, truth) < 0.9 * before
    assert mpjpe(sized.X_root, truth) < 0.75 * before  # lengths tell about depth
    assert (sized.error_after < sized.error_before).all() and sized.error_after.mean() < 6
    assert counts(sized.decision)["discarded"] == 0
    assert torch.allclose(sized.X_cam, sized.X_root + sized.root[:, None])


def test_the_estimate_of_a_general_solver():
    X_root, root, x, lengths = lifted(3, seed=5)
    options = {"noise": 0.01, "prior_mm": (30.0, 60.0), "huber": 1e9, "tau_mm": math.inf, "steps": 30, "eps_mm": 1e-6}
    found = correct_by_projection(X_root, x, None, root, lengths_mm=lengths, **options)
    for i in range(3):
        expected = by_least_squares(*(a[i].numpy() for a in (X_root, root, x, lengths)))
        assert np.abs(found.X_cam[i].numpy() - expected).max() < 0.02
    assert found.decision.tolist() == [CONVERGED] * 3


def test_poses_that_agree_stay_and_roots_are_found(seen):
    given, truth, _ = seen
    x_img = given["camera"].project_cam(truth + given["root"][:, None])
    found = correct_by_projection(truth, x_img, given["camera"])
    assert (found.X_root - truth).abs().max() < 1e-3 and (found.root - given["root"]).abs().max() < 1e-2
    assert found.steps.tolist() == [1] * 40 and found.error_before.max() < 1e-3


def test_what_the_camera_form_does_not_see(seen):
    given, _, _ = seen
    conf = torch.rand(40, 17)
    conf[:, 3], conf[7] = 0, 0
    other = given["x_img"].clone()
    other[:, 3], other[7] = math.nan, 1e5
    found, again = (correct_by_projection(**given | {"x_img": x}, conf=conf) for x in (given["x_img"], other))
    for name in ("X_root", "root", "steps", "decision", "error_before"):
        assert torch.equal(getattr(found, name), getattr(again, name)), name
    assert found.decision[7] == DISCARDED and torch.equal(found.X_root[7], given["X_root"][7]) and found.error_after[7] == 0
    assert torch.equal(found.root[7], given["root"][7])
    unplaced = correct_by_projection(**given | {"root": None}, conf=conf)
    assert unplaced.root[7].isnan().all() and torch.equal(unplaced.X_root[7], given["X_root"][7])
    assert unplaced.X_root.isfinite().all()


def test_outliers_and_wrong_people(seen):
    given, truth, lengths = seen
    outlier = given["x_img"].clone()
    outlier[:, 13] += 300
    held = correct_by_projection(**given | {"x_img": outlier}, noise=0.004, lengths_mm=lengths)
    trusted = correct_by_projection(**given | {"x_img": outlier}, noise=0.004, lengths_mm=lengths, huber=1e9)
    assert mpjpe(held.X_root, truth) < 0.9 * mpjpe(trusted.X_root, truth)
    swapped = given["x_img"][:, torch.from_numpy(get("h36m17").flip.copy())]
    found = correct_by_projection(**given | {"x_img": swapped}, noise=0.002, huber=1e9, tau_mm=20.0)
    assert counts(found.decision)["discarded"] > 30
    dropped = found.decision == DISCARDED
    assert torch.equal(found.X_root[dropped], given["X_root"][dropped]) and torch.equal(found.root[dropped], given["root"][dropped])


def test_a_fixed_root_units_and_company(seen):
    given, _, _ = seen
    fixed = correct_by_projection(**given, root_mm=0.0)
    assert torch.equal(fixed.root, given["root"]) and (fixed.error_after < fixed.error_before).all()
    whole = correct_by_projection(**given)
    affine = torch.tensor([[0.002, 0, -1], [0, 0.002, -1]], dtype=torch.float64)
    screen = given | {"x_img": given["x_img"] * 0.002 - 1, "camera": given["camera"].warped(affine)}
    assert torch.allclose(correct_by_projection(**screen).X_root, whole.X_root, atol=1e-6)
    assert torch.allclose(correct_by_projection(**screen).error_after, 0.002 * whole.error_after, atol=1e-9)
    norm = correct_by_projection(given["X_root"], given["camera"].to_norm(given["x_img"]), None, given["root"])
    assert torch.allclose(norm.X_root, whole.X_root, atol=1e-6)
    order = torch.arange(39, -1, -1)
    backwards = correct_by_projection(**{name: value[order] for name, value in given.items()})
    assert torch.allclose(backwards.X_root[order], whole.X_root, atol=1e-6)
    clips = correct_by_projection(given["X_root"].view(4, 10, 17, 3).float(), given["x_img"].view(4, 10, 17, 2),
                                  given["camera"].reshape(4, 10), given["root"].view(4, 10, 3))  # fmt: skip
    assert clips.X_root.dtype == torch.float32 and torch.allclose(clips.X_root.double().view(40, 17, 3), whole.X_root, atol=1e-2)
    one = correct_by_projection(given["X_root"][0], given["x_img"][0], given["camera"][0], given["root"][0])
    assert torch.allclose(one.X_root, whole.X_root[0], atol=1e-6)
    assert correct_by_projection(given["X_root"][:0], given["x_img"][:0], given["camera"][:0]).X_root.shape == (0, 17, 3)


def test_shared_lengths():
    X_root = lifted(6)[0]
    group = torch.tensor([1, 0, 1, 1, 0, 2])
    bones = torch.from_numpy(get("h36m17").bones)
    lengths = (X_root[:, bones[:, 1]] - X_root[:, bones[:, 0]]).norm(dim=-1)
    found = shared_lengths(X_root, group)
    for i in range(6):
        assert torch.allclose(found[i], lengths[group == group[i]].mean(0))


def test_camera_form_refuses_what_does_not_fit(seen):
    given, _, lengths = seen
    with pytest.raises(GeometryError, match="x_img has shape"):
        correct_by_projection(**given | {"x_img": given["x_img"][:, :16]})
    with pytest.raises(GeometryError, match="root has shape"):
        correct_by_projection(**given | {"root": given["root"][:3]})
    with pytest.raises(GeometryError, match="lengths_mm"):
        correct_by_projection(**given, lengths_mm=lengths[:, :3])
    with pytest.raises(ConfigError, match="noise 0"):
        correct_by_projection(**given, noise=0.0)
