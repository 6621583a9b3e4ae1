"""What an evaluation returns: flat named numbers, rows per joint and per action, counts, and how they were measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# The actions of Human3.6M in the order of published tables, and the heads of their columns there.
ACTIONS = {
    "Directions": "Dir.", "Discussion": "Disc.", "Eating": "Eat", "Greeting": "Greet", "Phoning": "Phone", "Photo": "Photo",
    "Posing": "Pose", "Purchases": "Purch.", "Sitting": "Sit", "SittingDown": "SitD.", "Smoking": "Smoke", "Waiting": "Wait",
    "WalkDog": "WalkD.", "Walking": "Walk", "WalkTogether": "WalkT.",
}  # fmt: skip
MOST_COLUMNS = 20  # of actions, in a table that has them side by side
# The protocols of Human3.6M by the metric that each one reports: no alignment but the root, a similarity, a scale.
PROTOCOLS = {"mpjpe_mm": "Protocol 1", "pa_mpjpe_mm": "Protocol 2", "n_mpjpe_mm": "Protocol 3"}
# What lifting papers print beside them: Protocol 1 without centring the prediction, and the error of the velocity.
TABLED = PROTOCOLS | {"mpjpe_unrooted_mm": "unrooted", "n_mpjpe_unrooted_mm": "unrooted", "mpjve_mm": "velocity"}
TABLED["pa_mpjpe_rooted_mm"] = "aligned, rooted"  # what EpipolarPose's release prints beside Protocol 1
# EpipolarPose's release: its names of values, without blanks and colons, and what they are called here (TEST.VARIANTS reference).
RELEASE_NAMES = {
    "hm36_17j": "mpjpe_mm", "hm36_17j_align": "pa_mpjpe_rooted_mm", "hm36_17j_norm": "n_mpjpe_procrustes_mm",
    "hm36_17j_14": "mpjpe14_legacy_mm", "hm36_17j_14_al": "pa_mpjpe14_legacy_mm", "hm36_17j_14_nm": "n_mpjpe14_legacy_mm",
    "hm36_17j_x": "mpjpe_x_mm", "hm36_17j_y": "mpjpe_y_mm", "hm36_17j_z": "mpjpe_z_mm",
}  # fmt: skip
# The columns of MPII's table by their metrics, in percent; the last one is what EpipolarPose's release calls Mean@0.1.
PCKH_COLUMNS = {
    "pckh_head_percent": "Head", "pckh_shoulder_percent": "Shoulder", "pckh_elbow_percent": "Elbow", "pckh_wrist_percent": "Wrist",
    "pckh_hip_percent": "Hip", "pckh_knee_percent": "Knee", "pckh_ankle_percent": "Ankle", "pckh_percent": "Mean",
    "pckh_at10_percent": "Mean@0.1", "pckh_at11_percent": "Mean@0.11",
}  # fmt: skip

# The columns of multi-person papers: CMU Panoptic's, and after an actor each those of Shelf and Campus.
PEOPLE_COLUMNS = {
    "ap25_percent": "AP25", "ap50_percent": "AP50", "ap75_percent": "AP75", "ap100_percent": "AP100", "ap125_percent": "AP125",
    "ap150_percent": "AP150", "map_percent": "mAP", "recall500_percent": "Recall@500", "mpjpe_mm": "MPJPE",
}  # fmt: skip
PCP, PCP_ACTOR = "pcp_", "pcp_actor"


@dataclass(frozen=True)
class Report:
    """Results of one evaluation; the unit of each number is the last part of its name (mpjpe_mm, pck150_percent).

    A number that has no value (no joint or pose it could be computed from) is absent.
    """

    metrics: dict[str, float]
    per_joint: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> joint, or part of the body -> value
    per_action: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> action or "subject/action" -> mean over its poses
    counts: dict[str, int] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)  # what tells these numbers from others of the same name

    def joined(self, other: "Report") -> "Report":
        """This report with the numbers of another one of the same poses; what both have stays as it is here."""
        mine, others = self.to_dict(), other.to_dict()
        return Report(**{part: others[part] | mine[part] for part in mine})

    def to_dict(self) -> dict[str, dict]:
        """Plain dictionaries, ready for JSON."""
        return {
            "metrics": dict(self.metrics),
            "per_joint": {name: dict(row) for name, row in self.per_joint.items()},
            "per_action": {name: dict(row) for name, row in self.per_action.items()},
            "counts": dict(self.counts),
            "protocol": dict(self.protocol),
        }

    def table(self) -> str:
        """Aligned text: the papers' tables, the other metrics, the actions (see stage_table, action_table), and a row per joint or part of
        the body with a column per metric.
        """
        people = "map_percent" in self.metrics
        shown = {*PCKH_COLUMNS, *(PEOPLE_COLUMNS if people else ()), *(f"root_{name}" for name in PEOPLE_COLUMNS)}
        others = {name: {"value": value} for name, value in self.metrics.items() if name not in shown and not name.startswith(PCP_ACTOR)}
        parts = [self.pckh_table(), self.people_table(), _rows(others, header=False) if others else ""]
        parts += [self.stage_table(), self.action_table()]
        for title, in_parts in (("joint", False), ("part", True)):
            columns = {name: column for name, column in self.per_joint.items() if name.startswith(PCP) is in_parts}
            parts.append(tall(columns, title) if columns else "")
        if self.counts:
            parts.append(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in self.counts.items()))
        return "\n\n".join(part for part in parts if part)

    def pckh_table(self) -> str:
        """PCKh in one row, as MPII's tools print it; empty where it was not measured."""
        row = {column: self.metrics[metric] for metric, column in PCKH_COLUMNS.items() if metric in self.metrics}
        return _rows({"PCKh, percent": row}) if row else ""

    def people_table(self) -> str:
        """AP by threshold and MPJPE of people and of their roots, or PCP by actor, as multi-person papers print them; empty without."""
        rows = {}
        for title, prefix in (("people", ""), ("roots", "root_")):
            if f"{prefix}map_percent" in self.metrics:
                known = {column: self.metrics.get(prefix + name) for name, column in PEOPLE_COLUMNS.items()}
                rows[f"{title}, percent and mm"] = {column: value for column, value in known.items() if value is not None}
        actors = [name for name in self.metrics if name.startswith(PCP_ACTOR)]
        if actors:
            columns = {f"Actor {name.removeprefix(PCP_ACTOR).partition('_')[0]}": self.metrics[name] for name in actors}
            rows["PCP, percent"] = columns | {"Average": self.metrics.get("pcp_percent")}
        return _rows(rows) if rows else ""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the poses before the result, of a MachineEvaluator that knew the actions."""
        ending = "_mpjpe_mm"
        names = [name for name in self.per_action if name.endswith(ending) and name not in PROTOCOLS]
        return tuple(name.removesuffix(ending) for name in names if not name.endswith(f"_pa{ending}"))

    def stage_table(self) -> str:
        """As the published evaluation of 3D human pose machines prints it: a row per action, by name, a column per stage, and both means;
        the same again after alignment by a similarity. Empty without stages.
        """
        table, result = {}, "refined" if "discarded" in self.counts else "result"
        for metric, title in (("mpjpe_mm", "mm"), ("pa_mpjpe_mm", "PA mm")) if self.stages else ():
            for stage, name in {**{stage: f"{stage}_{metric}" for stage in self.stages}, result: metric}.items():
                both = {"mean of actions": self.metrics.get(_action_mean(name)), "mean of frames": self.metrics.get(name)}
                table[f"{stage}, {title}"] = self.per_action.get(name, {}) | both
        return tall(table, "action") if table else ""

    def action_table(self) -> str:
        """As papers print it: a row per protocol, a column per action, the mean over poses, and the mean of the actions' means.

        With "subject/action" there are such rows for each subject. Metrics that belong to no protocol get a row per action, and so do more
        actions than a page is wide; empty without actions. Those of stages and of parts of the body are told elsewhere.
        """
        staged = {f"{stage}_{metric}" for stage in self.stages for metric in ("mpjpe_mm", "pa_mpjpe_mm")}
        columns = {metric: column for metric, column in self.per_action.items() if metric not in staged and not metric.startswith(PCP)}
        parts = {metric: column for metric, column in self.per_action.items() if metric.startswith(PCP)}
        tables = [self._protocol_table(columns), tall(parts, "action") if parts else ""]
        return "\n\n".join(text for text in tables if text)

    def _protocol_table(self, columns: dict[str, dict[str, float]]) -> str:
        names = {name for column in columns.values() for name in column}
        actions = {name.rpartition("/")[2] for name in names}
        if not names or not set(columns) <= set(TABLED) or len(actions) > MOST_COLUMNS:
            return tall(columns, "action") if names else ""
        subjects = sorted({name.rpartition("/")[0] for name in names})
        rows = {}
        for metric, column in columns.items():
            for subject in subjects:
                own = {name.rpartition("/")[2]: value for name, value in column.items() if name.rpartition("/")[0] == subject}
                cells = {ACTIONS.get(action, action): own[action] for action in by_published_order(own)}
                if subject:
                    means = {"of actions": sum(own.values()) / len(own)}
                else:
                    means = {"Mean": self.metrics.get(metric), "of actions": self.metrics.get(_action_mean(metric))}
                rows[f"{TABLED[metric]}, {metric}{f', {subject}' if subject else ''}"] = cells | means
        return _rows(rows, digits=1)


def by_published_order(actions: Iterable[str]) -> list[str]:
    """Human3.6M's actions in the order of published tables, then all others by name."""
    order = list(ACTIONS)
    return sorted(actions, key=lambda name: (order.index(name) if name in ACTIONS else len(order), name))


def action_means(per_action: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean of the actions' means of each metric: mpjpe_mm -> mpjpe_action_mean_mm."""
    return {_action_mean(metric): sum(row.values()) / len(row) for metric, row in per_action.items() if row}


def _action_mean(metric: str) -> str:
    stem, unit = metric.rsplit("_", 1)
    return f"{stem}_action_mean_{unit}"


def tall(columns: dict[str, dict[str, float]], title: str) -> str:
    """Aligned text, a row per label and a column per metric.   columns: metric -> label -> value"""
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    return _rows({label: {name: column.get(label) for name, column in columns.items()} for label in labels}, title=title)


def _rows(rows: dict[str, dict[str, float | None]], title: str = "", header: bool = True, digits: int = 2) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [[label, *(_number(row.get(name), digits) for name in columns)] for label, row in rows.items()]
    if header:
        cells.insert(0, [title, *columns])
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, all others to the right.   cells: lines of as many texts each"""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))] for line in cells)
    return "\n".join("  ".join(line) for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
