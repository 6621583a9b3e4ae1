"""What people look like: the solids of a dressed body, with their textures."""

from dataclasses import dataclass

import numpy as np

from lib.synthetic.body import Body, Solids, solids
from lib.synthetic.texture import SKULL, SKULL_HALF, paint, texel_points, texel_sizes
from lib.synthetic.wardrobe import Face, Outfit


@dataclass(frozen=True)
class Person:
    """A dressed body, ready to be posed and rendered."""

    body: Body
    solids: Solids
    names: tuple[str, ...]  # (N,) of the solids
    atlas: np.ndarray  # (M,3) float32, linear reflectance of all texels
    tex_start: np.ndarray  # (N,) first texel of each solid
    tex_size: np.ndarray  # (N,2) texels around, along


def shapes(body: Body, face: Face, outfit: Outfit) -> dict[str, tuple]:
    """The solids of a dressed person, as lib.synthetic.body.solids takes them. All sizes are shares of the stature."""
    H, g, f, n = body.height, body.girth, body.female, {k: v / body.height for k, v in body.lengths.items()}
    rows: dict[str, tuple] = {}

    def cone(name: str, segment: str, p0, p1, r0: float, r1: float, scale=(1.0, 1.0, 1.0)) -> None:
        rows[name] = segment, np.multiply(p0, H), np.multiply(p1, H), r0 * H, r1 * H, scale

    def ball(name: str, segment: str, center, half_axes) -> None:
        rows[name] = segment, np.multiply(center, H), np.multiply(center, H), 1.0, 1.0, np.multiply(half_axes, H)

    d, belly = n["dorsal"], 0.02 * (g - 1)
    cone("pelvis", "pelvis", (-0.004, 0, -0.020), (0, 0, 0.055), (0.087 + 0.005 * f) * g, 0.080 * g, (0.70, 1, 0.8))
    ball("glutes", "pelvis", (-0.034, 0, -0.024), (0.050 * g, 0.080 * g, 0.060))
    trunk = 0.080 * g, (0.078 - 0.006 * f) * g
    cone("abdomen", "abdomen", (belly, 0, 0.045), (belly, 0, 0.128), *trunk, (0.70, 1, 0.7))
    trunk = (0.078 - 0.004 * f) * g, (0.096 - 0.009 * f) * g
    cone("chest", "chest", (0, 0, 0.015), (-0.006, 0, 0.66 * d), *trunk, (0.68, 1, 0.6))
    ball("pecs", "chest", (0.026 + 0.012 * f, 0, (0.62 - 0.10 * f) * d), ((0.044 + 0.004 * f) * g, 0.074 * g, 0.048))
    cone("neck", "chest", (-0.006, 0, d - 0.02), (0.006, 0, d + 0.052), 0.036 - 0.005 * f, 0.033 - 0.004 * f)

    ball("head", "head", SKULL, SKULL_HALF)
    ball("jaw", "head", (0.026, 0, 0.037), (0.037, 0.034, 0.030))
    ball("nose", "head", (0.066, 0, 0.066), (0.013, 0.009, 0.015))
    if face.style != "bald":
        ball("hair", "head", (-0.001, 0, 0.096), (0.058, 0.050, 0.063))
    if face.style == "long":
        cone("mane", "head", (-0.026, 0, 0.085), (-0.036, 0, -0.025), 0.048, 0.036, (0.65, 1, 1))
    elif face.style == "bun":
        ball("mane", "head", (-0.056, 0, 0.128), (0.026, 0.026, 0.026))
    elif face.style == "tail":
        cone("mane", "head", (-0.060, 0, 0.105), (-0.075, 0, -0.01), 0.019, 0.013)
    elif face.style == "cap":
        ball("visor", "head", (0.070, 0, 0.116), (0.042, 0.040, 0.006))

    arm, forearm, leg, shank, ankle = (n[k] for k in ("upperarm", "forearm", "thigh", "shank", "ankle"))
    limb = 0.5 + 0.5 * g  # limbs follow the girth by half
    sleeve = limb * (outfit.loose if outfit.top != "tee" else 1.0)
    cloth = outfit.loose if outfit.bottom == "trousers" else 1.0
    trouser, hip = limb * cloth, limb * g**0.5
    for s, y in (("l", 1.0), ("r", -1.0)):
        shoulder, toe = (-0.004, y * n["shoulder"] * 0.95, d - 0.014), (0.695 * n["foot"], 0, -ankle + 0.0205)
        ball(f"{s}_ear", "head", (0, 0.045 * y, 0.070), (0.012, 0.007, 0.018))
        cone(f"{s}_trap", "chest", (-0.008, y * 0.022, d + 0.010), shoulder, 0.031 * limb, 0.031 * limb)
        cone(f"{s}_upperarm", f"{s}_upperarm", (0, 0, 0), (0, 0, -arm), 0.0335 * sleeve, 0.0245 * sleeve)
        cone(f"{s}_forearm", f"{s}_forearm", (0, 0, 0), (0, 0, -forearm), 0.0255 * sleeve, 0.0165 * sleeve)
        cone(f"{s}_hand", f"{s}_hand", (0.002, 0, -0.014), (0.004, 0, -0.050), 0.0175, 0.0195, (1, 0.55, 1))
        cone(f"{s}_fingers", f"{s}_hand", (0.004, 0, -0.058), (0.008, 0, -0.092), 0.0165, 0.0105, (1, 0.55, 1))
        cone(f"{s}_thumb", f"{s}_hand", (0.012, 0, -0.022), (0.030, 0, -0.048), 0.0095, 0.0080)
        cone(f"{s}_thigh", f"{s}_thigh", (0, 0, -0.012), (0, 0, -leg), 0.0515 * hip * cloth, 0.0335 * trouser)
        cone(f"{s}_shank", f"{s}_shank", (0, 0, 0), (0, 0, -shank), 0.0325 * trouser, 0.0215 * trouser * cloth)
        ball(f"{s}_calf", f"{s}_shank", (-0.012, 0, -0.075), (0.0285 * trouser, 0.0285 * trouser, 0.070))
        cone(f"{s}_shoe", f"{s}_foot", (-0.020, 0, -ankle + 0.0225), toe, 0.025, 0.0235, (0.88, 1, 1))
        cone(f"{s}_instep", f"{s}_foot", (-0.004, 0, 0.002), (0.032, 0, -ankle + 0.026), 0.0245 * limb, 0.0235)
        if outfit.top == "tee":
            wide = 0.0365 * limb, 0.0345 * limb * outfit.loose
            cone(f"{s}_sleeve", f"{s}_upperarm", (0, 0, 0.004), (0, 0, -0.52 * arm), *wide)
        if outfit.bottom == "shorts":
            wide = 0.0545 * hip, 0.0465 * limb * outfit.loose
            cone(f"{s}_shorts", f"{s}_thigh", (0, 0, -0.016), (0, 0, -0.68 * leg), *wide)
    return rows


def dress(body: Body, face: Face, outfit: Outfit, painted: bool = True) -> Person:
    """A dressed person; one that is not painted has no textures, serves geometry only and is ready much sooner."""
    parts = shapes(body, face, outfit)
    shape, names = solids(parts), tuple(parts)
    size = texel_sizes(names)
    count = size.prod(1)
    start = np.cumsum(count) - count
    if not painted:
        return Person(body, shape, names, np.zeros((0, 3), np.float32), start, size)
    part, local = texel_points(shape, size, count, start)
    axes, origin, rest = (v.astype(np.float32) for v in (shape.axes, shape.origin, body.rest_origins()))
    place = np.einsum("nij,nj->ni", axes[part], local) + origin[part]
    color = paint(body, face, outfit, names, part, place, place + rest[shape.segment[part]])
    return Person(body, shape, names, np.square(color).astype(np.float32), start, size)
