"""scripts/download.py against a server of our own: whole, checked and under its name, or not there at all."""

import dataclasses
import hashlib
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model_weights

from lib import config
from lib.errors import WeightsError
from lib.prediction.detection import ADVICE, DETECTORS
from lib.skeleton import SKELETONS
from lib.tasks import build
from lib.weights import catalogue
from lib.weights.adapters import Checkpoint
from lib.weights.catalogue import CATALOGUE, find
from lib.weights.fetch import fetch
from lib.weights.load import start_parts
from scripts import download as script
from tests.conftest import ROOT

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What the next answers are, and which requests came."""

    def __init__(self):
        self.content, self.headers, self.ranges, self.status = CONTENT, {"ETag": '"one"'}, True, 200
        self.cuts: list[int] = []  # bytes of the next answers after which the connection is closed
        self.requests: list[dict] = []


@pytest.fixture
def server():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests.append(dict(self.headers))
            if state.status != 200:
                self.send_error(state.status)
                return
            start, total = 0, len(state.content)
            asked, same = self.headers.get("Range"), self.headers.get("If-Range")
            if asked and state.ranges and same in (None, *state.headers.values()):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(total - start))
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.end_headers()
            end = start + state.cuts.pop(0) if state.cuts else total
            self.wfile.write(state.content[start:end])

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}/file.pth"
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "models" / "file.pth"


def left(path: Path) -> list[str]:
    """Names in the folder of a download."""
    return sorted(p.name for p in path.parent.iterdir()) if path.parent.exists() else []


def begun(path: Path, content: bytes, tag: str = "") -> None:
    """A download that was interrupted earlier."""
    path.parent.mkdir()
    path.with_name("file.pth.part").write_bytes(content)
    if tag:
        path.with_name("file.pth.part.tag").write_text(tag)


# --- one file


def test_a_whole_file_with_progress(server, path):
    seen = []
    assert fetch(server.url, path, HASH[:8].upper(), progress=lambda done, total: seen.append((done, total))) == HASH
    assert path.read_bytes() == CONTENT and left(path) == ["file.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [d for d, _ in seen] == sorted({d for d, _ in seen})
    assert len(server.requests) == 1 and "Range" not in server.requests[0]


def test_a_cut_connection_is_taken_up_again_by_itself(server, path):
    server.cuts = [300_000, 200_000]
    seen = []
    assert fetch(server.url, path, progress=lambda done, total: seen.append((done, total))) == HASH
    assert [r.get("Range") for r in server.requests] == [None, "bytes=300000-", "bytes=500000-"]
    assert server.requests[1]["If-Range"] == '"one"' and seen[-1] == (len(CONTENT), len(CONTENT))
    assert left(path) == ["file.pth"]


def test_a_server_that_ends_at_once_every_time(server, path):
    server.cuts = [300_000, 0]
    with pytest.raises(WeightsError, match="cut after 300,000 of 1,048,576 bytes.*300,000 bytes are kept.*run this again"):
        fetch(server.url, path)
    assert left(path) == ["file.pth.part", "file.pth.part.tag"]
    assert fetch(server.url, path) == HASH and server.requests[-1]["Range"] == "bytes=300000-"
    assert left(path) == ["file.pth"] and path.read_bytes() == CONTENT


def test_a_server_without_pieces_sends_all_again(server, path):
    server.ranges = False
    begun(path, b"x" * 1000, '"one"')
    assert fetch(server.url, path) == HASH
    assert server.requests[0]["Range"] == "bytes=1000-" and path.read_bytes() == CONTENT and left(path) == ["file.pth"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, path):
    begun(path, CONTENT[:1000], '"one"')
    server.content, server.headers = CONTENT[::-1], {"ETag": '"two"'}
    assert fetch(server.url, path) == hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert server.requests[0]["If-Range"] == '"one"' and path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_a_part_of_which_nobody_knows_the_origin(server, path, headers):
    server.headers = headers
    begun(path, b"x" * 1000)
    assert fetch(server.url, path) == HASH and "Range" not in server.requests[0]  # no hash would tell: anew
    path.unlink()
    path.with_name("file.pth.part").write_bytes(CONTENT[:1000])
    assert fetch(server.url, path, HASH) == HASH and server.requests[1]["Range"] == "bytes=1000-"


def test_the_date_stands_for_a_weak_tag(server, path):
    date = "Sat, 01 Jan 2022 00:00:00 GMT"
    server.headers, server.cuts = {"ETag": 'W/"weak"', "Last-Modified": date}, [1000]
    assert fetch(server.url, path) == HASH and server.requests[1]["If-Range"] == date


def test_a_part_that_is_complete_or_too_long(server, path):
    begun(path, CONTENT, '"one"')
    assert fetch(server.url, path) == HASH and len(server.requests) == 1
    path.unlink()
    path.with_name("file.pth.part").write_bytes(CONTENT + b"more")
    assert fetch(server.url, path, HASH) == HASH and left(path) == ["file.pth"]


def test_another_hash_leaves_nothing(server, path):
    with pytest.raises(WeightsError, match=f"has SHA-256 {HASH}, expected 0000.*removed"):
        fetch(server.url, path, "0" * 64)
    assert left(path) == []


PAGES = {
    "type": ({"Content-Type": "text/html; charset=utf-8"}, CONTENT),
    "body": ({"Content-Type": "application/octet-stream"}, b"\n<!DOCTYPE html><html>virus scan warning</html>"),
    "xml": ({}, b'<?xml version="1.0"?><Error/>'),
}


@pytest.mark.parametrize("case", sorted(PAGES))
def test_a_web_page_is_no_file(server, path, case):
    server.headers, server.content = PAGES[case]
    with pytest.raises(WeightsError, match=r"sent a web page.*open https://example.org/page in a browser.* save it as .*file\.pth"):
        fetch(server.url, path, page="https://example.org/page")
    assert left(path) == []


def test_a_web_page_does_not_spoil_what_is_there_already(server, path):
    begun(path, CONTENT[:1000], '"one"')
    server.headers, server.content = {"Content-Type": "text/html", "ETag": '"other"'}, b"<html>"
    with pytest.raises(WeightsError, match="web page"):
        fetch(server.url, path)
    assert path.with_name("file.pth.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize(("status", "message"), [(404, "no such file there any more"), (403, "login or a browser"), (503, "answered 503")])
def test_refusals_of_the_server(server, path, status, message):
    server.status = status
    with pytest.raises(WeightsError, match=f"{message}.*open https://example.org/page in a browser"):
        fetch(server.url, path, page="https://example.org/page")
    assert left(path) == []


def test_no_connection_no_answer_no_link(path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(WeightsError, match="cannot be reached.*check the network"):
        fetch(f"http://127.0.0.1:{port}/x", path)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(WeightsError, match="no answer within 0 s"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", path, timeout=0.1)
    for url in ("file:///etc/hostname", "models/x.pth", "ftp://127.0.0.1/x"):
        with pytest.raises(WeightsError, match="expected http:// or https://"):
            fetch(url, path)
    with pytest.raises(WeightsError, match="http://"):
        fetch("http://127.0.0.1:port/x", path)
    assert left(path) == []


def test_an_empty_answer_is_no_file(server, path):
    server.content = b""
    with pytest.raises(WeightsError, match="empty file"):
        fetch(server.url, path)
    assert left(path) == []


def test_what_is_there_is_checked_and_never_changed(server, path, tmp_path):
    path.parent.mkdir()
    path.write_bytes(b"mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    assert fetch(server.url, path, digest[:8]) == digest == fetch(server.url, path)
    with pytest.raises(WeightsError, match=f"{digest}, expected {HASH[:8]}.*left as it is"):
        fetch(server.url, path, HASH[:8])
    with pytest.raises(WeightsError, match="is a directory"):
        fetch(server.url, path.parent)
    assert server.requests == [] and left(path) == ["file.pth"] and path.read_bytes() == b"mine"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_stays(server, path, links, monkeypatch):
    if not links:  # as on some network drives
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError("not supported")))
    with pytest.raises(WeightsError, match="appeared while it was downloaded"):
        fetch(server.url, path, progress=lambda done, total: path.write_bytes(b"mine"))
    assert path.read_bytes() == b"mine" and path.with_name("file.pth.part").read_bytes() == CONTENT


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(WeightsError, match="cannot be written.*--out"):
        fetch(server.url, tmp_path / "models" / "file.pth")


# --- the script


@pytest.fixture
def entry(server, monkeypatch):
    """The only published weights of the world."""
    entry = dataclasses.replace(CATALOGUE["resnet18"], name="tiny", path="sub/file.pth", url=server.url, sha256=HASH)
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": entry})
    return entry


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = script.main([str(a) for a in arguments])
    found = capsys.readouterr()
    return status, found.out, found.err


def test_script_fetches_by_name_and_says_what_it_has(server, entry, tmp_path, capsys):
    status, out, err = run(capsys, "tiny", "--out", tmp_path)
    path = tmp_path / "sub" / "file.pth"
    assert status == 0 and path.read_bytes() == CONTENT
    assert f"{path}: done, 1,048,576 bytes" in out and f"{HASH} (as expected)" in out and entry.config in out and entry.licence in out
    assert "file.pth: 100%" in err  # progress
    status, out, err = run(capsys, "sub/file.pth", "--out", tmp_path)
    assert status == 0 and "was there already" in out and err == "" and len(server.requests) == 1
    path.write_bytes(b"other")
    status, out, err = run(capsys, "tiny", "--out", tmp_path)
    assert status == 2 and out == "" and err.count("\n") == 1 and "move it away" in err and path.read_bytes() == b"other"


@pytest.mark.parametrize("known", [True, False])
def test_script_with_a_link_of_ones_own(server, entry, known, tmp_path, capsys, monkeypatch):
    bare = dataclasses.replace(entry, url="", page="https://example.org/page", sha256=HASH if known else "")
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": bare})
    status, out, err = run(capsys, "tiny", "--out", tmp_path)
    assert status == 2 and out == "" and err.count("\n") == 1 and not (tmp_path / "sub").exists()
    assert f"open https://example.org/page in a browser, follow its link to the file, and save it as {tmp_path}/sub/file.pth" in err
    assert "--url" in err
    status, out, err = run(capsys, "tiny", "--out", tmp_path, "--url", server.url)
    assert status == 0 and HASH in out and ("as expected" if known else "not known before") in out


def test_script_goes_on_after_a_name_that_failed(server, entry, tmp_path, capsys):
    status, out, err = run(capsys, "tny", "tiny", "--out", tmp_path)
    assert status == 2 and "did you mean tiny?" in err and "--list" in err and "done" in out
    assert (tmp_path / "sub" / "file.pth").is_file()


def test_script_lists_all_names(tmp_path, capsys):
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"x")
    status, out, _ = run(capsys, "--list", "--out", tmp_path)
    lines = {line.split()[0]: line.split()[1] for line in out.splitlines()[::2]}
    assert status == 0 and list(lines) == list(CATALOGUE)
    assert lines["resnet18"] == "there" and lines["resnet50"] == "link" and lines["fully_supervised"] == "browser"
    assert "quoted: MPJPE 51.8 mm" in out


def test_script_wants_a_name_and_one_link_for_one_name(capsys):
    for arguments in ([], ["a", "b", "--url", "http://127.0.0.1/x"]):
        with pytest.raises(SystemExit, match="2"):
            script.main(arguments)
    assert "NAME" in capsys.readouterr().err


# --- the catalogue


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))
def test_every_entry_is_complete_and_its_configuration_is_read(entry, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert entry.text and entry.licence and entry.config and (entry.url or entry.page)
    assert entry.skeleton in ("", *SKELETONS) and find(entry.name) is entry is find(entry.path) is find(f"models/{entry.path}")
    words = entry.config.split()
    if words[0].endswith(".yaml"):
        cfg = config.load(ROOT / words[0], words[1:])
        judged = "MODEL.PRETRAINED" not in words  # else a stage of a training starts from it
        assert (cfg.MODEL.RESUME if judged else cfg.MODEL.PRETRAINED) == f"models/{entry.path}"
        assert cfg.DATASET.SKELETON in ("", entry.skeleton) and cfg.MODEL.NUM_JOINTS == SKELETONS[entry.skeleton].num
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0].isupper():
        cfg = config.load(None, words)
        assert cfg.MODEL.INIT_FILE == f"models/{entry.path}"


def test_paths_are_those_of_one_file_each():
    paths = [entry.path for entry in CATALOGUE.values()]
    assert len(set(paths)) == len(paths) and all(".." not in p and not p.startswith("/") for p in paths)


@pytest.mark.parametrize("entry", [e for e in CATALOGUE.values() if "download.pytorch.org" in e.url], ids=lambda e: e.name)
def test_links_are_those_that_torchvision_declares(entry):
    declared = [weights.url for weights in get_model_weights(entry.name)]
    assert entry.url in declared and entry.url.endswith(f"/{entry.path}")
    assert len(entry.hash_prefix) == 8 and f"-{entry.hash_prefix}.pth" in entry.path


def test_links_of_lifting_networks_are_those_of_their_readme():
    entries = [entry for entry in CATALOGUE.values() if entry.path.startswith("videopose3d/")]
    assert [entry.name for entry in entries] == [
        "pretrained_h36m_cpn", "pretrained_h36m_detectron_coco", "pretrained_humaneva15_detectron"
    ]  # fmt: skip
    for entry in entries:
        assert entry.path == f"videopose3d/{entry.name}.bin"
        assert entry.url == f"https://dl.fbaipublicfiles.com/video-pose-3d/{entry.name}.bin" and not entry.hash_prefix
        words = entry.config.split()
        cfg = config.load(ROOT / words[0], words[1:])
        frames = 27 if "humaneva" in entry.name else 243
        assert cfg.TASK == "temporal" and prod(cfg.TEMPORAL.WIDTHS) == frames and f"{frames} frames" in entry.text
        assert cfg.source("TEMPORAL.CAUSAL") != "default" and not cfg.TEMPORAL.CAUSAL  # as published, and said
        assert cfg.TEMPORAL.LAYOUT == ("" if "cpn" in entry.name else "coco17") and cfg.TEST.FLIP_TEST


PEOPLE = {  # parts of the published files, and their numbers of tensors
    "voxelpose_backbone": {"backbone": 338},
    "selfpose3d_backbone": {"backbone": 338},
    "selfpose3d_rootnet": {"backbone": 338, "root_net": 156},
    "selfpose3d": {"backbone": 338, "attn": 140, "pose_net": 156, "root_net": 156},
}


@pytest.mark.parametrize("name", PEOPLE)
def test_networks_of_several_people_fit_the_experiments_they_are_used_with(name):
    entry = CATALOGUE[name]
    words = entry.config.split()
    with torch.device("meta"):
        task = build(config.load(ROOT / words[0], words[1:]).with_values({"MODEL.PRETRAINED": "", "MODEL.INIT_WEIGHTS": False}))
    state = task.model.state_dict()
    held = {part: [key for key in state if key.startswith(f"{part}.")] for part in PEOPLE[name]}
    assert {part: len(keys) for part, keys in held.items()} == PEOPLE[name]
    if "MODEL.RESUME" in words:  # judged: nothing may be missing
        assert sum(map(len, held.values())) == len(state)
    found = Checkpoint("", {key: state[key] for keys in held.values() for key in keys}, source=name)
    assert set(start_parts(task.model, found, "panoptic15")) == set(PEOPLE[name])
    if "root_net" in held:
        assert state["root_net.v2v_net.front_layers.0.block.0.weight"].shape[1] == 1  # the root's heatmap alone
    assert entry.licence.startswith("MIT" if name == "voxelpose_backbone" else "CC BY-NC-SA 4.0") and not entry.url and not entry.score


def test_detectors_can_be_fetched_where_they_are_looked_for():
    for name in DETECTORS:
        assert CATALOGUE[name].path == get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    assert f"scripts/download.py {DETECTORS[0]}" in ADVICE and CATALOGUE[DETECTORS[0]].url in ADVICE


def test_the_table_of_the_readme_is_that_of_the_catalogue():
    text = (ROOT / "models" / "README.md").read_text()
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 6 and cells[0].strip("`") in CATALOGUE:
            rows[cells[0].strip("`")] = cells
    assert list(rows) == list(CATALOGUE)
    for entry in CATALOGUE.values():
        name, what, path, use, score, source = rows[entry.name]
        assert what == entry.text and path == f"`{entry.path}`" and use == f"`{entry.config}`"
        assert score == (f"“{entry.score}”" if entry.score else "") and (entry.url or entry.page) in source and entry.licence in source
    for command in ("scripts/download.py --list", "scripts/convert.py inspect", "scripts/convert.py convert"):
        assert command in text
