"""Cameras against OpenCV, against recorded numbers of EpipolarPose, and against their own inverse maps."""

import pickle

import cv2
import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.camera import Cameras, distort_norm, undistort_norm
from lib.geometry.crop import crop_affine, transform_points
from tests.conftest import golden
from tests.scene import points, ring_of_cameras, rotations


def test_project_equals_opencv():
    cams, X = ring_of_cameras(4, distortion=True), points(50)
    x, depth = cams.project(X)
    assert x.shape == (4, 50, 2) and depth.shape == (4, 50)
    for v in range(4):
        rvec, _ = cv2.Rodrigues(cams.R[v].numpy())
        args = (rvec, cams.t[v].numpy(), cams.K[v].numpy(), cams.dist[v].numpy())
        expected, _ = cv2.projectPoints(X.numpy(), *args)
        np.testing.assert_allclose(x[v].numpy(), expected[:, 0], atol=1e-8)


def test_undistort_equals_opencv_and_inverts_project_all_over_the_image():
    cams = ring_of_cameras(4, distortion=True)
    grid = torch.cartesian_prod(torch.linspace(0, 999, 21), torch.linspace(0, 999, 21)).double()
    x = cams.undistort(grid)
    back = cams.from_norm(cams.to_norm(grid))
    torch.testing.assert_close(back, grid.expand(4, -1, -1), atol=1e-8, rtol=0)
    rays = cams.to_norm(grid).numpy()
    for v in range(4):
        K, dist = cams.K[v].numpy(), cams.dist[v].numpy()
        there = cv2.projectPoints(np.insert(rays[v], 2, 1.0, axis=1), np.zeros(3), np.zeros(3), K, dist)[0]
        np.testing.assert_allclose(there[:, 0], grid.numpy(), atol=1e-6)
        few_steps = cv2.undistortPoints(grid.numpy()[:, None], K, dist, None, None, K)  # stops after five fixed steps
        np.testing.assert_allclose(x[v].numpy(), few_steps[:, 0], atol=2.0)


@pytest.mark.parametrize("tangential", ["opencv", "h36m"])
def test_unproject_inverts_project(tangential):
    cams, X = ring_of_cameras(3, distortion=True), points(20)
    x, depth = cams.project(X, tangential=tangential)
    back = cams.unproject(x, depth, tangential=tangential)
    torch.testing.assert_close(back, X.expand(3, -1, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(), (2,), (1, 2)])
def test_every_leading_shape_gives_the_same_numbers(shape):
    one, X = ring_of_cameras(1, distortion=True)[0], points(*shape, 5)
    many = one.expand(*shape)
    x, depth = many.project(X)
    assert many.shape == shape and x.shape == (*shape, 5, 2) and depth.shape == (*shape, 5)
    flat, flat_depth = one.project(X.reshape(-1, 3))
    torch.testing.assert_close(x.reshape(-1, 2), flat)
    torch.testing.assert_close(depth.reshape(-1), flat_depth)
    torch.testing.assert_close(many.to_world(many.to_cam(X)), X)
    assert many.P.shape == (*shape, 3, 4) and many.center.shape == (*shape, 3)


def test_batch_of_rigs_sees_a_batch_of_people():
    cams, X = ring_of_cameras(3), points(2, 1, 7)
    rigs = Cameras.stack([cams, cams])
    x, _ = rigs.project(X)
    assert x.shape == (2, 3, 7, 2)
    torch.testing.assert_close(x[1, 2], cams[2].project(X[1, 0])[0])
    assert rigs.project(points(7))[0].shape == (2, 3, 7, 2)


def test_P_and_center():
    cams, X = ring_of_cameras(4), points(6)
    x, depth = cams.project(X)
    homogeneous = torch.einsum("vij,nj->vni", cams.P, torch.cat([X, torch.ones(6, 1).double()], -1))
    torch.testing.assert_close(homogeneous[..., :2] / homogeneous[..., 2:], x)
    torch.testing.assert_close(homogeneous[..., 2], depth)
    torch.testing.assert_close(cams.center[:, 2], 1600 + 40 * torch.arange(4).double())


def test_points_behind_and_in_the_camera_plane():
    cam = Cameras.make(torch.eye(3), torch.eye(3), [0.0, 0.0, 0.0], dist=[-0.3, 0.2, 0.01, 0.01, 0.1])
    X = torch.tensor([[100.0, 50.0, -1000.0], [3000.0, 1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    x, depth = cam.project(X)
    torch.testing.assert_close(depth, torch.tensor([-1000.0, 0.0, 0.0]))
    assert x.isfinite().all()
    x.sum().backward()
    assert X.grad.isfinite().all()
    assert not cam.in_view(X.detach()).any()


def test_in_view_excludes_outside_behind_and_folded_points():
    K = [[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]]
    cam = Cameras.make(K, torch.eye(3), [0.0, 0.0, 0.0], dist=[-0.3, 0.0, 0.0, 0.0, 0.0], size=(640, 480))
    X = torch.tensor([[0.0, 0.0, 10.0], [0.0, 0.0, -10.0], [0.0, 9.0, 10.0], [18.0, 0.0, 10.0]])
    assert float(cam.max_radius) == pytest.approx((1 / 0.9) ** 0.5, abs=0.01)  # 1 + 3 k1 r^2 = 0
    x = cam.project(X)[0]
    assert 0 < x[3, 0] < 639  # folded back into the picture by the polynomial
    assert cam.in_view(X).tolist() == [True, False, False, False]


def test_warped_camera_sees_what_the_crop_shows():
    cams, X = ring_of_cameras(4, distortion=True), points(2, 1, 9)
    center = torch.tensor([[[480.0, 520.0]], [[500.0, 470.0]]]).double()
    A = crop_affine(center, [420.0, 460.0], [192, 256], scale=1.1, rot_deg=25.0, flip=torch.tensor([[True], [False]]))
    crops = cams.warped(A, size=(192, 256))
    assert crops.shape == (2, 4) and crops.size[1, 3].tolist() == [192, 256]
    x_patch = transform_points(A, cams.project(X)[0])
    torch.testing.assert_close(crops.project(X)[0], x_patch)
    torch.testing.assert_close(crops.unproject(x_patch, crops.project(X)[1]), X.expand(2, 4, 9, 3), atol=1e-5, rtol=0)


def test_golden_projection():
    """Numbers of EpipolarPose's camera code: T is the camera centre, the tangential part is the official H36M form."""
    g = {k: torch.from_numpy(v) for k, v in golden("epipolarpose", "projection").items()}
    k1, k2, k3 = g["k"][..., 0].unbind(-1)
    p1, p2 = g["p"][..., 0].unbind(-1)
    zero = torch.zeros_like(k1)
    (fx, fy), (cx, cy) = g["f"][..., 0].unbind(-1), g["c"][..., 0].unbind(-1)
    K = torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, zero + 1], -1).reshape(-1, 3, 3)
    cams = Cameras.make(K, g["R"], center=g["T"][..., 0], dist=torch.stack([k1, k2, p1, p2, k3], -1))

    X_cam = cams.to_cam(g["world"])
    torch.testing.assert_close(X_cam, g["cam"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cams.to_world(X_cam), g["back"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cams.P, g["P34"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cams.t, g["tvec"][..., 0], rtol=1e-6, atol=1e-6)
    distorted, depth = cams.project(g["world"], tangential="h36m")
    torch.testing.assert_close(distorted, g["proj_radial"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(depth, g["depth"], rtol=1e-6, atol=1e-6)
    pinhole = cams.project(g["world"], distort=False)[0]
    torch.testing.assert_close(pinhole, g["joints_3d"][..., :2], rtol=1e-6, atol=1e-6)
    assert 2 < (pinhole - distorted).norm(dim=-1).max() < 20  # lens distortion is pixels, so it must not be dropped
    X_cam = cams.unproject_cam(distorted, depth)  # the reference goes back by OpenCV's form, in float32
    torch.testing.assert_close(X_cam, g["unproject"], rtol=0, atol=0.5)
    assert (cams.project(g["world"])[0] - distorted).norm(dim=-1).max() < 1  # the two tangential forms


def test_golden_back_projection():
    g = golden("epipolarpose", "projection")
    fx, fy, cx, cy = g["backproj_fx_fy_cx_cy"]
    cam = Cameras.make(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.eye(3), np.zeros(3))
    uvd = torch.from_numpy(g["backproj_in"])
    X_cam = cam.unproject_cam(uvd[:, :2], uvd[:, 2])
    torch.testing.assert_close(X_cam, torch.from_numpy(g["backproj_out"]), rtol=1e-6, atol=1e-6)


def test_gradients():
    cams = ring_of_cameras(2, distortion=True)
    X = points(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: cams.project(X), X)
    x = (torch.rand(3, 2).double() * 900).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cams.undistort(x), x)
    dist = cams.dist.clone().requires_grad_()
    x_norm = torch.rand(2, 4, 2).double() - 0.5
    assert torch.autograd.gradcheck(lambda d: undistort_norm(x_norm, d), dist)
    assert torch.autograd.gradcheck(lambda d: distort_norm(x_norm, d, "h36m"), dist)


def test_float32_in_float32_out_and_close():
    cams, X = ring_of_cameras(4, distortion=True), points(30)
    x = cams.to(torch.float32).project(X.float())[0]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), cams.project(X)[0], atol=2e-3, rtol=0)
    single = cams.to(torch.float32).undistort(x)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), cams.project(X, distort=False)[0], atol=5e-3, rtol=0)


def test_autocast_does_not_reach_the_geometry():
    cams, X = ring_of_cameras(2, dtype=torch.float32), points(5, dtype=torch.float32)
    expected = cams.project(X)[0], cams.P, cams.undistort(cams.project(X)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cams.project(X)[0], cams.P, cams.undistort(cams.project(X)[0])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_container():
    cams = ring_of_cameras(4, distortion=True)
    assert len(cams) == 4 and cams.shape == (4,) and cams[1:3].shape == (2,) and cams[2].shape == ()
    assert cams[None].shape == (1, 4) and cams[..., None].shape == (4, 1) and cams[torch.tensor([3, 0])].shape == (2,)
    torch.testing.assert_close(Cameras.stack([cams[0], cams[1]]).K, cams.K[:2])
    torch.testing.assert_close(Cameras.cat([cams[:1], cams[1:]]).dist, cams.dist)
    assert cams.reshape(2, 2)[1, 0].t.tolist() == cams.t[2].tolist()
    copy = pickle.loads(pickle.dumps(cams))  # worker processes send cameras this way
    torch.testing.assert_close(copy.P, cams.P)
    assert cams.to(torch.float32).dtype == torch.float32
    with pytest.raises(AttributeError):
        cams.K = cams.K
    with pytest.raises(TypeError):
        len(cams[0])
    with pytest.raises(GeometryError, match="indexed"):
        cams[0, 1]


def test_make_fills_defaults_and_refuses_what_is_not_a_camera():
    eye, zero = torch.eye(3), torch.zeros(3)
    cam = Cameras.make(eye, rotations(2, dtype=torch.float32), zero, dist=[0.1, 0.2, 0.0, 0.0])
    assert cam.shape == (2,) and cam.dist.shape == (2, 5) and cam.size.tolist() == [[0, 0], [0, 0]]
    for wrong in (
        lambda: Cameras.make(torch.eye(4), eye, zero),
        lambda: Cameras.make(eye, eye, torch.zeros(2)),
        lambda: Cameras.make(eye, eye),
        lambda: Cameras.make(eye, eye, zero, center=zero),
        lambda: Cameras.make(2 * eye, eye, zero),
        lambda: Cameras.make(eye, -eye, zero),
        lambda: Cameras.make(eye, eye * float("nan"), zero),
        lambda: Cameras.make(eye.expand(3, 3, 3), eye.expand(2, 3, 3), zero),
        lambda: cam.project(torch.zeros(4, 2)),
        lambda: cam.project(torch.zeros(4, 3), tangential="kannala"),
    ):
        with pytest.raises(GeometryError):
            wrong()
