"""Who looks how: the faces that people keep, and the clothes that they change from sequence to sequence."""

from dataclasses import dataclass

import numpy as np


def palette(colors: str) -> np.ndarray:
    """Colours written as rrggbb.   -> (N,3) 0..1 display values"""
    return np.array([list(bytes.fromhex(color)) for color in colors.split()]) / 255


SKINS = palette("fad1b5 edbd99 d9a37a b27d59 80543b 5c3d2b")
HAIRS = palette("140f0d 331f12 5c381f 8c612e c7a366 8c381a 9e9e9e")
FABRICS = palette("e6e6e0 1f1f24 8c8f94 b81f24 213880 3373bf 1f6b42 739940 edc233 eb7a26 803380 e08c9e 339494 7a5233 ccb28c 4c141f")
BOTTOMS = palette("293861 4c6694 1a1a1f 59595e 9e8a66 52422e 384733")


@dataclass(frozen=True)
class Face:
    """What stays with a person from day to day."""

    skin: np.ndarray  # (3,) as the colours below: 0..1, display values
    hair: np.ndarray  # (3,)
    style: str  # short long bun tail bald cap
    beard: bool
    glasses: bool

    @staticmethod
    def draw(rng: np.random.Generator, female: float) -> "Face":
        tone = rng.uniform(0, len(SKINS) - 1)
        k = min(int(tone), len(SKINS) - 2)
        skin = SKINS[k] * (k + 1 - tone) + SKINS[k + 1] * (tone - k)
        hair = HAIRS[rng.integers(3 if tone > 3 else len(HAIRS))] * rng.uniform(0.85, 1.15)
        chances = [0.22, 0.40, 0.16, 0.16, 0.0, 0.06] if female else [0.70, 0.06, 0.0, 0.02, 0.10, 0.12]
        style = str(rng.choice(["short", "long", "bun", "tail", "bald", "cap"], p=chances))
        return Face(skin, np.clip(hair, 0.04, 0.9), style, not female and rng.random() < 0.35, rng.random() < 0.2)


@dataclass(frozen=True)
class Outfit:
    """What a person wears in one sequence."""

    top: str  # tee long jacket
    bottom: str  # trousers shorts
    colors: np.ndarray  # (6,3): top, its second colour, bottom, shoes, soles, inner shirt or belt
    pattern: str  # plain hoops stripes checks blots block
    front: str  # plain logo zip buttons number
    back: str  # plain number yoke
    period: float  # mm, of the pattern
    side_stripe: bool  # on the trousers
    watch: int  # side of a wrist watch, -1 = none
    shift: np.ndarray  # (3,) mm, where pattern and folds start
    loose: float  # how much wider than the limb the cloth is

    @staticmethod
    def draw(rng: np.random.Generator) -> "Outfit":
        first, second = rng.choice(len(FABRICS), 2, replace=False)
        fabrics = np.clip(
            FABRICS[[first, second]] * rng.uniform(0.85, 1.12, (2, 1)) + rng.normal(0, 0.03, (2, 3)),
            0.05,
            0.95,
        )
        bottom = np.clip(BOTTOMS[rng.integers(len(BOTTOMS))] * rng.uniform(0.8, 1.25), 0.05, 0.85)
        shoes = FABRICS[rng.integers(len(FABRICS))] * rng.uniform(0.7, 1.0)
        soles = np.array([0.92, 0.92, 0.90]) if rng.random() < 0.6 else np.array([0.15, 0.13, 0.12])
        inner = FABRICS[rng.integers(3)]
        top = str(rng.choice(["tee", "long", "jacket"], p=[0.5, 0.32, 0.18]))
        fronts = {
            "tee": ["plain", "logo", "number", "logo"],
            "long": ["logo", "buttons", "plain", "number"],
            "jacket": ["zip", "open", "open"],
        }
        return Outfit(
            top=top,
            bottom="shorts" if rng.random() < 0.3 else "trousers",
            colors=np.stack([*fabrics, bottom, shoes, soles, inner]),
            pattern=str(rng.choice(["plain", "hoops", "stripes", "checks", "blots", "block"], p=[0.34, 0.18, 0.1, 0.14, 0.1, 0.14])),
            front=str(rng.choice(fronts[top])),
            back=str(rng.choice(["plain", "number", "yoke"], p=[0.6, 0.2, 0.2])),
            period=float(rng.uniform(55, 120)),
            side_stripe=bool(rng.random() < 0.25),
            watch=int(rng.integers(-1, 2)),
            shift=rng.uniform(0, 5000, 3),
            loose=float(rng.uniform(1.0, 1.14)),
        )
