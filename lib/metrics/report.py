"""What an evaluation returns: flat named numbers, rows per joint and per action, counts."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """Results of one evaluation; the unit of each number is the last part of its name (mpjpe_mm, pck150_percent).

    A number that has no value (no joint or pose it could be computed from) is absent.
    """

    metrics: dict[str, float]
    per_joint: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> joint name -> value
    per_action: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> action -> mean over its poses
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, dict]:
        """Plain dictionaries, ready for JSON."""
        return {
            "metrics": dict(self.metrics),
            "per_joint": {name: dict(row) for name, row in self.per_joint.items()},
            "per_action": {name: dict(row) for name, row in self.per_action.items()},
            "counts": dict(self.counts),
        }

    def table(self) -> str:
        """Aligned text: the metrics, then one row per action and one per joint, with a column per metric."""
        parts = [_rows({name: {"value": value} for name, value in self.metrics.items()}, header=False)]
        for title, columns in (("action", self.per_action), ("joint", self.per_joint)):
            if columns:
                labels = list(dict.fromkeys(label for column in columns.values() for label in column))
                rows = {label: {name: column.get(label) for name, column in columns.items()} for label in labels}
                parts.append(_rows(rows, title=title))
        if self.counts:
            parts.append(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in self.counts.items()))
        return "\n\n".join(parts)


def _rows(rows: dict[str, dict[str, float | None]], title: str = "", header: bool = True) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [[label, *(_number(row.get(name)) for name in columns)] for label, row in rows.items()]
    if header:
        cells.insert(0, [title, *columns])
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
