"""Named actions: smooth functions of time that drive a body's ends (pelvis, wrists, ankles) and its trunk.

Everything random is drawn before the first instant, so an action is a pure function of (body, rng) and can be sampled
at any frame rate. Local directions are (forward, outward, up); outward is away from the body for either side.
"""

from collections.abc import Callable

import numpy as np

from lib.synthetic.body import Body
from lib.synthetic.motion import SIDE, Act, Curve, seat_hip_height, smooth

HANG = (0.07, 0.13, -0.93)  # a hanging hand, from the shoulder, in arm lengths
BACK = (-1.0, 0.35, -0.2)  # where the elbow of a hanging arm points


def wave(rng: np.random.Generator, amplitude: float, period: tuple[float, float] = (2.0, 6.0)) -> Curve:
    """A smooth random function of time with about the given amplitude: three sines."""
    periods, phase = rng.uniform(*period, 3), rng.uniform(0, 2 * np.pi, 3)
    weights = amplitude * rng.uniform(0.3, 0.8, 3)
    return lambda t: (weights * np.sin(2 * np.pi * t[:, None] / periods + phase)).sum(-1)


def keyed(rng: np.random.Generator, keys: np.ndarray, period: float, hold: float = 0.4) -> Curve:
    """Visits keys (K,...) in turn, forever: rests on each for a share `hold` of the period, then moves on smoothly."""
    return together(rng, period, hold, keys)[0]


def together(rng: np.random.Generator, period: float, hold: float, *tracks: np.ndarray) -> list[Curve]:
    """Several tracks of keys (K,...) that are visited in step, each as by `keyed`."""
    start = rng.uniform(0, len(tracks[0]))

    def track(keys: np.ndarray) -> Curve:
        def at(t: np.ndarray) -> np.ndarray:
            phase = t / period + start
            n = np.floor(phase).astype(int)
            s = smooth((phase - n - hold) / (1 - hold)).reshape(-1, *[1] * (keys.ndim - 1))
            return keys[n % len(keys)] * (1 - s) + keys[(n + 1) % len(keys)] * s

        return at

    return [track(keys) for keys in tracks]


def cycle(rng: np.random.Generator, period: float, hold: float = 0.25) -> Curve:
    """Goes 0, 1, 0, 1, ... with rests."""
    return keyed(rng, np.array([0.0, 1.0]), period / 2, hold)


def same(t: np.ndarray, value) -> np.ndarray:
    """One direction (3,), or one for each side (2,3), at all instants, for both sides.   -> (T,2,3)"""
    return np.broadcast_to(value, (len(t), 2, 3)).copy()


def towards(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Unit vectors forward, outward, up.   azimuth outward from forward, elevation (...) rad -> (...,3)"""
    level = np.cos(elevation)
    return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], -1)


def resting_arms(rng: np.random.Generator, sway: float = 0.05) -> Callable:
    """Hanging arms, hands on the hips, or folded before the chest, with a little life in them."""
    style = rng.choice(4, p=[0.62, 0.14, 0.12, 0.12])
    hands = [HANG, (0.06, 0.42, -0.62), (0.40, -0.25, -0.40), (-0.22, -0.05, -0.72)][style]
    poles = [BACK, (-0.5, 1.0, 0.0), (-0.3, 0.7, -0.8), (-0.6, 1.0, -0.1)][style]
    moves = [wave(rng, sway) for _ in range(4)]

    def arms(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hand = same(t, hands)
        hand[..., 0] += np.stack([moves[0](t), moves[1](t)], -1)
        hand[..., 2] += 0.5 * np.abs(np.stack([moves[2](t), moves[3](t)], -1))
        return hand, same(t, poles)

    return arms


def one_arm(other: Callable, side: int, hand: Curve, pole) -> Callable:
    """Arms of which one follows `hand` (T,3), its elbow towards `pole` (3,); the other one does as `other` says."""

    def arms(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hands, poles = other(t)
        hands[:, side], poles[:, side] = hand(t), pole
        return hands, poles

    return arms


def sway(rng: np.random.Generator, amount: float = 1.0) -> dict[str, Curve]:
    """The trunk and head of somebody who stands at ease."""
    sizes = {"flex": 0.06, "side": 0.05, "twist": 0.10, "roll": 0.03, "pitch": 0.16, "yaw": 0.35, "tilt": 0.08}
    return {name: wave(rng, amount * size) for name, size in sizes.items()}


def walking(body: Body, rng: np.random.Generator) -> Act:
    stride = 0.68 * body.leg * rng.uniform(0.8, 1.2)  # mm per step
    cadence = rng.uniform(0.7, 1.0)
    radius, turn = rng.uniform(520, 800), rng.choice([-1.0, 1.0])
    speed, swing, drift = 2 * stride * cadence / radius, rng.uniform(0.22, 0.42), wave(rng, 0.02)

    def path(t: np.ndarray):
        angle = speed * t
        return radius * np.sin(angle), turn * radius * (1 - np.cos(angle)), turn * angle

    def arms(t: np.ndarray):
        s = np.stack([np.sin(2 * np.pi * cadence * t), -np.sin(2 * np.pi * cadence * t)], -1)  # opposite to the legs
        forward = 0.08 + swing * s
        hand = np.stack([forward, 0.13 + 0 * s, -0.90 + 0.10 * forward + 0.9 * forward**2], -1)
        return hand, same(t, BACK)

    trunk = sway(rng, 0.6) | {
        "twist": lambda t: -0.14 * np.sin(2 * np.pi * cadence * t),
        "roll": lambda t: 0.05 * np.cos(2 * np.pi * cadence * t),
        "lean": lambda t: 0.05 + drift(t),
    }
    drop = 0.012 * body.leg
    return Act(arms, trunk=trunk, path=path, cadence=cadence, width=0.7, toe_out=0.08, drop=lambda t: drop + 0 * t)


def turning(body: Body, rng: np.random.Generator) -> Act:
    keys = np.cumsum(rng.uniform(1.2, 2.6, 12) * rng.choice([-1, 1], 12))
    heading = keyed(rng, np.concatenate([keys, keys[::-1]]), rng.uniform(2.2, 3.2), 0.15)
    place = wave(rng, 60.0, (5, 9)), wave(rng, 60.0, (5, 9))
    return Act(
        resting_arms(rng, 0.10),
        trunk=sway(rng),
        path=lambda t: (place[0](t), place[1](t), heading(t)),
        cadence=0.9,
        clearance=60,
    )


def waving(body: Body, rng: np.random.Generator) -> Act:
    side, rate, size = rng.integers(2), rng.uniform(1.1, 1.9), rng.uniform(0.10, 0.2)
    height, both = rng.uniform(0.45, 0.8), rng.random() < 0.25
    up = cycle(rng, 6.0, 0.55)

    def hand(t: np.ndarray):
        s, w = up(t)[:, None], size * np.sin(2 * np.pi * rate * t)
        high = np.stack([0.22 + 0 * w, 0.34 + w, height + 0 * w], -1)
        return np.array(HANG) * (1 - s) + high * s + np.array([0.22, 0.2, 0]) * (s * (1 - s)) * 2

    rest = resting_arms(rng)
    other = one_arm(rest, 1 - side, hand, (-0.2, 1.0, -0.5)) if both else rest
    return Act(one_arm(other, side, hand, (-0.2, 1.0, -0.5)), trunk=sway(rng), width=rng.uniform(0.8, 1.3))


def reaching(body: Body, rng: np.random.Generator) -> Act:
    azimuth = np.radians(rng.uniform(-25, 100, (8, 2)))
    elevation = np.radians(rng.uniform(-60, 70, (8, 1)) + rng.uniform(-10, 10, (8, 2)))
    keys = towards(azimuth, elevation) * rng.uniform(0.7, 0.98, (8, 2, 1))
    lone = rng.random(8) < 0.6  # only one hand reaches
    keys[lone, rng.integers(2)] = HANG
    low = np.clip(-elevation[:, 0], 0, 1)
    hands, bow = together(rng, rng.uniform(1.5, 2.3), 0.4, keys, low)
    trunk = sway(rng) | {"flex": lambda t: 0.55 * bow(t), "lean": lambda t: 0.35 * bow(t)}
    return Act(
        lambda t: (hands(t), same(t, (-0.5, 0.8, -0.7))),
        trunk=trunk,
        drop=lambda t: 0.12 * body.leg * bow(t),
        shift=lambda t: np.stack([-60 * bow(t), 0 * t], -1),
        width=rng.uniform(0.9, 1.5),
        stagger=rng.uniform(-120, 120),
    )


def squatting(body: Body, rng: np.random.Generator) -> Act:
    down, depth = cycle(rng, rng.uniform(2.8, 4.5), 0.3), rng.uniform(0.36, 0.60)
    hands = np.array([0.85, 0.05, rng.uniform(-0.2, 0.25)]) if rng.random() < 0.6 else np.array([0.35, 0.0, -0.75])

    def arms(t: np.ndarray):
        s = down(t)[:, None, None]
        return same(t, np.array(HANG) * (1 - s) + hands * s), same(t, (-0.6, 0.7, -0.6))

    trunk = sway(rng, 0.5) | {"lean": lambda t: 0.62 * down(t), "flex": lambda t: 0.25 * down(t)}
    return Act(
        arms,
        trunk=trunk,
        drop=lambda t: depth * body.leg * down(t),
        shift=lambda t: np.stack([-0.17 * body.leg * down(t), 0 * t], -1),
        width=rng.uniform(1.3, 1.9),
        toe_out=rng.uniform(0.25, 0.5),
    )


def directions(body: Body, rng: np.random.Generator) -> Act:
    side = rng.integers(2)
    azimuth, elevation = np.radians(rng.uniform(-15, 100, 8)), np.radians(rng.uniform(-15, 40, 8))
    keys = 0.97 * towards(azimuth, elevation)
    keys[::3] = HANG
    look = np.where(np.arange(8) % 3 == 0, 0.0, SIDE[side] * azimuth * 0.7)  # the head follows the hand
    point, gaze = together(rng, rng.uniform(1.6, 2.6), 0.4, keys, look)
    trunk = sway(rng) | {"yaw": gaze, "twist": lambda t: 0.25 * gaze(t)}
    arms = one_arm(resting_arms(rng), side, point, (-0.3, 0.5, -0.8))
    return Act(arms, trunk=trunk, stagger=rng.uniform(-80, 80))


def greeting(body: Body, rng: np.random.Generator) -> Act:
    side, depth = rng.integers(2), rng.uniform(0.3, 0.8)
    offers = np.array([HANG, (0.75, -0.1, -0.25), HANG, (0.55, 0.65, 0.15)])
    hand, bow = keyed(rng, offers, 1.7, 0.45), cycle(rng, 5.0, 0.3)
    other = resting_arms(rng)
    arms = one_arm(other, side, hand, (-0.5, 0.6, -0.7))
    if rng.random() < 0.4:
        arms = one_arm(arms, 1 - side, hand, (-0.5, 0.6, -0.7))
    trunk = sway(rng) | {
        "flex": lambda t: 0.6 * depth * bow(t),
        "lean": lambda t: 0.4 * depth * bow(t),
        "pitch": lambda t: 0.3 * bow(t),
    }
    return Act(arms, trunk=trunk, shift=lambda t: np.stack([-70 * bow(t), 0 * t], -1), stagger=rng.uniform(0, 150))


def phoning(body: Body, rng: np.random.Generator) -> Act:
    side, talk = rng.integers(2), wave(rng, 0.12)
    ear = np.array([0.012, 0.082, 0.015]) * body.height
    wander = wave(rng, 0.5, (6, 10))
    angle = wave(rng, 0.9, (8, 14))

    def at_head(t: np.ndarray):
        weight = np.zeros((len(t), 2))
        weight[:, side] = 1
        return weight, np.broadcast_to(ear, (len(t), 2, 3))

    def gesture(t: np.ndarray):
        return np.stack([0.35 + talk(t), 0.18 + 0.5 * talk(t), -0.55 + 0.6 * talk(t)], -1)

    other = resting_arms(rng)
    arms = one_arm(other, side, lambda t: np.broadcast_to([0.2, 0.1, 0.1], (len(t), 3)), (0.25, 0.8, -0.9))
    if rng.random() < 0.5:
        arms = one_arm(arms, 1 - side, gesture, BACK)
    trunk = sway(rng) | {"tilt": lambda t: -SIDE[side] * 0.12 + 0 * t}
    path = (lambda t: (300 * wander(t), 300 * wander(t + 3.3), angle(t))) if rng.random() < 0.6 else None
    return Act(arms, at_head=at_head, trunk=trunk, path=path, cadence=0.8 if path else 0.0, clearance=50)


def gesturing(body: Body, rng: np.random.Generator) -> Act:
    keys = rng.uniform((0.25, -0.1, -0.6), (0.7, 0.5, 0.1), (10, 2, 3))
    hands = keyed(rng, keys, rng.uniform(0.7, 1.2), 0.2)
    return Act(
        lambda t: (hands(t), same(t, (-0.7, 0.6, -0.8))),
        trunk=sway(rng, 1.3),
        stagger=rng.uniform(-60, 160),
    )


def stretching(body: Body, rng: np.random.Generator) -> Act:
    left = [HANG, (0.1, 0.1, 0.92), (0.1, 0.9, 0.25), (0.15, -0.15, 0.85), (0.85, -0.1, 0.1)]
    right = [*left[:3], (0.0, 0.35, -0.85), left[4]]
    keys = np.stack([left, right] if rng.random() < 0.5 else [right, left], 1)
    keys = keys[rng.permutation(len(keys))] + [0.12, 0.10, 0.0]
    hands, tilt = together(rng, 2.2, 0.35, keys, rng.uniform(-0.45, 0.45, len(keys)))
    trunk = sway(rng, 0.6) | {"side": tilt}
    return Act(lambda t: (hands(t), same(t, (-0.35, 1.0, -0.25))), trunk=trunk, width=rng.uniform(1.0, 1.8))


def kicking(body: Body, rng: np.random.Generator) -> Act:
    side, up = rng.integers(2), cycle(rng, rng.uniform(1.8, 3.0), 0.15)
    height, forward = rng.uniform(0.15, 0.5) * body.leg, rng.uniform(-0.2, 0.55) * body.leg

    def foot(t: np.ndarray):
        offset, pitch = np.zeros((len(t), 2, 3)), np.zeros((len(t), 2))
        offset[:, side] = up(t)[:, None] * [forward, 0.0, height]
        pitch[:, side] = 0.35 * up(t)
        return offset, pitch

    lift = rng.uniform(0.1, 0.5)
    hands = np.array([0.15, 0.75 * lift + 0.15, -0.9 + 0.7 * lift])

    def arms(t: np.ndarray):
        s = up(t)[:, None, None]
        return same(t, np.array(HANG) * (1 - s) + hands * s), same(t, (-0.8, 0.6, -0.3))

    trunk = sway(rng, 0.7) | {"lean": lambda t: -0.12 * up(t), "roll": lambda t: SIDE[side] * 0.06 * up(t)}
    return Act(arms, trunk=trunk, foot=foot, shift=lambda t: np.stack([0 * t, -SIDE[side] * 75 * up(t)], -1), width=0.8)


def seated(body: Body, rng: np.random.Generator, table: bool = False) -> Act:
    """A sitting person; hands on the thighs, talking hands, or legs stretched out."""
    seat = rng.uniform(0.82, 0.98) * (body.lengths["shank"] + body.lengths["ankle"])
    reach = rng.uniform(0.80, 1.15) * body.lengths["thigh"]
    keys = rng.uniform((0.42, -0.1, -0.75), (0.62, 0.2, -0.55), (8, 2, 3))
    keys[rng.random(8) < 0.3] += [0.0, 0.1, 0.4]
    hands = keyed(rng, keys, 1.9)
    slump = rng.uniform(-0.15, 0.3)
    trunk = sway(rng) | {"lean": lambda t: slump + 0 * t, "flex": wave(rng, 0.15)}
    swing, out = [wave(rng, 60.0), wave(rng, 60.0)], rng.uniform(-0.2, 0.8)

    def foot(t: np.ndarray):
        forward = np.stack([s(t) for s in swing], -1)
        return np.stack([forward, 0 * forward, 0 * forward], -1), np.zeros((len(t), 2))

    return Act(
        lambda t: (hands(t), same(t, (-0.6, 0.8, -0.5))),
        trunk=trunk,
        shift=lambda t: np.stack([-reach + 0 * t, 0 * t], -1),
        width=rng.uniform(0.8, 1.6),
        toe_out=out * 0.4,
        foot=foot,
        seat=seat,
        seat_at=-reach,
        back=not table and rng.random() < 0.4,
        table=table,
    )


def eating(body: Body, rng: np.random.Generator) -> Act:
    act = seated(body, rng, table=True)
    side, bite = rng.integers(2), cycle(rng, rng.uniform(2.2, 3.4), 0.2)
    mouth = np.array([0.085, 0.015, -0.02]) * body.height
    plate = np.array([0.68, -0.05, -0.42])
    other = np.array([0.66, rng.uniform(-0.1, 0.15), -0.45])

    def at_head(t: np.ndarray):
        weight = np.zeros((len(t), 2))
        weight[:, side] = bite(t)
        return weight, np.broadcast_to(mouth, (len(t), 2, 3))

    def arms(t: np.ndarray):
        hands = same(t, other)
        hands[:, side] = plate
        return hands, same(t, (-0.2, 1.0, -0.6))

    act.arms, act.at_head = arms, at_head
    act.trunk |= {"pitch": lambda t: 0.25 - 0.15 * bite(t)}
    return act


def sitting_down(body: Body, rng: np.random.Generator) -> Act:
    act, down = seated(body, rng), cycle(rng, rng.uniform(4.0, 6.0), 0.35)
    sit, rest, reach = act.arms, resting_arms(rng), -act.seat_at
    seat_drop = 0.985 * body.leg - seat_hip_height(body, act.seat)

    def arms(t: np.ndarray):
        s = down(t)[:, None, None]
        (h0, p0), (h1, p1) = rest(t), sit(t)
        return h0 * (1 - s) + h1 * s, p0 * (1 - s) + p1 * s

    calm = sway(rng)
    act.trunk = calm | {
        "lean": lambda t: 0.75 * np.sin(np.pi * down(t)),
        "flex": lambda t: 0.25 * np.sin(np.pi * down(t)),
    }
    act.arms, act.foot = arms, None
    act.shift = lambda t: np.stack([-reach * down(t), 0 * t], -1)
    act.drop = lambda t: seat_drop * down(t)
    return act


ACTIONS: dict[str, Callable[[Body, np.random.Generator], Act]] = {
    "Directions": directions,
    "Eating": eating,
    "Gesturing": gesturing,
    "Greeting": greeting,
    "Kicking": kicking,
    "Phoning": phoning,
    "Reaching": reaching,
    "Sitting": seated,
    "SittingDown": sitting_down,
    "Squatting": squatting,
    "Stretching": stretching,
    "Turning": turning,
    "Walking": walking,
    "Waving": waving,
}
SEATED = ("Eating", "Sitting", "SittingDown")
