"""The page: everything a run left, in one HTML file that loads nothing. Whatever comes from a file is escaped."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lib.dataset.image import read_image
from lib.engine import run_dir
from lib.errors import DataError, ParallaxError
from lib.metrics.report import by_published_order
from lib.report import curves, pictures, scenes
from lib.report.run_files import LOG_LINES, RunFiles, config_difference
from lib.report.samples import SEED, Poses, choose, poses_of
from lib.vis import PEOPLE

HERE = Path(__file__).parent
CARDS = 6  # numbers on top of the page; these before others
LEADING = ("mpjpe_mm", "pa_mpjpe_mm", "map_percent", "pcp_percent", "pckh_percent", "pck2d_percent")
MOST_CURVES = 12  # that are open from the beginning
MOST_RIGS = 6
OPEN_ROWS = 40  # of a table that is open from the beginning
COLORS = ["#{:02x}{:02x}{:02x}".format(*color) for color in PEOPLE]  # of several people, as in their pictures
BUDGET = 4_000_000  # bytes of all pictures together
# Nothing may be loaded from anywhere, and nothing sent.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html(run: RunFiles) -> str:
    """The whole page of a run."""
    try:
        pictured = Samples(run)
    except (ParallaxError, LookupError, TypeError, ValueError) as error:  # arrays that another program wrote
        run.missing.append(f"predictions.npz does not fit together ({type(error).__name__}: {error}): no poses and no cameras")
        run.arrays = {}
        pictured = Samples(run)
    sections = [
        ("result", "Result", _result(run)),
        ("missing", "Not here", _missing([*run.missing, *pictured.missing])),
        ("curves", "Curves", _curves(run)),
        ("joints", "Per joint", _per(run, "per_joint", "joint")),
        ("actions", "Per action", _per(run, "per_action", "action")),
        ("samples", "Samples: best, worst, random", pictured.section()),
        ("layout", "Cameras", pictured.cameras()),
        ("figures", "Figures of the evaluation", _figures(run, pictured)),
        ("protocol", "Protocol", _protocol(run)),
        ("config", "Configuration: where it differs from the defaults", _configuration(run)),
        ("log", "End of train.log", _log(run)),
    ]
    sections = [section for section in sections if section[2]]
    nav = "".join(f'<a href="#{name}">{escape(title.partition(":")[0])}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(title)}</h2>{text}</section>' for name, title, text in sections)
    data = {"bones": pictured.bones, "poses": pictured.scenes, "rigs": pictured.rigs, "colors": COLORS}
    title = escape(run.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_asset("page.css")}</style></head>'
        f'<body><header><h1>{title}</h1><p class="faint">{_subtitle(run)}</p><nav aria-label="Sections">{nav}</nav></header>'
        f"<main>{body}</main><footer>Written by <code>scripts/report.py</code>; this file is complete in itself.</footer>"
        f'<script type="application/json" id="data">{_embedded(data)}</script><script>{_asset("page.js")}</script></body></html>\n'
    )


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _subtitle(run: RunFiles) -> str:
    results, facts = run.results, []
    names = [("task", results.get("task") or run.config.get("TASK")), ("step", results.get("step")), ("weights", results.get("weights"))]
    facts += [f"{name} {value}" for name, value in names if value not in (None, "")]
    if isinstance(results.get("seconds"), int | float):
        facts.append(f"{results['seconds'] / 60:.0f} min" if results["seconds"] >= 120 else f"{results['seconds']:.0f} s")
    if results.get("git_commit"):
        facts.append(f"commit {str(results['git_commit'])[:10]}{'-dirty' if str(results['git_commit']).endswith('-dirty') else ''}")
    return escape(", ".join(facts) or "no results")


# ------------------------------------------------------------------------------------------------------------ sections


def _result(run: RunFiles) -> str:
    metrics = _mapping(run.results.get("metrics"))
    if not metrics:
        return ""
    cards = "".join(
        f'<div class="card"><b>{_number(metrics[k])}</b><span>{escape(k).replace("_", "_<wbr>")}</span></div>' for k in _leading(metrics)
    )
    counts = ", ".join(f"{v} {str(k).replace('_', ' ')}" for k, v in _mapping(run.results.get("counts")).items())
    parts = [f'<div class="cards">{cards}</div>', f"<p>Over {escape(counts)}.</p>" if counts else ""]
    others = _mapping(run.results.get("other_sets"))
    columns = {"this set" if others or run.judged else "value": metrics}
    columns |= {str(name): _mapping(_mapping(part).get("metrics")) for name, part in others.items()}
    columns |= {name: _mapping(part.get("metrics")) for name, part in run.judged.items()}
    beside = f", and those of {escape(', '.join(list(columns)[1:]))}" if others or run.judged else ""
    everything = _table("metric", columns, shares=False)
    parts.append(f"<details><summary>All {len(metrics)} numbers{beside}</summary>{everything}</details>")
    facts = run_dir.flatten(_mapping(run.results.get("facts")))
    if facts:
        parts.append("<h3>Facts of the training</h3>" + _pairs(facts))
    return "".join(parts)


def _leading(metrics: Mapping[str, Any]) -> list[str]:
    """The names of the numbers that are shown first."""
    return sorted(metrics, key=lambda name: LEADING.index(name) if name in LEADING else len(LEADING))[:CARDS]


def _missing(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in sentences) + "</ul>" if sentences else ""


def _curves(run: RunFiles) -> str:
    found = curves.series(run.records)
    if not found:
        return ""
    metrics = [f"val/{name}" for name in _leading(_mapping(run.results.get("metrics")))]
    first = [k for k in found if not k.startswith("val") or k in metrics or not metrics][:MOST_CURVES]
    rest = [k for k in found if k not in first]
    text = f'<div class="curves">{"".join(curves.panel(k, found[k]) for k in first)}</div>'
    if rest:
        panels = "".join(curves.panel(k, found[k]) for k in rest)
        text += f'<details><summary>{len(rest)} further curves</summary><div class="curves">{panels}</div></details>'
    return text


def _per(run: RunFiles, key: str, title: str) -> str:
    """The tables per joint or per action, of all evaluation sets."""
    sets = {"": run.results} | {str(name): _mapping(part) for name, part in _mapping(run.results.get("other_sets")).items()}
    text = ""
    for name, part in sets.items():
        columns = {str(k): _mapping(v) for k, v in _mapping(part.get(key)).items() if v}
        if columns:
            table, rows = _table(title, columns, shares=True), max(map(len, columns.values()))
            table = table if rows <= OPEN_ROWS else f"<details><summary>{rows} rows</summary>{table}</details>"
            text += (f"<h3>{escape(name)}</h3>" if name else "") + table
    return text


def _protocol(run: RunFiles) -> str:
    protocol = _mapping(run.results.get("protocol"))
    if not protocol:
        return ""
    lead = "<p>What must agree where these numbers are compared with others.</p>"
    also = {key: run.results.get(key) for key in ("dataset", "skeleton", "git_commit", "config_hash", "weights_sha256")}
    return lead + _pairs(run_dir.flatten(protocol) | {k: v for k, v in also.items() if v})


def _configuration(run: RunFiles) -> str:
    if not run.config:
        return ""
    rows = config_difference(run.config)
    if not rows:
        return "<p>Every key has its default.</p>"
    cells = "".join(
        f"<tr><td><code>{escape(str(key))}</code></td><td class='text'><code>{_value(value)}</code></td>"
        f"<td class='text'><code>{_value(default)}</code></td></tr>"
        for key, value, default in rows
    )
    head = "<tr><th>key</th><th>this run</th><th>default</th></tr>"
    return f'<div class="wide" tabindex="0"><table><thead>{head}</thead><tbody>{cells}</tbody></table></div>'


def _figures(run: RunFiles, pictured: "Samples") -> str:
    shown = []
    for path in run.figures:
        try:
            image = read_image(path)
        except DataError:
            shown.append(f"<p>{escape(path.name)} cannot be read.</p>")
            continue
        source = pictured.within_budget(pictures.data_uri(image, max(pictures.FIGURE, image.shape[0] * pictures.FIGURE // image.shape[1])))
        name = escape(path.stem.replace("_", " "))
        shown.append(f'<figure class="figure">{_image(source, name)}<figcaption>{name}</figcaption></figure>' if source else
                     f"<p>{name} is left out: this page would become too large.</p>")  # fmt: skip
    if not shown:
        return ""
    return f"<details><summary>{len(shown)} drawn at the last evaluation</summary>{''.join(shown)}</details>"


def _log(run: RunFiles) -> str:
    if not run.log:
        return ""
    text = escape("\n".join(run.log))
    return f'<details><summary>The last lines, {LOG_LINES} at most</summary><pre tabindex="0">{text}</pre></details>'


class Samples:
    """The samples that are shown, with pictures within the page's budget, and their scenes for the views in 3D."""

    def __init__(self, run: RunFiles):
        self.left, self.missing = BUDGET, []
        self.poses: Poses = poses_of(run.arrays, str(run.results.get("skeleton", "")))
        self.groups = choose(self.poses)
        rows = [(group, row) for group, chosen in self.groups.items() for row in chosen]
        named = _mapping(run.config.get("DATASET")).get("ROOT")
        root = Path(str(named)) if named else None
        self.cards, self.scenes, self.bones = [], [], scenes.bones(self.poses)
        why: dict[str, None] = {}
        for group, row in rows:
            image, reason = pictures.sample_picture(self.poses, row, root)
            if reason:
                why[reason] = None
            source = "" if image is None else self.within_budget(pictures.data_uri(image, pictures.LONGEST))
            label = self._label(group, row)
            index = self._scene(row, label)
            if source or index is not None:
                self.cards.append((group, row, source, index))
        if why:
            reasons = "; ".join(list(why)[:2])
            self.missing.append(f"images of the samples are not shown, at most their skeletons: {reasons}")
        if rows and self.poses.X is None and not self.poses.measure:
            self.missing.append("predictions.npz holds neither 3D poses nor 2D poses with their truth: samples cannot be ordered")
        elif rows and not self.poses.measure:
            self.missing.append("predictions.npz holds no truth: samples are chosen at random alone")
        self.rigs = self._rigs([row for _, row in rows])
        if run.arrays and not self.rigs:
            self.missing.append("predictions.npz holds no calibrated cameras: their layout is not shown")

    def within_budget(self, source: str) -> str:
        """The picture's text, or '' once the page is full."""
        self.left -= len(source)
        return source if self.left >= 0 else ""

    def _label(self, group: str, row: int) -> str:
        error = self.poses.error[row]
        told = f" ({error:.1f} {self.poses.unit})" if error == error else ""
        return f"{group}: {self.poses.name(row)}{told}"

    def _scene(self, row: int, label: str) -> int | None:
        """Number of the row's scene among those of the 3D view."""
        if self.poses.X is None:
            return None
        scene = scenes.pose_scene(self.poses, row)
        if not scene["people"] and not scene["truth"]:
            return None
        self.scenes.append(scene | {"label": label})
        return len(self.scenes) - 1

    def _rigs(self, rows: Iterable[int]) -> list[dict]:
        """A scene for each different set of cameras."""
        found: dict[str, dict] = {}
        for row in rows:
            scene = scenes.camera_scene(self.poses, row)
            if scene is not None and len(found) < MOST_RIGS:
                found.setdefault(json.dumps(scene["cameras"]), scene | {"label": self.poses.name(row)})
        return list(found.values())

    def section(self) -> str:
        if not self.cards:
            return ""
        text = f"<p>Ordered by the error of each sample: {escape(self.poses.measure)}.</p>" if self.poses.measure else ""
        if self.scenes:
            about = "Skeleton in 3D. Drag or use the arrow keys to turn it, plus, minus or the wheel to zoom, 0 to return."
            moved = " Roots lie on each other." if not self.poses.in_world else ""
            text += _view("poses", about, self.scenes, moved, "0 0:Front,90 0:Side,0 90:From above", sides=True)
        for group in self.groups:
            cards = "".join(self._card(*card) for card in self.cards if card[0] == group)
            seeded = f" <small>always the same: seed {SEED}</small>" if group == "random" else ""
            text += f'<h3>{group.capitalize()}{seeded}</h3><div class="samples">{cards}</div>' if cards else ""
        return text

    def _card(self, group: str, row: int, source: str, index: int | None) -> str:
        error = self.poses.error[row]
        value = f"<b>{error:.1f} {escape(self.poses.unit)}</b> " if error == error else ""
        name = escape(self.poses.name(row))
        image = _image(source, f"{group} sample, {name}") if source else "no picture"
        inner = image if index is None else f'<button type="button" aria-label="Show in 3D: {name}">{image}</button>'
        number = "" if index is None else f' data-index="{index}"'
        return f'<figure class="sample"{number}>{inner}<figcaption>{value}{name}</figcaption></figure>'

    def cameras(self) -> str:
        if not self.rigs:
            return ""
        counts = sorted({len(rig["cameras"]) for rig in self.rigs})
        most = max(rig["count"] for rig in self.rigs)
        told = f"{' or '.join(map(str, counts))} camera{'s' if max(counts) > 1 else ''} around the people of a sample; "
        told += "a thick edge is the top of an image."
        if most > max(counts):
            told += f" A camera that moves has as many places as frames, {most} here: some of them are shown."
        about = "Camera layout in 3D. Drag or use the arrow keys to turn it, plus, minus or the wheel to zoom, 0 to return."
        return f"<p>{told}</p>" + _view("cameras", about, self.rigs, "", "35 28:Scene,0 0:Side,0 90:From above", sides=False)


# -------------------------------------------------------------------------------------------------------------- pieces


def _view(name: str, about: str, items: Sequence[Mapping], note: str, turns: str, sides: bool) -> str:
    """A canvas with its controls."""
    options = "".join(f'<option value="{i}">{escape(item["label"])}</option>' for i, item in enumerate(items))
    buttons = "".join(
        f'<button type="button" data-turn="{angles}">{label}</button>' for angles, label in (turn.split(":") for turn in turns.split(","))
    )
    several = any(len(item["people"]) > 1 for item in items)
    keys = [("left", "left"), ("right", "right"), ("center", "middle")] if sides and not several else []
    legend = "".join(f'<span class="key" style="--c: var(--{color})">{word}</span>' for color, word in keys)
    return (
        f'<div class="view"><div class="bar"><select aria-label="Sample">{options}</select>{buttons}'
        f'<label class="key" style="--c: var(--truth)"><input type="checkbox" checked> truth (dashed)</label>{legend}</div>'
        f'<canvas id="{name}" tabindex="0" role="img" aria-label="{escape(about)}"></canvas>'
        f"<small>{escape(about.partition('. ')[2] + note)}</small></div>"
    )


def _image(source: str, alt: str) -> str:
    return f'<img src="{source}" alt="{alt}">'


def _table(title: str, columns: Mapping[str, Mapping[str, Any]], shares: bool) -> str:
    """Rows by label, a column per name; with `shares` each cell has a bar as long as its part of the column's largest number."""
    labels = list(dict.fromkeys(str(label) for column in columns.values() for label in column))
    labels = by_published_order(labels) if title == "action" else labels
    largest = {name: max((abs(v) for v in column.values() if _is_number(v)), default=0) for name, column in columns.items()}
    rows = []
    for label in labels:
        cells = ""
        for name, column in columns.items():
            value = column.get(label)
            share = f' style="--share: {100 * abs(value) / largest[name]:.0f}%"' if shares and _is_number(value) and largest[name] else ""
            cells += f'<td class="number"{share}>{_number(value)}</td>'
        rows.append(f"<tr><td>{escape(label)}</td>{cells}</tr>")
    heads = f'<th scope="col"><button type="button">{escape(title)}</button></th>' + "".join(
        f'<th scope="col" class="number"><button type="button">{escape(name)}</button></th>' for name in columns
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(str(key))}</td><td class='text'>{_value(value)}</td></tr>" for key, value in values.items())
    return f'<div class="wide" tabindex="0"><table><tbody>{rows}</tbody></table></div>'


def _value(value: Any) -> str:
    """A value of a configuration or a results file, as text."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return escape(text if len(text) <= 400 else f"{text[:400]} ... ({len(text)} characters)") or "&#39;&#39;"


def _number(value: Any) -> str:
    if not _is_number(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
