"""Exact ray casting of stretched round cones, and the picture made of it.

Only pixels that a solid can cover are traced: each solid's silhouette is bounded in the undistorted plane z = 1, and
the (solid, pixel) pairs of all solids of an image form one flat batch. Rays are those of the real lens, so nothing
needs to be warped afterwards.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline

from lib.geometry.camera import Cameras
from lib.synthetic.body import Posed
from lib.synthetic.looks import Person

NEAR = 100.0  # mm, surfaces nearer to the camera are not seen
FLOOR = 50.0  # mm, cell of the shadow map
FLOOR_CELLS = 160
SHADOW = np.float32(0.68)  # share of the light that a full shadow takes


class Scene(NamedTuple):
    """Posed solids of all people, N in all, at one instant or at T; arrays as in body.Solids, but in the world."""

    origin: np.ndarray  # (...,N,3) mm
    axes: np.ndarray  # (...,N,3,3) world from local, columns are the local axes
    scale: np.ndarray  # (N,3)
    length: np.ndarray  # (N,)
    radius: np.ndarray  # (N,2)
    person: np.ndarray  # (N,)
    tex_start: np.ndarray  # (N,) into atlas
    tex_size: np.ndarray  # (N,2)
    atlas: np.ndarray  # (M,3) float32 linear reflectance


class Light(NamedTuple):
    """Lighting of a room: one main direction, the rest from everywhere."""

    direction: np.ndarray  # (3,) unit, towards the light
    key: float  # strength of the main light
    ambient: float
    color: np.ndarray  # (3,) of the main light


@dataclass(frozen=True)
class View:
    """A camera prepared for rendering: its rays, what it sees of the empty room, and its exposure."""

    R: np.ndarray  # (3,3) camera from world
    t: np.ndarray  # (3,) mm
    rays: np.ndarray  # (2,H*W) float32, x and y of each pixel's ray in the plane z = 1
    columns: tuple[np.ndarray, np.ndarray]  # non-decreasing lowest and highest ray x of each image column
    rows: tuple[np.ndarray, np.ndarray]
    size: tuple[int, int]  # width, height
    backdrop: np.ndarray  # (H,W,3) uint8, the empty room
    depth: np.ndarray  # (H,W) float32 mm along the camera axis, of the empty room
    floor: tuple[np.ndarray, np.ndarray]  # (H,W) float32 each: cell of the shadow map, -10 off the floor
    gain: np.ndarray  # (3,) exposure and white balance
    blur: float  # px
    noise: int  # amplitude of the sensor noise, display values


class Picture(NamedTuple):
    """An image and everything exact about it."""

    image: np.ndarray  # (H,W,3) uint8 RGB
    depth: np.ndarray  # (H,W) float32 mm along the camera axis
    person: np.ndarray  # (H,W) int16, -1 = room


class Bounds(NamedTuple):
    """Where solids can be seen, in the plane z = 1: their box, and a capsule that encloses them."""

    box: np.ndarray  # (N,4) x0 y0 x1 y1
    capsule: np.ndarray  # (N,6) start x y, way x y, 1 / |way|^2, squared radius


def camera_rays(camera: Cameras) -> np.ndarray:
    """Rays of all pixels, in the undistorted plane z = 1.   camera () of known size -> (2,H,W) float32

    A lens is undone exactly at 33 x 33 pixels; quintic splines between them err by some 1e-5 px, as much as float32's
    rounding does.
    """
    width, height = (int(v) for v in camera.size)
    lens = bool(camera.dist.abs().max() > 0)
    u, v = (np.linspace(0, n - 1, 33) if lens and n > 33 else np.arange(n, dtype=np.float64) for n in (width, height))
    knots = torch.from_numpy(np.stack(np.meshgrid(u, v), -1).reshape(-1, 2))
    rays = camera.to_norm(knots, undistort=lens).numpy().T.reshape(2, len(v), len(u))
    if len(u) < width or len(v) < height:
        degree = {"kx": min(5, len(v) - 1), "ky": min(5, len(u) - 1)}
        rays = np.stack([RectBivariateSpline(v, u, r, **degree)(np.arange(height), np.arange(width)) for r in rays])
    return rays.astype(np.float32)


def pixel_ranges(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each column, made non-decreasing outwards, to be searched.

    values (H,W) -> (W,), (W,)
    """
    low, high = values.min(0), values.max(0)
    return np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)


def in_camera(R: np.ndarray, t: np.ndarray, X: np.ndarray) -> np.ndarray:
    """World to camera frame.   R (...,3,3), t (...,3), X (...,N,3) mm -> (...,N,3)"""
    return X @ np.swapaxes(R, -1, -2) + t[..., None, :]


def ends(scene: Scene) -> np.ndarray:
    """Centres of the second balls.   -> (...,N,3) mm"""
    return scene.origin + scene.axes[..., 2] * (scene.length * scene.scale[:, 2])[:, None]


def silhouettes(center: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes around the images of ellipsoids: the conic whose dual is P Q* P^T (Hartley and Zisserman, 8.3).

    center (...,3) mm camera frame, axes (...,3,3) columns: half axes -> middle (...,2), half size (...,2), whether
    wholly in front (...)
    """
    ahead = center[..., 2] > NEAR
    # Entries of dual = c c^T - M M^T: the corner, the last row, the diagonal.
    corner = center[..., 2] ** 2 - (axes[..., 2, :] ** 2).sum(-1)
    ahead &= corner > NEAR**2
    safe = np.where(ahead, corner, 1.0)[..., None]
    middle = (center[..., :2] * center[..., 2:] - (axes[..., :2, :] * axes[..., 2:, :]).sum(-1)) / safe
    square = (center[..., :2] ** 2 - (axes[..., :2, :] ** 2).sum(-1)) / safe
    return middle, np.sqrt(np.maximum(middle**2 - square, 0)), ahead


def ball_boxes(center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Boxes around the images of balls; those that reach behind the camera get the whole plane.

    (K,3) mm, (K,) mm -> (K,4)
    """
    middle, half, ahead = silhouettes(center, np.eye(3) * radius[:, None, None])
    # One that lies wholly behind gets a box without area.
    whole = np.where(center[:, 2] > -radius, 1e6, -1e6)[:, None] * np.array([-1, -1, 1, 1])
    return np.where(ahead[:, None], np.concatenate([middle - half, middle + half], -1), whole)


def bounds(scene: Scene, R: np.ndarray, t: np.ndarray) -> Bounds:
    """Bounds of the solids' silhouettes; a solid that reaches behind the near plane gets none and is not drawn."""
    center = in_camera(R, t, np.stack([scene.origin, ends(scene)], 1))  # (N,2,3)
    size = scene.scale[:, None] * scene.radius[..., None]  # (N,2,3) half axes of both ellipsoids
    mean, half, ahead = silhouettes(center, (R @ scene.axes)[:, None] * size[:, :, None, :])
    low, high = (mean - half).min(1), (mean + half).max(1)
    box = np.where(ahead.all(1)[:, None], np.concatenate([low, high], -1), [1e6, 1e6, -1e6, -1e6])
    start, way = mean[:, 0], mean[:, 1] - mean[:, 0]
    square = (way**2).sum(-1)
    radius = np.linalg.norm(half, axis=-1).max(1)  # the disc around an ellipse's box encloses it
    capsule = np.concatenate([start, way, (1 / np.maximum(square, 1e-12))[:, None], (radius**2)[:, None]], -1)
    return Bounds(box, capsule)


def flat_pairs(box: np.ndarray, columns, rows, width: int) -> tuple[np.ndarray, np.ndarray]:
    """All (solid, pixel) pairs inside the solids' boxes.   box (N,4) -> solid (M,), pixel (M,) intp"""
    col = np.maximum(np.searchsorted(columns[1], box[:, 0], "left"), 0), np.searchsorted(columns[0], box[:, 2], "right")
    row = np.searchsorted(rows[1], box[:, 1], "left"), np.searchsorted(rows[0], box[:, 3], "right")
    wide, high = np.maximum(col[1] - col[0], 0), np.maximum(row[1] - row[0], 0)
    high = np.where(wide > 0, high, 0)
    line = np.repeat(np.arange(len(box)), high)  # one entry per solid and image row
    if len(line) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    first = np.cumsum(high) - high
    y = np.arange(len(line)) - first[line] + row[0][line]
    count = wide[line]
    begin = np.cumsum(count) - count
    pixel = np.arange(begin[-1] + count[-1]) + np.repeat(y * width + col[0][line] - begin, count)
    return np.repeat(line, count), pixel


def near_capsule(capsule: np.ndarray, solid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points of the plane z = 1 lie in the solids' bounding capsules.   -> (M,) bool"""
    ax, ay, wx, wy, inverse, square = capsule.T.astype(np.float32)[:, solid]
    px, py = x - ax, y - ay
    s = np.clip((px * wx + py * wy) * inverse, 0, 1)
    px -= s * wx
    py -= s * wy
    return px * px + py * py <= square * np.float32(1.0001) + np.float32(1e-9)


def cones(scene: Scene, R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Per-solid numbers of the intersection: local = A X_cam + b, and the round cone.

    R (...,3,3), t (...,3) -> (18,...,N) float32
    """
    axes = R[..., None, :, :] @ scene.axes  # (...,N,3,3) camera from local
    A = np.swapaxes(axes, -1, -2) / scene.scale[:, :, None]
    start, end = in_camera(R, t, scene.origin), in_camera(R, t, ends(scene))
    b = -np.einsum("...ij,...j->...i", A, start)
    z = (start[..., 2] + end[..., 2]) / 2  # rays start at this depth: near the solid float32 errs by micrometres
    r0, r1 = scene.radius.T
    sin = np.where(scene.length > 0, (r0 - r1) / np.maximum(scene.length, 1e-9), 0.0)
    own = [np.broadcast_to(v, z.shape) for v in (r0, r1, scene.length, sin, 1 - sin**2)]
    rows = np.moveaxis(A, (-2, -1), (0, 1)).reshape(9, *z.shape)
    return np.stack([*rows, *np.moveaxis(b, -1, 0), z, *own]).astype(np.float32)


def intersect(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Where rays (x, y, 1) depth of the camera frame enter solids.

    The surface is that of ball 0, ball 1 and the cone that touches both; the first entry into any of them is the
    entry into their hull.

    table (18,...) of `cones`, one column per ray or broadcasting with x, y (...) float32
    -> depth (...) mm, inf where missed; t (...) and local ray (ox, oy, oz, dx, dy, dz): the entry is at o + t d
    """
    a0, a1, a2, a3, a4, a5, a6, a7, a8, b0, b1, b2, z, r0, r1, length, sin, cos2 = table
    dx, dy, dz = a0 * x + a1 * y + a2, a3 * x + a4 * y + a5, a6 * x + a7 * y + a8
    ox, oy, oz = b0 + z * dx, b1 + z * dy, b2 + z * dz
    dd2, od2, oo2 = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy
    dd = dd2 + dz * dz
    inf = np.float32(np.inf)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # Balls: |o + t d|^2 = r^2. A missed one has a NaN root, which fmin passes over.
        od = od2 + oz * dz
        t0 = (-od - np.sqrt(od * od - dd * (oo2 + oz * oz - r0 * r0))) / dd
        up = oz - length
        od = od2 + up * dz
        t1 = (-od - np.sqrt(od * od - dd * (oo2 + up * up - r1 * r1))) / dd
        # Cone: cos^2 (x^2 + y^2) = (r0 - sin z)^2 between the circles where it touches the balls.
        gap = r0 - sin * oz
        a = cos2 * dd2 - sin * sin * dz * dz
        b = cos2 * od2 + sin * dz * gap
        tc = (-b - np.sqrt(b * b - a * (cos2 * oo2 - gap * gap))) / a
        pz = oz + tc * dz
        tc = np.where((pz > r0 * sin) & (pz < length + r1 * sin), tc, inf)
        t = np.fmin(np.fmin(t0, t1), tc)
        depth = t + z
    depth[~((t < inf) & (depth > NEAR))] = inf
    return depth, t, (ox, oy, oz, dx, dy, dz)


def surface(table: np.ndarray, solid: np.ndarray, t: np.ndarray, ray) -> tuple[np.ndarray, np.ndarray]:
    """Local point and outward gradient where the rays of `intersect` hit.   -> (3,M), (3,M)"""
    ox, oy, oz, dx, dy, dz = ray
    r0, r1, length, sin, cos2 = table[13:18, solid]
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    low, high = z <= r0 * sin, z >= length + r1 * sin
    scale = np.where(low | high, np.float32(1), cos2)
    up = np.where(low, z, np.where(high, z - length, sin * (r0 - sin * z)))
    return np.stack([x, y, z]), np.stack([scale * x, scale * y, up])


def trace(scene: Scene, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The visible surface of all solids in front of the room.

    -> depth (H*W,) float32 with the room; and for each pixel that shows a solid: pixel, solid (M,), local point and
    gradient (3,M)
    """
    bound = bounds(scene, view.R, view.t)
    solid, pixel = flat_pairs(bound.box, view.columns, view.rows, view.size[0])
    x, y = view.rays[:, pixel]
    keep = np.flatnonzero(near_capsule(bound.capsule, solid, x, y))
    solid, pixel, x, y = solid[keep], pixel[keep], x[keep], y[keep]
    table = cones(scene, view.R, view.t)
    z, t, ray = intersect(table[:, solid], x, y)
    depth = view.depth.reshape(-1).copy()
    near = np.flatnonzero(z < depth[pixel])
    np.minimum.at(depth, pixel[near], z[near])
    near = near[z[near] == depth[pixel[near]]]
    owner = np.full(depth.shape, -1, np.intp)
    owner[pixel[near]] = near  # of two surfaces at exactly one depth, the later solid is seen
    near = near[owner[pixel[near]] == near]
    point, gradient = surface(table, solid[near], t[near], [v[near] for v in ray])
    return depth, pixel[near], solid[near], point, gradient


def shade(scene: Scene, view: View, light: Light, solid: np.ndarray, point: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Display values 0..255 of surface points: texture, Lambert's law, light from all around.   -> (M,3) float32"""
    r0, r1 = scene.radius[solid].T.astype(np.float32)
    around, along = scene.tex_size[solid].T
    u = (np.arctan2(point[1], point[0]) * np.float32(0.5 / np.pi) + np.float32(0.5)) * around
    v = (point[2] + r0) / (r0 + r1 + scene.length[solid].astype(np.float32)) * along
    u, v = np.minimum(u.astype(np.intp), around - 1), np.clip(v.astype(np.intp), 0, along - 1)
    color = scene.atlas[scene.tex_start[solid] + v * around + u]
    # World normals of gradients in stretched frames: axes / scale.
    turn = (scene.axes / scene.scale[:, None, :]).astype(np.float32).transpose(1, 2, 0)[:, :, solid]
    normal = (turn * gradient).sum(1)
    normal /= np.sqrt((normal * normal).sum(0))
    lambert = np.maximum(light.direction.astype(np.float32) @ normal * np.float32(0.85) + np.float32(0.15), 0)
    sky = np.float32(0.62) + np.float32(0.38) * normal[2]
    warm = (light.key * light.color * view.gain).astype(np.float32)
    cool = (light.ambient * view.gain).astype(np.float32)
    return np.float32(255) * np.sqrt(np.minimum(color * (lambert[:, None] * warm + sky[:, None] * cool), 1))


def floor_shadow(scene: Scene, light: Light) -> np.ndarray:
    """Share of the light that people keep from the floor around the room's middle.   -> (cells, cells) float32

    Capsules thrown along the light, blurred with their height; what almost touches the floor darkens it from straight
    above, too.
    """
    point = np.stack([scene.origin, ends(scene)])  # (2,N,3)
    radius = scene.radius.T * np.sqrt(scene.scale[:, 0] * scene.scale[:, 1]) / FLOOR  # (2,N) cells
    height = point[..., 2].mean(0)
    low = height < 350
    slope = np.stack([light.direction[:2] / light.direction[2], [0.0, 0.0]])
    flat = point[:, None, :, :2] - point[:, None, :, 2:] * slope[:, None, :]  # (2,2,N,2) end, light
    flat = flat / FLOOR + FLOOR_CELLS / 2
    a, b = (np.concatenate([end[0], end[1, low]]) for end in flat)
    r = np.concatenate([radius.mean(0), radius[:, low].mean(0) + 0.9])
    soft = np.concatenate([0.8 + height / 700, np.full(low.sum(), 1.6)])
    weight = np.concatenate([np.ones(len(height)), np.exp(-height[low] / 120)])
    reach = (r + soft)[:, None]
    box = np.concatenate([np.minimum(a, b) - reach, np.maximum(a, b) + reach], -1)
    line = np.arange(FLOOR_CELLS, dtype=np.float64)
    solid, pixel = flat_pairs(box, (line, line), (line, line), FLOOR_CELLS)
    way = b - a
    table = np.stack([*a.T, *way.T, 1 / np.maximum((way**2).sum(-1), 1e-9), r, soft, weight]).astype(np.float32)
    ax, ay, wx, wy, inverse, r, soft, weight = table[:, solid]
    px, py = (pixel % FLOOR_CELLS) - ax, (pixel // FLOOR_CELLS) - ay
    s = np.clip((px * wx + py * wy) * inverse, 0, 1)
    px, py = px - s * wx, py - s * wy
    cover = weight * np.clip((r - np.sqrt(px * px + py * py)) / (2 * soft) + np.float32(0.5), 0, 1)
    shadow = np.zeros(FLOOR_CELLS * FLOOR_CELLS, np.float32)
    np.maximum.at(shadow, pixel, cover)
    return cv2.GaussianBlur(shadow.reshape(FLOOR_CELLS, FLOOR_CELLS), (3, 3), 0.8)


def picture(scene: Scene, view: View, light: Light, noise: np.ndarray) -> Picture:
    """The image of a scene.   noise: flat uint8 table of twice the image's length, from `noise_table`"""
    width, height = view.size
    depth, pixel, solid, point, gradient = trace(scene, view)
    depth = depth.reshape(height, width)
    image = view.backdrop.copy()
    shadow = cv2.remap(floor_shadow(scene, light), *view.floor, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    left, top, wide, high = cv2.boundingRect((shadow > 0.004).view(np.uint8))
    dark = np.sqrt(1 - SHADOW * shadow[top : top + high, left : left + wide])
    image[top : top + high, left : left + wide] = image[top : top + high, left : left + wide] * dark[..., None]
    if len(pixel):
        color = shade(scene, view, light, solid, point, gradient)
        image.reshape(-1, 3)[pixel] = color * creases(depth, pixel)[:, None]
    image = cv2.GaussianBlur(image, (3, 3), view.blur)
    noise = noise.reshape(2, height, width, 3)
    image = cv2.subtract(cv2.add(image, noise[0]), noise[1])
    person = np.full(height * width, -1, np.int16)
    person[pixel] = scene.person[solid]
    return Picture(image, depth, person.reshape(height, width))


def creases(depth: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Darkness of surfaces just behind something near them, under chins and between limbs and trunk.

    (H,W), (M,) -> factor (M,)
    """
    row, column = np.divmod(pixel, depth.shape[1])
    top, left = row.min(), column.min()
    part = depth[top : row.max() + 1, left : column.max() + 1]
    size = 2 * max(1, len(part) // 28) + 1
    near = cv2.blur(np.minimum(part, depth[row, column].max()), (size, size), borderType=cv2.BORDER_REPLICATE)
    behind = depth[row, column] - near[row - top, column - left]
    return 1 - np.clip((behind - 4) * np.float32(1 / 150), 0, np.float32(0.4))


def noise_table(length: int, amplitude: int, rng: np.random.Generator) -> np.ndarray:
    """Halves of sensor noise to add and to subtract.   -> (length,) uint8"""
    return np.abs(rng.normal(0, amplitude, length)).astype(np.uint8)


def first_hits(scene: Scene, R: np.ndarray, t: np.ndarray, x_norm: np.ndarray) -> np.ndarray:
    """Depth of the first solid on each of a few rays.

    R (...,3,3), t (...,3), x_norm (...,K,2) undistorted -> (...,K) mm, inf = none
    """
    rays = x_norm[..., None, :, :].astype(np.float32)
    return intersect(cones(scene, R, t)[..., None], rays[..., 0], rays[..., 1])[0].min(-2)


def assemble(people: list[Person], poses: list[Posed]) -> Scene:
    """The scene of posed people, at all T instants of their poses: origin (T,N,3), axes (T,N,3,3)."""
    parts, texels = [], 0
    for k, (person, posed) in enumerate(zip(people, poses, strict=True)):
        s = person.solids
        frame = posed.R[:, s.segment]
        place = posed.origin[:, s.segment] + np.einsum("tnij,nj->tni", frame, s.origin)
        shape = place, frame @ s.axes, s.scale, s.length, s.radius, np.full(len(s.length), k)
        parts.append((*shape, person.tex_start + texels, person.tex_size, person.atlas))
        texels += len(person.atlas)
    joined = list(zip(*parts, strict=True))
    return Scene(*(np.concatenate(v, 1) for v in joined[:2]), *(np.concatenate(v) for v in joined[2:]))


def at(scene: Scene, instant: int | slice) -> Scene:
    """One instant of a scene, or several."""
    return scene._replace(origin=scene.origin[instant], axes=scene.axes[instant])
