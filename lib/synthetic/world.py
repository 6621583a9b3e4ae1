"""The embedded world: who does what where, exact annotations, images on demand. A pure function of its arguments.

Held-out subjects differ in body, face and clothes from those of `train`; clothes, rooms and furniture change with
every sequence. The split `pretrain` stands in for a large collection of photographs: many people, each before a
camera and in a room of its own, with 2D labels only.
"""

import zlib
from collections import OrderedDict
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.registry import unknown
from lib.synthetic import body as bodies
from lib.synthetic import looks, room
from lib.synthetic import rig as rigs
from lib.synthetic.actions import ACTIONS, SEATED
from lib.synthetic.body import Body
from lib.synthetic.motion import Motion
from lib.synthetic.render import NEAR, Picture, Scene, View, assemble, at, camera_rays, first_hits, noise_table, picture
from lib.synthetic.wardrobe import Face, Outfit

VERSION = 1  # of what a seed means: raise it with every change that alters images or annotations
SUBJECTS = {"train": ("S1", "S5", "S6", "S7", "S8"), "valid": ("S9", "S11"), "pretrain": ()}
PRETRAIN_LENGTH = 4  # instants of a `pretrain` sequence, all before one camera
PAIRS = 1_000_000  # rays times solids that are intersected at once for joint visibility: some 100 MB
MAX_LENGTH = 25  # instants of another sequence, unless asked for longer ones
BOX_MM = 2000.0  # side of the crop box around the pelvis, as in Human3.6M: DATASET.DEPTH_RANGE, so that px and depth share a scale
BOX_2D = 1.18  # side of the box of 2D-only rows, in statures: MPII gives a person's scale as the height of the body, not of the pose
# How deep a joint lies below the skin at most, in statures: a surface further in front hides it.
JOINT_DEPTH = {
    **{"pelvis": 0.100, "hip": 0.095, "knee": 0.046, "ankle": 0.042, "spine": 0.100, "thorax": 0.110},
    **{"nose": 0.050, "head": 0.060, "shoulder": 0.058, "elbow": 0.037, "wrist": 0.032},
}
TRUNK = ("pelvis", "hip", "spine", "thorax")  # joints whose depth grows with the girth


class Plan(NamedTuple):
    """One sequence: who, what, how long."""

    subject: str
    action: str
    subaction: int
    length: int  # instants


class Sequence(NamedTuple):
    """One sequence, posed at all of its instants."""

    people: list[looks.Person]
    scene: Scene  # T instants
    joints: np.ndarray  # (T,M,17,3) mm world
    depth: np.ndarray  # (M,17) mm, JOINT_DEPTH of each person
    room: room.Room
    boxes: room.Boxes
    views: dict[int, View]  # prepared so far


class World:
    """People in rooms before calibrated cameras.

    Args:
        seed: everything is a function of it and of the arguments below.
        split: "train" or "valid" (named subjects, 3D and 2D labels, all cameras of the rig), or "pretrain" (2D
            labels, one camera).
        frames: instants in all; each is seen by every camera of the rig.
        people: persons in every scene, or the fewest and the most: then each sequence has a number of its own.
        size: width, height of the images, px.
        rig: see lib.synthetic.rig.rig; `pretrain` uses random cameras instead.
        distortion: lenses, else pinholes.
        zoom: focal lengths of the rig, times this.
        skeleton: joint order of the annotations, any name of lib.skeleton; the bodies themselves have h36m17.
        fps: instants per second; the slow default makes neighbouring images differ.
        length: instants per sequence; 0 = chosen so that subjects and actions are covered.
        actions: names in lib.synthetic.actions.ACTIONS; None = all.
        objects: whether boxes and pillars stand about that may hide people.
        strangers: every sequence has people of its own, and the names of subjects stand for their cameras alone; else the named
            subjects come back, and in scenes of several people so do the others.

    Raises:
        ConfigError: an unknown split, rig, action or skeleton.
        DataError: a number that is not positive, or a negative length.
    """

    def __init__(
        self,
        seed: int = 0,
        split: str = "train",
        frames: int = 1000,
        people: int | tuple[int, int] = 1,
        size: tuple[int, int] = (256, 256),
        rig: str = "h36m",
        distortion: bool = True,
        skeleton: str = bodies.SKELETON,
        fps: float = 2.5,
        length: int = 0,
        actions: tuple[str, ...] | None = None,
        objects: bool = True,
        zoom: float = 1.0,
        strangers: bool = False,
    ):
        if split not in SUBJECTS:
            raise unknown(split, SUBJECTS, "split of the synthetic world")
        fewest, most = (people, people) if isinstance(people, int | np.integer) else people
        numbers = {"frames": frames, "people": fewest, "width": size[0], "height": size[1], "fps": fps, "zoom": zoom}
        for name, value in numbers.items():
            if value <= 0:
                raise DataError(f"synthetic world: {name} is {value}, expected a positive number")
        if length < 0:
            raise DataError(f"synthetic world: length is {length}, expected a number of instants, or 0 to have it chosen")
        if most < fewest:
            raise DataError(f"synthetic world: people from {fewest} to {most}, expected the fewest first")
        skeletons.get(skeleton)  # unknown names are answered now, not after an hour
        rigs.rig(rig)
        for name in actions or ():
            if name not in ACTIONS:
                raise unknown(name, ACTIONS, "action of the synthetic world")
        self.arguments = {
            "seed": int(seed),
            "split": split,
            "frames": int(frames),
            "people": int(most) if fewest == most else (int(fewest), int(most)),
            "size": (int(size[0]), int(size[1])),
            "rig": rig,
            "distortion": bool(distortion),
            "skeleton": skeleton,
            "fps": float(fps),
            "length": int(length),
            "actions": tuple(actions or ACTIONS),
            "objects": bool(objects),
            "zoom": float(zoom),
            "strangers": bool(strangers),
        }
        self.__dict__.update(self.arguments)
        self._cache: OrderedDict[int, Sequence] = OrderedDict()
        self._rays: dict[int, np.ndarray] = {}
        self._noise: dict[int, np.ndarray] = {}

    def __reduce__(self):
        return partial(World, **self.arguments), ()

    def __len__(self) -> int:
        """Number of images."""
        return self.frames * self.num_views

    @cached_property
    def plans(self) -> list[Plan]:
        """All sequences."""
        return self._plans()

    @cached_property
    def subjects(self) -> list[str]:
        """The named subjects, in the order of their cameras."""
        return list(dict.fromkeys(p.subject for p in self.plans))

    @cached_property
    def first(self) -> np.ndarray:
        """First instant of every sequence, and the number of all."""
        return np.append(0, np.cumsum([p.length for p in self.plans]))

    @cached_property
    def crowd(self) -> np.ndarray:
        """Persons of every sequence."""
        fewest, most = (self.people, self.people) if isinstance(self.people, int) else self.people
        numbers = range(len(self.plans))
        return np.array([self._rng("people", self.split, s).integers(fewest, most + 1) if most > fewest else most for s in numbers])

    @cached_property
    def first_pose(self) -> np.ndarray:
        """First row of every sequence in the table of poses, and the number of all."""
        return np.append(0, np.cumsum([p.length * people for p, people in zip(self.plans, self.crowd, strict=True)]))

    @cached_property
    def cameras(self) -> Cameras:
        """All cameras: one rig per subject, moved a little; `pretrain`: one camera per sequence."""
        if self.split == "pretrain":
            chances = [self._rng("camera", s) for s in range(len(self.plans))]
            return Cameras.cat([rigs.random_camera(rng, self.size, self.distortion) for rng in chances])
        chances = [self._rng("rig", name) for name in self.subjects]
        return Cameras.cat([rigs.rig(self.rig, self.size, self.distortion, rng, self.zoom) for rng in chances])

    @cached_property
    def num_views(self) -> int:
        """Cameras that see each instant."""
        return 1 if self.split == "pretrain" else len(self.cameras) // len(self.subjects)

    def annotations(self) -> Annotations:
        """The exact truth of all images; rows are ordered by sequence, frame, view and person."""
        parts = [self._rows(s) for s in range(len(self.plans))]
        columns = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        plans = self.plans
        ann = Annotations(
            skeleton=bodies.SKELETON,
            cameras=self.cameras,
            images=np.array([self._image_name(i) for i in range(len(self))], dtype=bytes),
            subjects=np.array([p.subject for p in plans], dtype=bytes),
            actions=np.array([p.action for p in plans], dtype=bytes),
            subactions=np.array([str(p.subaction) for p in plans], dtype=bytes),
            fps=self.fps,
            **columns,
        )
        return ann.to_skeleton(self.skeleton)

    def image(self, i: int) -> np.ndarray:
        """Image `i`, a row of the annotations' `images`.   -> (H,W,3) uint8 RGB"""
        return self.render(i).image

    def render(self, i: int) -> Picture:
        """Image `i` with depth and person ids."""
        s, frame, v = self._where(i)
        sequence = self._sequence(s, painted=True)
        if v not in sequence.views:
            row = self._camera_row(s, v)
            if row not in self._rays:
                if self.split == "pretrain":
                    self._rays.clear()  # each camera is used for one sequence only
                self._rays[row] = camera_rays(self.cameras[row])
            look = self._rng("look", row if self.split == "pretrain" else self.plans[s].subject, v)
            sequence.views[v] = room.view(sequence.room, sequence.boxes, self.cameras[row], self._rays[row], look)
        view = sequence.views[v]
        count = 2 * self.size[0] * self.size[1] * 3
        if view.noise not in self._noise:
            self._noise[view.noise] = noise_table(count + 8191, view.noise, self._rng("noise", view.noise))
        start = (int(i) * 2654435761) % 8191  # rows of tables are int32
        noise = self._noise[view.noise][start : start + count]
        return picture(at(sequence.scene, frame), view, sequence.room.light, noise)

    def _rng(self, *words) -> np.random.Generator:
        """A generator of its own for every purpose."""
        return np.random.default_rng([self.seed, VERSION, zlib.crc32("/".join(map(str, words)).encode())])

    def _plans(self) -> list[Plan]:
        """The sequences: subjects and actions in turn, so that any number of them is balanced."""
        if self.split == "pretrain":
            length = self.length or PRETRAIN_LENGTH
            count = -(-self.frames // length)
            rounds = range(-(-count // len(self.actions)))
            order = [self._rng("order", k).permutation(len(self.actions)) for k in rounds]
            pairs = [(f"P{k + 1:03d}", self.actions[i]) for k, i in enumerate(np.concatenate(order)[:count])]
        else:
            subjects = SUBJECTS[self.split]
            grid = [(subject, action) for action in self.actions for subject in subjects]
            length = self.length or int(np.clip(self.frames // len(grid), 1, MAX_LENGTH))
            count = -(-self.frames // length)
            if not self.length and count > len(grid):  # whole rounds of the grid, none of them of sequences without an instant
                rounds = min(-(-count // len(grid)), self.frames // len(grid))
                count = rounds * len(grid)
            pairs = [grid[k % len(grid)] for k in range(count)]
        lengths = np.full(count, self.frames // count)
        lengths[: self.frames % count] += 1
        seen: dict[tuple[str, str], int] = {}
        plans = []
        for (subject, action), n in zip(pairs, lengths, strict=True):
            seen[subject, action] = seen.get((subject, action), 0) + 1
            plans.append(Plan(subject, action, seen[subject, action], int(n)))
        return plans

    def _camera_row(self, s: int, v) -> int:
        return s if self.split == "pretrain" else self.subjects.index(self.plans[s].subject) * self.num_views + v

    def _where(self, i: int) -> tuple[int, int, int]:
        """Sequence, frame and view of an image."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of a world with {len(self)} images")
        instant, v = divmod(int(i), self.num_views)
        s = int(np.searchsorted(self.first, instant, "right")) - 1
        return s, instant - int(self.first[s]), v

    def _image_name(self, i: int) -> str:
        s, frame, v = self._where(i)
        p = self.plans[s]
        return f"{self.split}/images/{p.subject}_{p.action}_{p.subaction}.c{v}.{frame:06d}.jpg"

    def _sequence(self, s: int, painted: bool) -> Sequence:
        """Sequence `s`, posed; the last few stay in memory."""
        found = self._cache.get(s)
        if found is None or (painted and not len(found.scene.atlas)):
            found = self._cache[s] = self._pose(s, painted)
        self._cache.move_to_end(s)
        while len(self._cache) > 3:
            self._cache.popitem(last=False)
        return found

    def _pose(self, s: int, painted: bool) -> Sequence:
        plan, rng = self.plans[s], self._rng("sequence", self.split, s)
        t = np.arange(plan.length) / self.fps
        cast = self._cast(s)
        standing = [a for a in self.actions if a not in SEATED] or list(self.actions)
        acts = [plan.action] + [standing[rng.integers(len(standing))] for _ in cast[1:]]
        people, poses, motions = [], [], []
        for k, (name, action, place) in enumerate(zip(cast, acts, _places(acts, rng), strict=True)):
            who = self._rng("subject", name)
            body = Body.draw(who)
            face = Face.draw(who, body.female)
            outfit = Outfit.draw(self._rng("outfit", self.split, s, k))
            chance = self._rng("motion", self.split, s, k)
            motion = Motion.draw(ACTIONS[action](body, chance), body, chance, place)
            people.append(looks.dress(body, face, outfit, painted))
            poses.append(bodies.pose(body, motion.at(t)))
            motions.append(motion)
        rows = [self._camera_row(s, v) for v in range(self.num_views)]
        centers = self.cameras[torch.tensor(rows)].center.numpy()
        place = room.Room.draw(self._rng("room", self.split, s), np.abs(centers[:, :2]).max(0), painted)
        boxes = [room.seat_boxes(m.seat, rng) for m in motions if m.seat]
        if self.objects and len(cast) == 1:
            free = 1150 if plan.action != "Walking" else 1500
            more = room.clutter(rng, place.half, free, int(rng.integers(0, 4)))
            gap = np.linalg.norm(more.center[:, None, :2] - centers[None, :, :2], axis=-1).min(1)
            clear = gap - np.hypot(*more.half[:, :2].T) > 900  # mm, else one could fill a whole image
            boxes.append(room.Boxes(*(v[clear] for v in more)))
        joints = np.stack([p.joints for p in poses], 1)
        depth = np.stack([joint_depth(p.body) for p in people])
        return Sequence(people, assemble(people, poses), joints, depth, place, room.Boxes.join(boxes), {})

    def _cast(self, s: int) -> list[str]:
        """The people of sequence `s`: the named subject, then others of the same split; or strangers."""
        subject, people = self.plans[s].subject, int(self.crowd[s])
        if self.strangers:
            return [f"{self.split}-{s}-{k}" for k in range(people)]
        if self.split == "pretrain":
            pool = [f"{subject}{chr(98 + k)}" for k in range(people - 1)]
        else:
            names = SUBJECTS[self.split]
            turn = names.index(subject)
            around = [names[(turn + 1 + k) % len(names)] for k in range(len(names) - 1)]
            pool = around + [f"{self.split}-extra{k}" for k in range(max(0, people - len(names)))]
        return [subject, *pool][:people]

    def _rows(self, s: int) -> dict[str, np.ndarray]:
        """The observations and poses of one sequence."""
        sequence = self._sequence(s, painted=False)
        views, (T, M, J, _) = self.num_views, sequence.joints.shape
        rows = torch.tensor([self._camera_row(s, v) for v in range(views)])
        cams = self.cameras[rows]
        X = torch.from_numpy(sequence.joints).reshape(1, T * M, J, 3)
        cams = cams.reshape(views, 1)
        x_img, z = cams.project(X)  # (V, T*M, J, 2)
        inside = cams.in_view(X).numpy().reshape(views, T, M, J)
        x_norm = cams.to_norm(cams.project(X, distort=False)[0], undistort=False).numpy().reshape(views, T, M, J, 2)
        x_img, z = x_img.numpy().reshape(views, T, M, J, 2), z.numpy().reshape(views, T, M, J)
        visible = inside & self._unhidden(sequence, cams, x_norm, z)
        if self.split == "pretrain":
            side = BOX_2D * np.array([person.body.height for person in sequence.people])
            pose = np.full((views, T, M), -1)
            X_world = np.zeros((0, J, 3))
        else:
            side = np.full(M, BOX_MM)
            pose = np.broadcast_to((self.first_pose[s] + np.arange(T * M)).reshape(1, T, M), (views, T, M))
            X_world = sequence.joints.reshape(T * M, J, 3)
        box = _pelvis_box(cams, X[..., 0, :], np.tile(side, T)).reshape(views, T, M, 4)

        seen = np.swapaxes(inside.any(-1), 0, 1).reshape(-1)  # a person outside the image has no row

        def order(a: np.ndarray) -> np.ndarray:  # (V,T,M,...) -> rows by frame, view, person
            return np.swapaxes(a, 0, 1).reshape(T * views * M, *a.shape[3:])[seen]

        view, frame, person = np.meshgrid(np.arange(views), np.arange(T), np.arange(M), indexing="ij")
        index = {
            "sequence": np.full_like(view, s),
            "frame": frame,
            "view": view,
            "person": person,
            "image": (self.first[s] + frame) * views + view,
            "camera": rows.numpy()[view],
            "pose": pose,
        }
        return (
            {k: order(v).astype(np.int32) for k, v in index.items()}
            | {
                "x_img": order(x_img).astype(np.float32),
                "conf": order(z > NEAR).astype(np.float32),  # what is behind the camera has no place in the image
                "visible": order(visible),
                "box": order(box).astype(np.float32),
                "X_world": X_world.astype(np.float32),
                "X_valid": np.ones(X_world.shape[:2], bool),
            }
        )

    def _unhidden(self, sequence: Sequence, cams: Cameras, x_norm: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Whether nothing lies further in front of a joint than its own skin.

        x_norm (V,T,M,J,2), z (V,T,M,J) mm -> (V,T,M,J)
        """
        views, T, M, J = z.shape
        R, t = cams.R.numpy(), cams.t.numpy()  # (V,1,3,3)
        scene, rays = sequence.scene, x_norm.reshape(views, T, M * J, 2)
        step = max(1, PAIRS // (views * M * J * len(scene.length)))
        pieces = [slice(k, k + step) for k in range(0, T, step)]
        front = np.concatenate([first_hits(at(scene, piece), R, t, rays[:, piece]) for piece in pieces], 1)
        clear = front.reshape(z.shape) >= z - sequence.depth
        if len(sequence.boxes.heading):
            ray = np.concatenate([x_norm, np.ones((*x_norm.shape[:-1], 1))], -1).reshape(views, -1, 3)
            near = [room.box_hits(sequence.boxes, -r[0].T @ s[0], x @ r[0])[0].min(0) for r, s, x in zip(R, t, ray, strict=True)]
            clear &= np.stack(near).reshape(z.shape) >= z - np.minimum(sequence.depth, 30)
        return clear


def joint_depth(body: Body) -> np.ndarray:
    """How deep the joints of a body lie below its skin at most.   -> (17,) mm"""
    parts = [name.split("_")[-1] for name in bodies.JOINTS]
    return np.array([JOINT_DEPTH[p] * body.height * (body.girth if p in TRUNK else 1.0) for p in parts])


def _pelvis_box(cams: Cameras, pelvis: torch.Tensor, side: np.ndarray) -> np.ndarray:
    """The images of squares around pelvises, facing the camera.   pelvis (1,N,3) mm, side (N,) mm -> (V,N,4) px"""
    center = cams.to_cam(pelvis[:, :, None])  # (V,N,1,3)
    center = center.where(center[..., 2:] > NEAR, torch.nan)  # no box where the pelvis is behind the camera
    corner = torch.tensor([[-1.0, -1], [1, 1]], dtype=center.dtype) * torch.from_numpy(side / 2)[:, None, None]  # (N,2,2)
    middle = cams.project_cam(center, True)
    half = torch.diagonal(cams.K, dim1=-2, dim2=-1)[..., None, :2] * corner / center[..., 2:]
    return (middle + half).flatten(-2).numpy()


def _places(acts: list[str], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Places on the floor far enough apart for what happens there, mm."""
    if len(acts) == 1:
        return [tuple(rng.uniform(-220, 220, 2))]
    need = np.array([900.0 if a == "Walking" else 480.0 for a in acts])
    found: list[np.ndarray] = []
    reach = 450.0 + 160 * len(acts)
    while len(found) < len(acts):
        spot = rng.uniform(-reach, reach, 2)
        k = len(found)
        if all(np.linalg.norm(spot - other) > need[k] + need[i] - 60 for i, other in enumerate(found)):
            found.append(spot)
        reach *= 1.01  # a crowd spreads until it fits
    return [(float(x), float(y)) for x, y in found]
