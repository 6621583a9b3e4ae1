"""From an action to what a body is asked to do: path and steps over the floor, trunk, head, hands.

Local directions are (forward, outward, up); outward is away from the body for either side. Sides are ordered left,
right.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lib.synthetic.body import Body, Stance, rotation

SIDE = np.array([1.0, -1.0])  # y of left, right
TRUNK_LIMITS = {"flex": (-0.45, 1.0), "side": (-0.5, 0.5), "twist": (-0.75, 0.75)}  # rad, pelvis to chest
HEAD_LIMITS = {"pitch": (-0.8, 0.75), "yaw": (-1.2, 1.2), "tilt": (-0.45, 0.45)}  # rad, chest to head
DUTY = 0.62  # share of a walking cycle that a foot stands on the floor
Curve = Callable[[np.ndarray], np.ndarray]


class Seat(NamedTuple):
    """Furniture that a motion needs: where the stool stands, and whether it has a back or a table in front of it."""

    center: tuple[float, float]  # mm
    heading: float  # rad
    height: float  # mm
    back: bool
    table: bool


@dataclass
class Act:
    """One drawn action: functions of time t (T,) in seconds, at the origin, heading +x; None = standing still."""

    arms: Callable  # -> hands (T,2,3) from the shoulders in arm lengths, elbow poles (T,2,3)
    at_head: Callable | None = None  # -> weights (T,2), hands (T,2,3) mm from the pivot of the head, in its frame
    # lean and roll of the pelvis; flex, side, twist from pelvis to chest; pitch, yaw, tilt of the head: rad
    trunk: dict[str, Curve] = field(default_factory=dict)
    drop: Curve | None = None  # mm, pelvis below upright standing
    shift: Curve | None = None  # -> (T,2) mm, pelvis forward and left of the middle of the feet
    path: Callable | None = None  # -> x, y mm, heading rad
    cadence: float = 0.0  # stride cycles per second; 0 = planted feet
    clearance: float = 90.0  # mm, height of the swinging ankle
    width: float = 0.95  # distance of the feet in hip distances
    stagger: float = 0.0  # mm, left foot before the right one
    toe_out: float = 0.16  # rad
    foot: Callable | None = None  # -> (T,2,3) mm added to the ankles, (T,2) rad of foot pitch
    seat: float = 0.0  # mm, height of a stool; 0 = none
    seat_at: float = 0.0  # mm, stool before (+) or behind (-) the feet
    back: bool = False
    table: bool = False


def smooth(x: np.ndarray) -> np.ndarray:
    """Smoothstep of x clipped to 0..1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def seat_hip_height(body: Body, seat: float) -> float:
    """Height of the hip joints of somebody who sits on a stool of height `seat`, mm."""
    return seat + 0.052 * body.height * body.girth


@dataclass(frozen=True)
class Motion:
    """An action placed in the world."""

    body: Body
    act: Act
    place: tuple[float, float]  # mm, where the path starts or the feet stand
    heading: float  # rad
    start: float  # s, added to every instant

    @staticmethod
    def draw(act: Act, body: Body, rng: np.random.Generator, place: tuple[float, float] = (0.0, 0.0)) -> "Motion":
        """The action around `place` (x, y mm), at a random heading and moment."""
        motion = Motion(body, act, (0.0, 0.0), float(rng.uniform(-np.pi, np.pi)), float(rng.uniform(0, 30)))
        # The middle of what the person does in 12 s comes to lie on the place.
        middle = motion.at(np.arange(0.0, 12.0, 0.6)).pelvis[:, :2].mean(0)
        return Motion(body, act, (place[0] - middle[0], place[1] - middle[1]), motion.heading, motion.start)

    @property
    def seat(self) -> Seat | None:
        """The stool of a sitting action, else None."""
        if not self.act.seat:
            return None
        x = self.place[0] + self.act.seat_at * np.cos(self.heading)
        y = self.place[1] + self.act.seat_at * np.sin(self.heading)
        return Seat((float(x), float(y)), self.heading, self.act.seat, self.act.back, self.act.table)

    def path(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the person stands and faces: x, y mm and heading rad.   t (...) s -> (...) each"""
        flat = np.ravel(t)
        x, y, turn = self.act.path(flat) if self.act.path else (0 * flat, 0 * flat, 0 * flat)
        c, s = np.cos(self.heading), np.sin(self.heading)
        world = self.place[0] + c * x - s * y, self.place[1] + s * x + c * y, self.heading + turn
        return tuple(np.reshape(v, np.shape(t)) for v in world)

    def feet(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ankles (T,2,3) mm, yaw and pitch (T,2) rad of feet that stand still or step from hold to hold."""
        act, n = self.act, self.body.lengths
        if act.cadence:
            phase = act.cadence * t[:, None] + np.array([0.0, 0.5])
            hold = np.floor(phase)
            s = np.clip((phase - hold - DUTY) / (1 - DUTY), 0, 1)
            middle = np.stack([hold, hold + 1], -1) + DUTY / 2 - np.array([[0.0], [0.5]])  # (T,2,2) of the stance
            when = middle / act.cadence
        else:
            s, when = np.zeros((len(t), 2)), np.zeros((len(t), 2, 2))
        x, y, yaw = self.path(when)
        side, forward = (SIDE * act.width * n["hip"])[:, None], (SIDE * act.stagger / 2)[:, None]
        x, y = x + forward * np.cos(yaw) - side * np.sin(yaw), y + forward * np.sin(yaw) + side * np.cos(yaw)
        dx, dy, turn = (v[..., 1] - v[..., 0] for v in (x, y, yaw))
        far = np.clip(np.hypot(dx, dy) / 250 + 0.3 * np.abs(turn), 0, 1)  # short steps are low
        pitch = 0.5 * far * np.sin(2 * np.pi * s)  # toes down after lift-off, up before landing
        lift = far * act.clearance * np.sin(np.pi * s) + 0.75 * n["foot"] * np.maximum(np.sin(pitch), 0)
        w = smooth(s)
        ankle = np.stack([x[..., 0] + w * dx, y[..., 0] + w * dy, n["ankle"] + lift], -1)
        yaw = yaw[..., 0] + w * turn
        if act.foot:
            offset, tip = act.foot(t)
            ankle = ankle + np.einsum("tsij,tsj->tsi", rotation("z", yaw), offset)
            pitch = pitch + tip
        return ankle, yaw + SIDE * act.toe_out, pitch

    def at(self, t: np.ndarray) -> Stance:
        """What the body is asked to do at instants t (T,) in seconds."""
        act, body, n = self.act, self.body, self.body.lengths
        t = np.asarray(t, np.float64) + self.start
        x, y, heading = self.path(t)
        ankle, yaw, pitch = self.feet(t)
        zero = np.zeros_like(t)
        names = ("lean", "roll", "flex", "side", "twist", "pitch", "yaw", "tilt")
        trunk = {name: act.trunk[name](t) if name in act.trunk else zero for name in names}
        for name, (low, high) in TRUNK_LIMITS.items():
            trunk[name] = np.clip(trunk[name], low, high)

        shift = act.shift(t) if act.shift else np.zeros((len(t), 2))
        c, s = np.cos(heading), np.sin(heading)
        x, y = x + c * shift[:, 0] - s * shift[:, 1], y + s * shift[:, 0] + c * shift[:, 1]
        if act.seat and not act.drop:
            z = zero + seat_hip_height(body, act.seat)
        else:
            z = 0.985 * body.leg - (act.drop(t) if act.drop else zero)
        pelvis_R = rotation("z", heading) @ rotation("y", trunk["lean"]) @ rotation("x", trunk["roll"])
        # The pelvis sinks until both ankles are within reach of the hips.
        hip = np.einsum("tij,sj->tsi", pelvis_R, n["hip"] * np.array([[0, 1, 0], [0, -1, 0]]))
        hip = hip + np.stack([x, y, zero], -1)[:, None]
        flat = np.linalg.norm(ankle[..., :2] - hip[..., :2], axis=-1)
        reach = 0.995 * (n["thigh"] + n["shank"])
        highest = ankle[..., 2] + np.sqrt(np.maximum(reach**2 - flat**2, 0)) - hip[..., 2]
        pelvis = np.stack([x, y, np.minimum(z, highest.min(-1))], -1)

        half = rotation("z", trunk["twist"] / 2) @ rotation("y", trunk["flex"] / 2) @ rotation("x", trunk["side"] / 2)
        abdomen_R = pelvis_R @ half
        chest_R = abdomen_R @ half
        # People look ahead: the head takes back most of the trunk's forward lean.
        look = {
            "pitch": trunk["pitch"] - 0.65 * (trunk["lean"] + trunk["flex"]),
            "yaw": trunk["yaw"],
            "tilt": trunk["tilt"] - 0.5 * trunk["side"],
        }
        look = {name: np.clip(value, *HEAD_LIMITS[name]) for name, value in look.items()}
        head_R = chest_R @ rotation("z", look["yaw"]) @ rotation("y", look["pitch"]) @ rotation("x", look["tilt"])

        def outward(local: np.ndarray) -> np.ndarray:  # (T,2,3) forward, outward, up -> x, y, z of the frame
            return local * np.stack([np.ones(2), SIDE, np.ones(2)], -1)

        def world(R: np.ndarray, local: np.ndarray) -> np.ndarray:
            return np.einsum("tij,tsj->tsi", R, local)

        hands, poles = act.arms(t)
        thorax = pelvis + abdomen_R[..., 2] * n["lumbar"] + chest_R[..., 2] * n["dorsal"]
        wrist = thorax[:, None] + world(chest_R, outward(hands) * body.arm + body.shoulders())
        if act.at_head:
            weight, local = act.at_head(t)
            pivot = thorax + chest_R[..., 2] * n["neck"]
            # A hand at the head leaves the wrist a hand's length short of it, below.
            short = outward(np.full((len(t), 2, 3), [0.012, 0.02, -0.045]) * body.height)
            near = pivot[:, None] + world(head_R, outward(local)) + world(chest_R, short)
            wrist = wrist * (1 - weight[..., None]) + near * weight[..., None]
        knees = outward(np.broadcast_to([1.0, 0.1 + 0.8 * act.toe_out, 0.25], (len(t), 2, 3)))
        foot_R = rotation("z", yaw) @ rotation("y", pitch)
        return Stance(
            pelvis=pelvis,
            pelvis_R=pelvis_R,
            abdomen_R=abdomen_R,
            chest_R=chest_R,
            head_R=head_R,
            wrist=wrist,
            elbow_pole=world(chest_R, outward(poles)),
            ankle=ankle,
            knee_pole=world(rotation("z", heading), knees),
            foot_R=foot_R,
            hand_bend=np.full((len(t), 2), 0.15),
        )
