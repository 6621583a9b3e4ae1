"""Textures of people: one small picture per solid, painted in the coordinates of the resting body.

So a garment's pattern runs on over all the limbs it covers. Front and back of head, shirt, belt and shoes differ,
because nothing else in an image tells left from right.
"""

import numpy as np

from lib.synthetic.body import Body, Solids
from lib.synthetic.wardrobe import Face, Outfit, palette

# Texels around and along a solid; TEXELS_SMALL for SMALL ones, TEXELS_LIMB for the others.
TEXELS = {"head": (56, 56), "chest": (56, 40), "abdomen": (48, 24), "pelvis": (40, 24), "pecs": (32, 24)}
TEXELS_LIMB, TEXELS_SMALL = (20, 28), (12, 12)
SMALL = ("nose", "ear", "fingers", "thumb", "visor", "hand", "trap", "calf")
SKULL, SKULL_HALF = (0.010, 0.0, 0.080), (0.056, 0.0445, 0.072)  # the head's ellipsoid, in statures from its pivot
LEATHER, BUCKLE, SOCK, EYE, PUPIL, BLACK = palette("241a14 ccbd8c d9d9d9 f2f2ed 1a1412 101012")
NOISE_SIZE = 128  # a power of 2
# One row and column more than its period, so that neighbours need no modulo.
_NOISE = np.random.default_rng(20).random((NOISE_SIZE, NOISE_SIZE)).astype(np.float32)
_NOISE = np.pad(_NOISE, (0, 1), mode="wrap").reshape(-1)


def noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Smooth value noise 0..1 with features of size 1.   (...) -> (...) float32"""
    low, left = np.floor(a), np.floor(b)
    s, t = (a - low).astype(np.float32), (b - left).astype(np.float32)
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    i, j = low.astype(np.intp) & (NOISE_SIZE - 1), left.astype(np.intp) & (NOISE_SIZE - 1)
    k = i * (NOISE_SIZE + 1) + j
    n00, n01 = _NOISE[k], _NOISE[k + 1]
    n10, n11 = _NOISE[k + NOISE_SIZE + 1], _NOISE[k + NOISE_SIZE + 2]
    top, bottom = n00 + (n10 - n00) * s, n01 + (n11 - n01) * s
    return top + (bottom - top) * t


def texel_sizes(names: tuple[str, ...]) -> np.ndarray:
    """Texels around and along each of the named solids.   -> (N,2)"""
    return np.array([TEXELS.get(n, TEXELS_SMALL if n.split("_")[-1] in SMALL else TEXELS_LIMB) for n in names])


def texel_points(shape: Solids, size: np.ndarray, count: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface point of every texel.   -> solid (M,), point (M,3) mm along the solid's axes from its origin"""
    part = np.repeat(np.arange(len(count)), count)
    k = np.arange(count.sum()) - start[part]
    around, along = size[part].T
    phi = (((k % around + 0.5) / around - 0.5) * 2 * np.pi).astype(np.float32)
    one = np.float32
    r0, r1 = shape.radius[part].T.astype(one)
    length = shape.length[part].astype(one)
    z = -r0 + ((k // around + 0.5) / along).astype(one) * (length + r0 + r1)
    sin = np.where(length > 0, (r0 - r1) / np.maximum(length, one(1e-9)), one(0))
    side = (r0 - sin * z) / np.sqrt(np.maximum(1 - sin**2, 1e-9))
    low, high = np.sqrt(np.maximum(r0**2 - z**2, 0)), np.sqrt(np.maximum(r1**2 - (z - length) ** 2, 0))
    rho = np.where(z < r0 * sin, low, np.where(z > length + r1 * sin, high, side))
    return part, np.stack([rho * np.cos(phi), rho * np.sin(phi), z], -1) * shape.scale[part].astype(one)


def paint(body: Body, face: Face, outfit: Outfit, names, part: np.ndarray, place: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Colour of every texel, 0..1 display values.

    part (M,), place (M,3) mm in its segment, rest (M,3) mm on the resting body -> (M,3)
    """
    names = np.array(names)
    kind = np.array([name.split("_")[-1] for name in names])

    def on(*kinds: str) -> np.ndarray:
        return np.isin(kind, kinds)[part]

    H, n = body.height, body.lengths
    x, y, z = rest.T
    front = x > 0
    color = np.broadcast_to(face.skin.astype(np.float32), rest.shape).copy()
    color *= 1 - 0.10 * noise(rest[:, 2] / 40 + 9, rest[:, 1] / 40 + rest[:, 0] / 55)[:, None]

    def fill(mask: np.ndarray, value) -> None:
        color[mask] = value if np.ndim(value) < 2 else value[mask]

    # Bottom: hips and legs.
    waist = body.leg + 0.045 * H
    legs = on("thigh", "shank", "calf") if outfit.bottom == "trousers" else on("shorts")
    hem = z > n["ankle"] - 8
    bottom = on("glutes") | (on("pelvis", "abdomen") & (z < waist + 40)) | (legs & hem)
    fill(bottom, outfit.colors[2])
    far = np.abs(y)
    if outfit.side_stripe:
        outer = (np.abs(x + 0.004 * H) < 14) & (far > n["hip"])
        fill(bottom & on("thigh", "shank", "shorts", "calf") & outer, outfit.colors[1])
    crease = front & (np.abs(far - n["hip"]) < 3)
    fill(bottom & on("thigh", "shank", "pelvis") & crease, outfit.colors[2] * 0.78)
    pockets = (np.abs(far - 0.042 * H) < 0.024 * H) & (np.abs(z - body.leg - 0.004 * H) < 34)
    fill(bottom & on("glutes") & pockets, outfit.colors[2] * 0.72)

    # Top: trunk and sleeves.
    shirt_end = body.leg + (0.012 if outfit.top != "long" else 0.04) * H
    cuff = body.rest_origins()[6, 2] + 14  # wrists
    sleeves = on("sleeve") if outfit.top == "tee" else on("upperarm") | (on("forearm") & (z > cuff))
    collar = body.leg + n["lumbar"] + n["dorsal"]
    top = (on("chest", "pecs", "abdomen", "pelvis", "glutes") & (z > shirt_end)) | on("trap") | sleeves
    top |= on("neck") & (z < collar + 0.012 * H)
    color[top] = _pattern(outfit, x[top], y[top], z[top], collar - 0.10 * H)
    trunk = top & on("chest", "pecs", "abdomen", "pelvis")
    _front_and_back(body, outfit, fill, trunk, front, y, z, collar)
    neckline = np.hypot(y, (z - collar - 0.006 * H) / (1.0 + 0.35 * body.female)) < 0.036 * H
    fill(on("chest", "trap", "pecs", "neck") & front & neckline, face.skin * 0.97)
    if outfit.top != "tee":
        fill(on("forearm") & (z > cuff) & (z < cuff + 30), outfit.colors[1] * 0.9)
    belt = on("pelvis", "abdomen") & (np.abs(z - shirt_end + 14) < 15)
    fill(belt, LEATHER)
    fill(belt & front & (np.abs(y) < 24), BUCKLE)
    worn = np.flatnonzero(top | bottom)
    a, b, c = x[worn], y[worn], z[worn]
    folds = noise((a + outfit.shift[0]) / 34 + c / 90, (b + outfit.shift[1]) / 34 + c / 46)
    color[worn] *= (0.80 + 0.34 * folds)[:, None]

    # Shoes: soles, a light toe cap, laces on top. Socks show above them.
    shoe = on("shoe", "instep")
    fill(shoe, outfit.colors[3])
    fill(on("instep") & (z > n["ankle"] * 0.9), SOCK if outfit.bottom == "shorts" else outfit.colors[2])
    fill(on("shoe") & (z < 0.011 * H), outfit.colors[4])
    fill(on("shoe") & (x > 0.078 * H), outfit.colors[3] * 0.5 + outfit.colors[4] * 0.5)
    laces = (np.abs(far - n["hip"]) < 11) & (x > 0.02 * H) & (x < 0.065 * H) & (z > 0.03 * H)
    fill(shoe & laces, outfit.colors[4])
    if outfit.watch >= 0:
        side = "lr"[outfit.watch]
        fill((names == f"{side}_forearm")[part] & (np.abs(z - cuff - 12) < 13), BLACK)
    _head(body, face, outfit, fill, names, part, place)
    return np.clip(color, 0.02, 0.97)


def _pattern(outfit: Outfit, x: np.ndarray, y: np.ndarray, z: np.ndarray, chest: float) -> np.ndarray:
    """Cloth of the top before decorations.   (M,) mm on the resting body -> (M,3)"""
    first, second = outfit.colors[0], outfit.colors[1]
    across, up = (y + 0.8 * np.abs(x) + outfit.shift[0]) / outfit.period, (z + outfit.shift[2]) / outfit.period
    half = {
        "plain": np.zeros(len(x)),
        "hoops": (up % 1 < 0.42).astype(float),
        "stripes": (across % 1 < 0.35).astype(float),
        "checks": 0.5 * (across % 1 < 0.45) + 0.5 * (up % 1 < 0.45),
        "blots": np.clip(6 * noise(across * 1.3 + 0.3 * up, up * 1.3) - 2.6, 0, 1),
        "block": (z > chest).astype(float),
    }[outfit.pattern][:, None]
    return first * (1 - half) + second * half


def _front_and_back(body: Body, outfit: Outfit, fill, trunk, front, y, z, collar: float) -> None:
    """Decorations that a shirt has on one side only."""
    H, second, inner = body.height, outfit.colors[1], outfit.colors[5]
    ink = second if np.abs(second - outfit.colors[0]).sum() > 0.5 else 1 - outfit.colors[0]
    middle = collar - 0.095 * H
    if outfit.front == "logo":
        fill(trunk & front & (np.hypot(y, z - middle) < 0.042 * H), ink)
        fill(trunk & front & (np.hypot(y, z - middle) < 0.024 * H), outfit.colors[0] * 0.5 + 0.4)
    elif outfit.front == "number":
        fill(trunk & front & (np.abs(y) < 0.048 * H) & (np.abs(z - middle) < 0.022 * H), ink)
        fill(trunk & front & (np.abs(y) < 0.030 * H) & (np.abs(z - middle + 0.05 * H) < 0.012 * H), ink)
    elif outfit.front in ("zip", "buttons"):
        fill(trunk & front & (np.abs(y) < (7 if outfit.front == "zip" else 12)), ink * 0.8)
        fill(trunk & front & (np.abs(y) < 5) & (z % 70 < 12), inner)
    elif outfit.front == "open":
        fill(trunk & front & (np.abs(y) < 0.020 * H + 0.12 * np.maximum(z - middle, 0)), inner)
    if outfit.back == "number":
        strokes = (np.abs(np.abs(y) - 0.022 * H) < 0.014 * H) & (np.abs(z - middle + 0.02 * H) < 0.05 * H)
        fill(trunk & ~front & strokes, ink)
    elif outfit.back == "yoke":
        fill(trunk & ~front & (z > collar - 0.05 * H), second * 0.8)


def _head(body: Body, face: Face, outfit: Outfit, fill, names, part: np.ndarray, place: np.ndarray) -> None:
    """Eyes, brows, mouth, cheeks and hair, in the coordinates of the skull: forward, left and up, -1..1."""
    H = body.height

    def of(name: str) -> np.ndarray:
        return (names == name)[part]

    q = (place / H - np.float32(SKULL)) / np.float32(SKULL_HALF)
    f, side, up = q.T
    head, skull, ahead = of("head"), of("head") | of("jaw"), f > 0
    lips, dark, cloth = face.skin * [0.80, 0.52, 0.52], face.hair * 0.7, outfit.colors[1]
    cheeks = (np.abs(np.abs(side) - 0.5) < 0.16) & (np.abs(up + 0.22) < 0.13)
    fill(skull & ahead & cheeks, face.skin * [1.0, 0.90, 0.88])
    if face.beard:
        fill(skull & (f > -0.25) & (up < -0.30 - 0.25 * (np.abs(side) < 0.1)) & (up < -0.12 - 0.35 * f), face.hair)
    fill(skull & ahead & (np.abs(side) < 0.27) & (np.abs(up + 0.52) < 0.05), lips)
    eye = np.abs(np.abs(side) - 0.38)
    fill(head & ahead & ((eye / 0.19) ** 2 + ((up - 0.06) / 0.10) ** 2 < 1), EYE)
    fill(head & ahead & (np.hypot(eye, (up - 0.06) * 1.2) < 0.085), PUPIL)
    fill(head & ahead & (eye < 0.21) & (np.abs(up - 0.25 + 0.2 * eye) < 0.04), dark)
    if face.glasses:
        ring = (eye / 0.28) ** 2 + ((up - 0.05) / 0.19) ** 2
        fill(head & ahead & (ring > 0.62) & (ring < 1.1), BLACK)
        fill(head & (np.abs(up - 0.08) < 0.04) & ((np.abs(side) < 0.12) | (f < 0.55)) & (f > -0.1), BLACK)
    hair = (f < -0.22) & (up > -0.42) | (up > 0.52 + 0.35 * np.clip(f, -0.5, 1))
    hair |= (np.abs(side) > 0.75) & (f < 0.12) & (up > -0.05)
    if face.style != "bald":
        fill(head & hair, face.hair)
    crown = face.hair if face.style != "cap" else cloth
    strands = 0.75 + 0.5 * noise(place[:, 1] / 5.0 + 40, place[:, 2] / 60.0 + place[:, 0] / 20.0)
    for name, base in (("hair", crown), ("mane", face.hair), ("visor", cloth * 0.8)):
        fill(of(name), np.clip(base * strands[:, None], 0, 1) if name != "visor" else base)
