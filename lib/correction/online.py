"""Self-supervised correction through a learned projector, for each pose on its own.

Source: Wang et al., 3D Human Pose Machines with Self-supervised Learning, TPAMI 2020 (arXiv 1901.03798), section 3.3. A regressor (Psi_C)
turns a coarse 3D pose into a better one, a projector (Psi_P) that into a 2D pose. At test time a few optimiser steps on their weights pull
the projected pose towards the 2D pose that was seen; then the weights are forgotten. Here all samples of a batch take their steps
together, each with weights and an optimiser of its own (lib/correction/adam.py), and the networks are never written to.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.correction.adam import FORMS, Adam, Adapting, Dense, SampleLinear, linear_layers
from lib.correction.rules import CONVERGED, DISCARDED, STOPPED, StopRule
from lib.errors import ConfigError, GeometryError
from lib.geometry.precision import no_autocast
from lib.registry import unknown
from lib.skeleton import Skeleton, get

PARAMS = ("C", "CP", "pose")
RULES = ("paper", "published")
PUBLISHED_UNSEEN = ("spine",)  # no 2D detector of the release gives it
HOST_BYTES, DEVICE_BYTES = 1 << 29, 4 << 30  # intermediate results of poses that take their steps together,
COMPANY = 128  # and at most so many poses on a processor: products gain nothing from more, and caches overflow


@dataclass(frozen=True)
class Corrected:
    """Poses before and after. Shares are the networks' normalised coordinates.

    U is the number of updates: `steps`, or, by the rule "published" and without a trace, one fewer.
    """

    p3d: Tensor  # (...,J,3) shares, the result
    X_root: Tensor  # (...,J,3) mm, the same
    regressed: Tensor  # (...,J,3) shares, before the correction
    trajectory: Tensor  # (...,U+1,J,3) shares after 0, 1, ... updates, those that were discarded too; the last one a pose took repeats
    steps: Tensor  # (...) int64, updates that the pose took
    decision: Tensor  # (...) int64, place in DECISIONS
    p2d: Tensor | None = None  # (...,U+1,J,2) shares, projections of the trajectory, with a trace;
    point_loss: Tensor | None = None  # (...,U+1) mean squared distance from the 2D evidence;
    bone_loss: Tensor | None = None  # (...,U+1) the same of bones, 0 without them

    def projections(self) -> tuple[Tensor, Tensor]:
        """Where the networks of each pose project it before and after its correction, with a trace.   -> (...,J,2), (...,J,2) shares"""
        last = torch.where(self.decision == DISCARDED, 0, self.steps)[..., None, None, None]
        after = self.p2d.gather(-3, last.expand(*last.shape[:-2], *self.p2d.shape[-2:]))
        return self.p2d[..., 0, :, :], after[..., 0, :, :]


class _Record:
    """What happens to the poses of a batch. A look is at the state after so many updates, and holds until the next one."""

    NAMES = ("trajectory", "steps", "decision", "p2d", "point_loss", "bone_loss")

    def __init__(self, first: Tensor, updates: int, trace: bool):
        count, joints = first.shape[:2]
        self.trajectory = first.detach()[:, None].repeat(1, updates + 1, 1, 1)
        self.steps = torch.zeros(count, dtype=torch.long, device=first.device)
        self.decision = torch.full_like(self.steps, STOPPED)
        self.p2d = self.point_loss = self.bone_loss = None
        if trace:
            self.p2d = first.new_zeros(count, updates + 1, joints, 2)
            self.point_loss, self.bone_loss = first.new_zeros(2, count, updates + 1)

    def update(self, rows: Tensor, step: int, pose: Tensor, ended: Tensor, dropped: Tensor) -> None:
        """Poses (b,J,3) of some rows after a step, and what was decided about them."""
        self.trajectory[rows, step:] = pose[:, None]
        self.steps[rows] = step
        self.decision[rows[ended]] = CONVERGED
        self.decision[rows[dropped]] = DISCARDED

    def look(self, rows: Tensor, step: int, p2d: Tensor, point: Tensor, bone: Tensor) -> None:
        """Projections (b,J,2) and losses (b,) of some rows after so many steps."""
        if self.p2d is not None:
            self.p2d[rows, step:] = p2d[:, None]
            self.point_loss[rows, step:] = point[:, None]
            self.bone_loss[rows, step:] = bone[:, None]


class OnlineCorrector:
    """Corrects poses by 2D evidence through two trained networks.

    Args:
        regressor: Psi_C, module (N,J,3) -> (N,J,3) shares. Of both networks the linear layers are what is optimised.
        projector: Psi_P, module (N,J,3) -> (N,J,2) shares.
        to_mm: (...,J,3) shares -> (...,J,3) mm relative to the root.
        skeleton: of the poses.
        steps: updates; with rule "published" runs of the released program, of which each reports the pose before its own update, so that
            two runs are one update.
        lr: learning rate of Adam.
        params: what is optimised: the regressor "C" (the release), both networks "CP" (the paper), or the pose itself, "pose" (equation 3
            of the paper), whose shares want a larger rate.
        rule: "paper": ends by eps and tau, squared distances of joints; "published": fixed steps, joints and bones, the spine left out.
        bones: compare the extents of bones too; None = as the rule does. With rule "paper" a bone counts as much as its less certain end;
            "published" sets unseen joints to 0 before it takes differences, so that some of its bones are places of joints.
        eps_mm, tau_mm: see StopRule; of rule "paper".
        adam_form: see lib.correction.adam.Adam; None = "tensorflow" for rule "published", else "torch".
        carry: keep the optimiser's moments from one pose to the next, as the release does by accident: results then depend on the order of
            poses, which go one by one. The moments start anew with every call.
        chunk: poses that take their steps together; None = what fits. It changes nothing but speed.

    Raises:
        ConfigError: a value that is not possible, or networks without linear layers.
    """

    def __init__(
        self,
        regressor: nn.Module,
        projector: nn.Module,
        to_mm: Callable[[Tensor], Tensor],
        skeleton: Skeleton | str = "h36m16",
        *,
        steps: int = 2,
        lr: float = 1.5e-4,
        params: str = "CP",
        rule: str = "paper",
        bones: bool | None = None,
        eps_mm: float = 5.0,
        tau_mm: float = 20.0,
        adam_form: str | None = None,
        carry: bool = False,
        chunk: int | None = None,
    ):
        for name, value, known in (("params", params, PARAMS), ("rule", rule, RULES), ("adam_form", adam_form, (*FORMS, None))):
            if value not in known:
                raise unknown(value, [k for k in known if k], f"correction: {name}")
        if steps < 1 or not 0 < lr < math.inf or (chunk is not None and chunk < 1):
            raise ConfigError(f"correction: steps {steps}, lr {lr}, chunk {chunk}; expected at least 1, more than 0, at least 1")
        if carry and params == "pose":
            raise ConfigError("correction: carry keeps the moments of weights, but params is pose; set C or CP")
        self.regressor, self.projector, self.to_mm = regressor, projector, to_mm
        self.skeleton = get(skeleton)
        self.steps, self.params, self.carry, self.chunk = steps, params, carry, chunk
        self.published = rule == "published"
        self.bones = self.published if bones is None else bones
        self.adam = Adam(lr, adam_form or ("tensorflow" if self.published else "torch"))
        self.stop = StopRule(self.skeleton, eps_mm, tau_mm)
        self.modules = {"C": (regressor,), "CP": (regressor, projector), "pose": ()}[params]
        self.layers = linear_layers(*self.modules)
        self.regressing = len(linear_layers(regressor))  # of the layers, these come first
        if self.modules and not all(linear_layers(module) for module in self.modules):
            raise ConfigError("correction: a network without linear layers has nothing to optimise; set params to pose")
        self.parents = torch.tensor(self.skeleton.parents)
        self.unseen = [j for name in PUBLISHED_UNSEEN if (j := self.skeleton.find(name)) is not None] if self.published else []

    @no_autocast
    def __call__(self, p3d: Tensor, p2d: Tensor, conf: Tensor | None = None, trace: bool = False) -> Corrected:
        """Correct poses.

        Args:
            p3d: (...,J,3) shares, coarse poses.
            p2d: (...,J,2) shares of the crop, where the joints were seen; NaN = not seen.
            conf: (...,J) 0..1, weights of the joints; 0 = not seen, whatever p2d holds. None = 1.
            trace: also return projections and losses along the trajectory; costs another look.

        Raises:
            GeometryError: shapes do not fit.    ConfigError: a network uses a linear layer twice.
        """
        joints, lead = self.skeleton.num, p3d.shape[:-2]
        conf = p2d.new_ones(p2d.shape[:-1]) if conf is None else conf
        for name, value, tail in (("p3d", p3d, (joints, 3)), ("p2d", p2d, (joints, 2)), ("conf", conf, (joints,))):
            if value.shape != (*lead, *tail):
                raise GeometryError(f"correction: {name} has shape {tuple(value.shape)}, expected {(*lead, *tail)}")
        with torch.inference_mode(False), _evaluating(self.regressor, self.projector):
            dtype = next((value.dtype for value in self.regressor.parameters()), p3d.dtype)
            p3d, p2d, weight = (value.detach().to(dtype, copy=True).reshape(-1, *value.shape[len(lead) :]) for value in (p3d, p2d, conf))
            seen = (weight > 0) & p2d.isfinite().all(-1)
            seen[:, self.unseen] = False
            p2d, weight = p2d.where(seen[..., None], 0.0), weight.where(seen, 0.0)
            updates = self.steps if trace or self.carry or not self.published else self.steps - 1
            run, size = (self._one_by_one, len(p3d)) if self.carry else (self._together, self.chunk or self._chunk(p3d.device))
            split = zip(*(value.split(max(size, 1)) for value in (p3d, p2d, weight)), strict=True)
            records = [run(*part, updates, trace) for part in split]
            values = {name: torch.cat([getattr(r, name) for r in records]) for name in _Record.NAMES[: 6 if trace else 3]}
        if self.published:  # the pose that the last run reports is the one before its own update
            values["p3d"] = values["trajectory"][:, self.steps - 1]
            values["steps"].fill_(self.steps - 1)
        else:
            dropped = values["decision"] == DISCARDED
            values["p3d"] = torch.where(dropped[:, None, None], values["trajectory"][:, 0], values["trajectory"][:, -1])
        values["regressed"] = values["trajectory"][:, 0]
        with torch.no_grad():
            values["X_root"] = self.to_mm(values["p3d"])
        return Corrected(**{name: value.reshape((*lead, *value.shape[1:])) for name, value in values.items()})

    def losses(self, seen: Tensor, p2d: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, the sum of two: distances of joints and of the extents of bones.

        seen (B,J,2) projected, p2d (B,J,2), weight (B,J) -> (B,), (B,): means over all coordinates, joints without weight included
        """
        point = (weight[..., None] * (seen - p2d).square()).mean((1, 2))
        if not self.bones:
            return point, torch.zeros_like(point)
        parents = self.parents.to(seen.device)
        pair = torch.minimum(weight, weight[:, parents])
        if self.published:
            there = weight[..., None] > 0
            seen, p2d, pair = seen.where(there, 0.0), p2d.where(there, 0.0), torch.ones_like(weight)
        extent, expected = ((x[:, parents] - x).abs() for x in (seen, p2d))
        return point, (pair[..., None] * (extent - expected).square()).mean((1, 2))

    def _chunk(self, device: torch.device) -> int:
        """Samples whose intermediate results fit; matrix products want some company, but a processor no more than that."""
        numbers = 8192 + sum(SampleLinear(layer, self.adam).numbers(self.steps) for layer in self.layers)
        if device.type == "cpu":
            return min(COMPANY, max(1, HOST_BYTES // (4 * numbers)))
        return max(1, DEVICE_BYTES // (4 * numbers))

    def _decide(self, pose: Tensor, last: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        if self.published:
            never = torch.zeros(len(pose), dtype=torch.bool, device=pose.device)
            return never, never
        return self.stop(*(self.to_mm(p) for p in (pose, last, first)))

    def _together(self, p3d: Tensor, p2d: Tensor, weight: Tensor, updates: int, trace: bool) -> _Record:
        """All steps of some samples. Without a trace, those that are finished leave the batch."""
        own = [SampleLinear(layer, self.adam) for layer in self.layers]
        free, direct = Dense(self.adam), self.params == "pose"
        rows = torch.arange(len(p3d), device=p3d.device)
        live = torch.ones_like(rows, dtype=torch.bool)
        with torch.enable_grad(), Adapting(self.layers, own):
            pose = self.regressor(p3d)
            pose = pose.detach().requires_grad_() if direct else pose
            record = _Record(pose.detach(), updates, trace)
            if not len(rows):
                return record
            changed = live
            for step in range(1, updates + 1):
                losses = self._look(record, rows[changed], step - 1, changed, self.projector(pose), p2d, weight)
                used = [layer for layer in own if layer.output is not None]
                gradients = torch.autograd.grad(losses.sum(), [pose] if direct else [layer.output for layer in used])
                last, final = pose.detach(), step == updates
                for layer, gradient in zip(used, gradients, strict=False):
                    if not final or trace or layer in own[: self.regressing]:  # of the projector, only a further look needs more
                        layer.step(gradient)
                with torch.set_grad_enabled(not final):
                    pose = (last + free.change(gradients[0], step)).requires_grad_(not final) if direct else self.regressor(p3d)
                ended, dropped = self._decide(pose.detach(), last, record.trajectory[rows, 0])
                record.update(rows[live], step, pose.detach()[live], ended[live], dropped[live])
                changed, live = live, live & ~ended & ~dropped
                if final or trace or live.all():
                    continue
                if not live.any():
                    break
                rows, p3d, p2d, weight = (value[live] for value in (rows, p3d, p2d, weight))
                for value in (*own, free):
                    value.keep(live)
                pose = pose.detach()[live].requires_grad_() if direct else self.regressor(p3d)
                changed = live = live[live]
            if trace:
                with torch.no_grad():
                    self._look(record, rows[changed], updates, changed, self.projector(pose), p2d, weight)
        return record

    def _look(self, record: _Record, rows: Tensor, step: int, which: Tensor, seen: Tensor, p2d: Tensor, weight: Tensor) -> Tensor:
        """The losses (B,) of projected poses, written down for some of them."""
        point, bone = self.losses(seen, p2d, weight)
        record.look(rows, step, seen.detach()[which], point.detach()[which], bone.detach()[which])
        return point + bone

    def _one_by_one(self, p3d: Tensor, p2d: Tensor, weight: Tensor, updates: int, trace: bool) -> _Record:
        """One sample after the other, with moments that go on from one to the next."""
        networks = (self.regressor, self.projector)
        trained = [_linear_parameters(network) if network in self.modules else {} for network in networks]
        moments = [{name: Dense(self.adam) for name in params} for params in trained]
        with torch.no_grad():
            record = _Record(self.regressor(p3d), updates, trace)
        taken = 0
        for i in range(len(p3d)):
            row = torch.tensor([i], device=p3d.device)
            own, last = trained, record.trajectory[row, 0]
            for step in range(updates + 1):
                own = [{name: value.detach().requires_grad_() for name, value in params.items()} for params in own]
                with torch.enable_grad():
                    pose = functional_call(networks[0], own[0], (p3d[row],))
                    seen = functional_call(networks[1], own[1], (pose,))
                    loss = self._look(record, row, step, torch.ones_like(row, dtype=torch.bool), seen, p2d[row], weight[row])
                if step:
                    ended, dropped = self._decide(pose.detach(), last, record.trajectory[row, 0])
                    record.update(row, step, pose.detach(), ended, dropped)
                    if ended | dropped:
                        break
                if step == updates:
                    break
                last, taken = pose.detach(), taken + 1
                gradients = iter(torch.autograd.grad(loss.sum(), [value for params in own for value in params.values()]))
                own = [
                    {name: value.detach() + adam[name].change(next(gradients), taken) for name, value in params.items()}
                    for params, adam in zip(own, moments, strict=True)
                ]
        return record


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """As in evaluation: no dropout, fixed statistics of norms; afterwards every part is in the mode it was in."""
    training = [part for module in modules for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _linear_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of a module's linear layers, under their names."""
    return {f"{name}.{key}".lstrip("."): value for name, part in module.named_modules() if type(part) is nn.Linear
            for key, value in part.named_parameters()}  # fmt: skip
