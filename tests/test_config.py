"""lib/config.py: what loads, what each mistake is answered with, and that the result cannot change."""

import copy
import json
import logging
import pickle
import re

import pytest
from easydict import EasyDict

from lib import config
from lib.config import Config, defaults, load
from lib.errors import ConfigError
from tests.conftest import ROOT


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a YAML file into an empty working directory and returns its relative name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "c.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return write


# ------------------------------------------------------------------------------------------------------ what loads


def test_defaults_fit_their_own_checks():
    cfg = defaults()
    assert cfg.with_values(cfg.flat()) == cfg
    assert cfg.source("TRAIN.LR") == "default"
    assert all(key.doc.endswith(".") for key in config.SCHEMA.keys.values())


def test_choices_are_those_of_the_tables():
    from lib.loss import LOSSES
    from lib.tasks import TASKS

    keys = config.SCHEMA.keys
    assert set(keys["TASK"].choices) == set(TASKS)
    assert set(keys["LOSS.FN"].choices) == {*LOSSES, "HeatmapMSELoss"}


def test_file_then_command_line(write):
    file = write("TASK: epipolar\nTRAIN:\n  LR: 1e-4\n  LR_STEP: [5]\n  WD: 1\nMODEL:\n  EXTRA:\n    NUM_LAYERS: 18\n")
    cfg = load(file, ["TRAIN.LR_STEP", "[7, 9]", "MODEL.IMAGE_SIZE=[256,192]", "TRAIN.CLIP", "2", "TRAIN.RESUME=true"])
    assert cfg.TASK == "epipolar" and cfg.TRAIN.LR == 1e-4
    assert cfg.TRAIN.LR_STEP == (7, 9) and cfg.MODEL.IMAGE_SIZE == (256, 192) and cfg.TRAIN.RESUME is True
    assert cfg.TRAIN.WD == 1.0 and isinstance(cfg.TRAIN.WD, float) and isinstance(cfg.TRAIN.CLIP, float)
    assert cfg.MODEL.EXTRA.NUM_LAYERS == 18 and cfg.MODEL.EXTRA.NUM_DECONV_LAYERS == 3  # merged, not replaced
    assert cfg.source("TRAIN.LR") == "c.yaml:3" and cfg.source("TRAIN.LR_STEP") == "command line"
    assert str(cfg.error("TRAIN.LR", "too large")) == "c.yaml:3: TRAIN.LR: too large"
    assert str(cfg.error("TRAIN.MOMENTUM", "too large")) == "c.yaml: TRAIN.MOMENTUM: too large"
    assert cfg.file == "c.yaml"


@pytest.mark.parametrize("text", ["off", "'off'", "false", "no"])
def test_amp_takes_what_yaml_makes_of_off(write, text):
    assert load(write(f"AMP: {text}")).AMP == "off"
    assert load(None, ["AMP", "off"]).AMP == "off"


def test_command_line_texts_need_no_quotes():
    typed = ["EXP_NAME", "007", "OUTPUT_DIR=a: [b", "TEST.JOINTS", "14", "DATASET.SKELETON", "", "TEST.PROTOCOL=x=y"]
    cfg = load(None, typed)
    assert (cfg.EXP_NAME, cfg.OUTPUT_DIR, cfg.TEST.JOINTS) == ("007", "a: [b", "14")
    assert (cfg.DATASET.SKELETON, cfg.TEST.PROTOCOL) == ("", "x=y")


def test_base_chain_is_relative_and_the_leaf_wins(write):
    write("TRAIN:\n  LR: 0.1\n  WD: 0.1\n  CLIP: 0.1\n", "bases/root.yaml")
    write("BASE: root.yaml\nTRAIN:\n  WD: 0.2\n  CLIP: 0.2\n", "bases/middle.yaml")
    cfg = load(write("TRAIN:\n  CLIP: 0.3\nBASE: ../bases/middle.yaml\n", "exp/leaf.yaml"))  # BASE is read first anyway
    assert (cfg.TRAIN.LR, cfg.TRAIN.WD, cfg.TRAIN.CLIP) == (0.1, 0.2, 0.3)
    assert cfg.source("TRAIN.LR") == "bases/root.yaml:2" and cfg.source("TRAIN.CLIP") == "exp/leaf.yaml:2"


def test_anchors_and_merge_keys(write):
    cfg = load(write("TRAIN: &t\n  BATCH_SIZE: 8\nTEST:\n  <<: *t\n  FLIP_TEST: true\n"))
    assert cfg.TEST.BATCH_SIZE == 8 and cfg.TEST.FLIP_TEST


def test_empty_files_and_sections_are_fine(write):
    assert load(write("")) == load(write("TRAIN:\n  # LR: 1\nMODEL: {}\n")) == defaults()


def test_options_are_free(write):
    file = write("BASE: b.yaml\nDATASET:\n  OPTIONS:\n    subjects: [1, 5]\n    nested: {a: null}\n")
    write("DATASET:\n  OPTIONS: {subjects: [9], step: 2}\n", "b.yaml")
    cfg = load(file, ["DATASET.OPTIONS.scale", "1.5"])
    assert cfg.DATASET.OPTIONS == {"subjects": (1, 5), "step": 2, "nested": {"a": None}, "scale": 1.5}
    assert cfg.source("DATASET.OPTIONS.subjects") == "c.yaml:4" and cfg.source("DATASET.OPTIONS.step") == "b.yaml:2"
    assert load(file, ["DATASET.OPTIONS", "{only: 1}"]).DATASET.OPTIONS == {"only": 1}
    assert cfg.with_values({"DATASET.OPTIONS": {}}).DATASET.OPTIONS == {}


def test_keys_of_published_files_warn_once_by_name(write, caplog):
    data = "DATASET:\n  TRI: false\n  FLIP: false\n"
    file = write(f"GPUS: '0,1'\nCUDNN:\n  BENCHMARK: true\n{data}DEBUG:\n  DEBUG: false\n")
    with caplog.at_level(logging.WARNING, "parallax"):
        cfg = load(file, ["TEST.OKS_THRE", "0.9"])
    assert [r.getMessage() for r in caplog.records] == [
        "c.yaml: ignored: nothing reads GPUS, CUDNN, DATASET.TRI, DEBUG.DEBUG, TEST.OKS_THRE (docs/config.md says why)"]
    assert cfg == defaults().with_values({"DATASET.FLIP": False}) and "TRI" not in cfg.DATASET


# ---------------------------------------------------------------------------------------------------------- mistakes

FILES = [  # text of c.yaml, and what the message is
    ("MODEL:\n  NUM_JOINT: 17", "c.yaml:2: MODEL.NUM_JOINT is not a key; did you mean MODEL.NUM_JOINTS?"),
    ("NUM_JOINTS: 17", "c.yaml:1: NUM_JOINTS is not a key; did you mean MODEL.NUM_JOINTS?"),
    ("BATCH_SIZE: 17", "c.yaml:1: BATCH_SIZE is not a key; did you mean TRAIN.BATCH_SIZE or TEST.BATCH_SIZE?"),
    ("MODEL:\n  NUM_LAYERS: 18", "c.yaml:2: MODEL.NUM_LAYERS is not a key; did you mean MODEL.EXTRA.NUM_LAYERS?"),
    ("TRAIN:\n  SEED: 1", "c.yaml:2: TRAIN.SEED is not a key; did you mean SEED at the top level or SYNTH.SEED?"),
    ("TRAIN:\n  MODEL:\n    NAME: x", "c.yaml:2: TRAIN.MODEL is not a key; did you mean MODEL at the top level?"),
    ("train:\n  LR: 1", "c.yaml:1: train is not a key; did you mean TRAIN?"),
    ("SEED: 1\n\nTRIAN:\n  LR: 1", "c.yaml:3: TRIAN is not a key; did you mean TRAIN?"),
    ("XYZZY: 1", "c.yaml:1: XYZZY is not a key; see docs/config.md for all keys"),
    ("TRAIN.LR: 1", "c.yaml:1: TRAIN.LR: dotted names are for the command line; "
     "in a file write LR inside the section TRAIN"),
    ("TRAIN:\n  LR: 1e-3x", "c.yaml:2: TRAIN.LR: expected a number, got the text '1e-3x'"),
    ("TRAIN:\n  LR: '0.1'", "c.yaml:2: TRAIN.LR: expected a number, got the text '0.1'"),
    ("TRAIN:\n  LR: true", "c.yaml:2: TRAIN.LR: expected a number, got true"),
    ("TRAIN:\n  LR: .nan", "c.yaml:2: TRAIN.LR: expected a number, got the number nan"),
    ("TRAIN:\n  LR: 1e999", "c.yaml:2: TRAIN.LR: expected a number, got the text '1e999'"),
    ("TRAIN:\n  LR: 0", "c.yaml:2: TRAIN.LR: expected more than 0, got 0.0"),
    ("TRAIN:\n  BATCH_SIZE: 3.0", "c.yaml:2: TRAIN.BATCH_SIZE: expected a whole number, got the number 3.0"),
    ("TRAIN:\n  BATCH_SIZE: yes", "c.yaml:2: TRAIN.BATCH_SIZE: expected a whole number, got true"),
    ("TRAIN:\n  BATCH_SIZE: 0", "c.yaml:2: TRAIN.BATCH_SIZE: expected at least 1, got 0"),
    ("TRAIN:\n  RESUME: 1", "c.yaml:2: TRAIN.RESUME: expected true or false, got the number 1"),
    ("TRAIN:\n  LR_STEP: 90,110", "TRAIN.LR_STEP: expected a list such as [90, 110], got the text '90,110'"),
    ("TRAIN:\n  LR_STEP: 90", "c.yaml:2: TRAIN.LR_STEP: expected a list such as [90], got the number 90"),
    ("TRAIN:\n  LR_STEP: [90, 1.5]", "expected a list of whole numbers, got the number 1.5 in it"),
    ("TRAIN:\n  LR_STEP: [90, 30]", "TRAIN.LR_STEP: expected increasing epochs, the first after 0, got [90, 30]"),
    ("MODEL:\n  IMAGE_SIZE: [250, 256]", "MODEL.IMAGE_SIZE: expected [width, height], both positive multiples of 16, "
     "got [250, 256]"),
    ("MODEL:\n  IMAGE_SIZE: [256]", "MODEL.IMAGE_SIZE: expected [width, height]"),
    ("MODEL:\n  NUM_JOINTS: 0", "MODEL.NUM_JOINTS: expected at least 1, got 0"),
    ("MODEL:\n  EXTRA:\n    NUM_LAYERS: 42", "MODEL.EXTRA.NUM_LAYERS: expected one of 18, 34, 50, 101, 152, got 42"),
    ("MODEL:\n  EXTRA:\n    NUM_DECONV_LAYERS: 2", "MODEL.EXTRA.NUM_DECONV_LAYERS: expected one entry of "
     "NUM_DECONV_FILTERS for each of NUM_DECONV_LAYERS, got NUM_DECONV_LAYERS 2, NUM_DECONV_FILTERS [256, 256, 256]"),
    ("DATASET:\n  FLIP_PROB: 1.5", "DATASET.FLIP_PROB: expected between 0 and 1, got 1.5"),
    ("DATASET:\n  VIEWS: [1, 1]", "DATASET.VIEWS: expected different camera indices, counted from 0, got [1, 1]"),
    ("DATASET:\n  OPTIONS: 3", "DATASET.OPTIONS: expected a mapping such as {name: value}, got the number 3"),
    ("DATASET:\n  OPTIONS:\n    day: 2020-01-01", "DATASET.OPTIONS.day: expected a text, a number, true, false or"),
    ("MACHINE:\n  JOINT_MASK: {spine: often}", "c.yaml:2: MACHINE.JOINT_MASK.spine: expected a number, got the text 'often'"),
    ("MACHINE:\n  JOINT_MASK:\n    spine:", "c.yaml:3: MACHINE.JOINT_MASK.spine: expected a number, got nothing"),
    ("MACHINE:\n  JOINT_MASK: {spine: 1.5}", "c.yaml:2: MACHINE.JOINT_MASK.spine: expected between 0 and 1, got 1.5"),
    ("MACHINE:\n  LR_OF: {change: 2}", "c.yaml:2: MACHINE.LR_OF.change: expected a list such as [2.0], got the number 2"),
    ("MACHINE:\n  LR_OF: {change: [2]}", "c.yaml:2: MACHINE.LR_OF.change: expected two factors above 0, of weights and biases, got [2.0]"),
    ("WORKERS: -1", "c.yaml:1: WORKERS: expected at least 0, got -1"),
    ("DEVICE: 'GPU 0'", "c.yaml:1: DEVICE: expected auto, or the name of a torch device, got 'GPU 0'"),
    ("TRAIN:\n  BEGIN_EPOCH: 9\n  END_EPOCH: 8", "TRAIN.END_EPOCH: expected END_EPOCH not before BEGIN_EPOCH, "
     "got BEGIN_EPOCH 9, END_EPOCH 8"),
    ("EXP_NAME: 7", "c.yaml:1: EXP_NAME: expected a text, got the number 7; put it in quotes"),
    ("MODEL:\n  PRETRAINED:", "c.yaml:2: MODEL.PRETRAINED: expected a text, got nothing; write '' for an empty one"),
    ("EXP_NAME: 2020-99-99", "c.yaml:1: EXP_NAME: cannot be read: month must be in 1..12"),
    ("MODEL: 3", "c.yaml:1: MODEL: expected a section of keys such as 'SEED: 0', got the number 3"),
    ("MODEL:\n  NAME: {a: 1}", "c.yaml:2: MODEL.NAME: expected a text, got a section"),
    ("LOSS:\n  FN: SmothL1JointLocationLoss", "LOSS.FN: 'SmothL1JointLocationLoss' is not one of HeatmapMSELoss, "
     "L1JointLocationLoss, L2JointLocationLoss, SmoothL1JointLocationLoss (did you mean SmoothL1JointLocationLoss?)"),
    ("AMP: half", "c.yaml:1: AMP: 'half' is not one of auto, bf16, fp16, off"),
    ("SEED: 1\nTRAIN:\n  LR: 1\n  LR: 2", "c.yaml:4: TRAIN.LR is set twice, first in line 3"),
    ("SEED: 1\nSEED: 1", "c.yaml:2: SEED is set twice, first in line 1"),
    ("DATASET:\n  OPTIONS:\n    a: 1\n    a: 2", "c.yaml:4: DATASET.OPTIONS.a is set twice"),
    ("SEED: [1", "c.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ("TRAIN:\n\tLR: 1", "c.yaml:2: not valid YAML: found character '\\t' that cannot start any token (indent with"),
    ("TRAIN:\n  LR: *x", "c.yaml:2: not valid YAML: found undefined alias"),
    ("- SEED", "c.yaml:1: expected a section of keys such as 'SEED: 0', got the list ['SEED']"),
    ("SEED: 1\n---\nSEED: 2", "c.yaml:2: not valid YAML: but found another document"),
    ("on: 1", "c.yaml:1: expected the name of a key, got on"),
    ("TRAIN:\n  [a, b]: 1", "c.yaml:2: expected the name of a key in TRAIN, got a list or mapping"),
    ("SEED: !!python/object/apply:os.getpid []", "c.yaml:1: not valid YAML: could not determine a constructor for"),
    ("EXP_NAME: 'a\x00b'", "c.yaml: not valid YAML:"),
    ("SEED: " + "[" * 1000, "c.yaml: not valid YAML:"),
    ("TRAIN: &t\n  LR: *t", "c.yaml:1: not valid YAML: found unconstructable recursive node"),
    ("TRAIN:\n  LR_STEP: &a [*a]", "c.yaml:2: not valid YAML: found unconstructable recursive node"),
    ("BASE: gone.yaml", "c.yaml:1: BASE: no file 'gone.yaml'; the path is relative to the file that names it"),
    ("BASE: [a]", "c.yaml:1: BASE: expected the path of a YAML file, got the list ['a']"),
    ("BASE: ./c.yaml", "c.yaml:1: BASE: c.yaml -> c.yaml is a circle"),
    ("TRAIN:\n  BASE: c.yaml", "c.yaml:2: TRAIN.BASE is not a key"),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[re.sub(r"\W+", "-", text)[:40] for text, _ in FILES])
def test_mistakes_in_a_file(write, text, message):
    file = write(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(file)


ARGUMENTS = [
    (["TRAIN.LR_STEP", "90,110"], "command line: TRAIN.LR_STEP 90,110: expected a list such as [90, 110]"),
    (["TRAIN.LR=fast"], "command line: TRAIN.LR fast: expected a number"),
    (["TRAIN.LR_STEP", "&a [*a]"], "command line: TRAIN.LR_STEP &a [*a]: expected a list such as [90, 120]"),
    (["TRAIN.LR", "[1"], "command line: TRAIN.LR [1: expected a number"),
    (["LR", "0.1"], "command line: LR is not a key; did you mean TRAIN.LR or CORRECTION.LR?"),
    (["TRIAN.BATCH_SIZE", "1"], "command line: TRIAN.BATCH_SIZE is not a key; did you mean TRAIN.BATCH_SIZE?"),
    (["DATASET.OPTION.x", "1"], "command line: DATASET.OPTION.x is not a key; did you mean DATASET.OPTIONS?"),
    (["--lr=0.1"], "command line: --lr is not a key"),
    (["SEED", "1", "TRAIN.LR"], "command line: TRAIN.LR has no value; write TRAIN.LR VALUE or TRAIN.LR=VALUE"),
    (["TRAIN", "{LR: 1}"], "command line: TRAIN is a section; set one of its keys, such as TRAIN.BATCH_SIZE"),
    (["BASE", "x.yaml"], "command line: BASE can be set in a file only; give that file to --cfg"),
    (["DATASET.SUBJECTS", "S9"], "command line: DATASET.SUBJECTS S9: expected a list such as ['S9']"),
    (["MACHINE.JOINT_MASK", "{spine: [1]}"], "command line: MACHINE.JOINT_MASK.spine {spine: [1]}: expected a number"),
    (["MACHINE.JOINT_MASK.spine", "x"], "command line: MACHINE.JOINT_MASK.spine x: expected a number"),
    (["TRAIN.NESTEROV=true", "TRAIN.OPTIMIZER=sgd", "TRAIN.MOMENTUM=0"], "command line: TRAIN.NESTEROV: expected MOM"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=[" ".join(a) for a, _ in ARGUMENTS])
def test_mistakes_on_the_command_line(arguments, message):
    with pytest.raises(ConfigError) as caught:
        load(None, arguments)
    assert str(caught.value).startswith(message)
    assert message.endswith("]") is False or str(caught.value) == message  # nothing after the list that is proposed


def test_files_that_cannot_be_read(write, tmp_path):
    write("", "train.yaml")
    with pytest.raises(ConfigError, match=r"no configuration file 'trian.yaml'; did you mean train.yaml\?"):
        load("trian.yaml")
    with pytest.raises(ConfigError, match="is a folder; expected the YAML file of an experiment, such as one of those in it"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"EXP_NAME: \xe9\n")
    with pytest.raises(ConfigError, match="latin.yaml: not a UTF-8 text"):
        load("latin.yaml")


def test_base_circle_names_the_way(write):
    write("BASE: c.yaml", "b.yaml")
    with pytest.raises(ConfigError, match="b.yaml:1: BASE: c.yaml -> b.yaml -> c.yaml is a circle"):
        load(write("BASE: b.yaml"))


def test_an_error_in_a_base_file_names_that_file(write):
    write("SEED: 1\nSEDE: 1", "b.yaml")
    with pytest.raises(ConfigError, match=r"^b.yaml:2: SEDE is not a key; did you mean SEED\?"):
        load(write("BASE: b.yaml"))


# ------------------------------------------------------------------------------------------------------------ checks


def test_sections_the_task_does_not_read(write):
    write("EPIPOLAR:\n  MIN_CONF: 0.5\n", "b.yaml")
    reads = ("TRAIN", "MODEL")
    load(write("BASE: b.yaml\nTRAIN:\n  LR: 1\nSEED: 3")).check_sections(reads, "integral")  # BASE files are exempt
    cfg = load(write("BASE: b.yaml\nEPIPOLAR:\n  METHOD: dlt\n"))
    with pytest.raises(ConfigError) as caught:
        cfg.check_sections(reads, "integral")
    assert str(caught.value) == "c.yaml:3: EPIPOLAR.METHOD is set, but TASK integral does not read EPIPOLAR"
    cfg.check_sections((*reads, "EPIPOLAR"), "epipolar")
    with pytest.raises(ConfigError, match="^command line: LOSS.BETA is set, but TASK integral does not read LOSS$"):
        load(None, ["LOSS.BETA", "2"]).check_sections(reads, "integral")
    whole = defaults().with_values({"LOSS.BETA": 2})
    whole.check_sections(reads, "integral")  # a stored configuration holds all keys,
    load(write(whole.to_yaml())).check_sections(reads, "integral")  # and so does the config.yaml of a run


def test_input_files_must_exist(write):
    cfg = load(write("MODEL:\n  PRETRAINED: models/backbone.pth\n"))
    with pytest.raises(ConfigError) as caught:
        cfg.check_paths()
    assert str(caught.value) == (
        "c.yaml:2: MODEL.PRETRAINED: no file 'models/backbone.pth'; train what makes it first "
        "(OUTPUT_DIR/<dataset>/<model>/<name of its YAML>/), or see models/README.md for the download")
    write("", "models/backbone.pth")
    cfg.check_paths()
    defaults().with_values({"EPIPOLAR.TEACHER": "annotation", "EPIPOLAR.CACHE": "new.npz"}).check_paths()


# ------------------------------------------------------------------------------------------------------------ frozen

CHANGES = {
    "attribute": lambda cfg: setattr(cfg, "SEED", 1),
    "new attribute": lambda cfg: setattr(cfg.MODEL, "NEW", 1),
    "item": lambda cfg: cfg.TRAIN.__setitem__("LR", 1.0),
    "delete item": lambda cfg: cfg.TRAIN.__delitem__("LR"),
    "delete attribute": lambda cfg: delattr(cfg.TRAIN, "LR"),
    "update": lambda cfg: cfg.TRAIN.update(LR=1.0),
    "pop": lambda cfg: cfg.TRAIN.pop("LR"),
    "popitem": lambda cfg: cfg.popitem(),
    "setdefault": lambda cfg: cfg.TRAIN.setdefault("NEW", 1),
    "clear": lambda cfg: cfg.MODEL.EXTRA.clear(),
    "merge": lambda cfg: cfg.TRAIN.__ior__({"LR": 1.0}),
    "options": lambda cfg: cfg.DATASET.OPTIONS.update(a=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_nothing_can_be_changed_in_place(change):
    cfg = defaults()
    with pytest.raises(ConfigError, match="frozen.*with_values.*command line"):
        change(cfg)
    assert cfg == defaults() and isinstance(cfg, EasyDict)


def test_lists_cannot_be_changed_either():
    cfg = load(None, ["DATASET.OPTIONS", "{a: [1, [2]]}"])
    assert isinstance(cfg.TRAIN.LR_STEP, tuple) and cfg.DATASET.OPTIONS.a == (1, (2,))
    cfg.to_dict()["TRAIN"]["LR_STEP"].append(3)  # the plain copy is the caller's
    assert cfg.TRAIN.LR_STEP == (90, 120) and defaults().TRAIN.LR_STEP == (90, 120)


def test_a_missing_attribute_says_what_there_is():
    with pytest.raises(AttributeError, match="section MODEL has no key NUM_JOINT; did you mean NUM_JOINTS?"):
        defaults().MODEL.NUM_JOINT  # noqa: B018
    assert not hasattr(defaults(), "NOTHING")


CLONES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda cfg: pickle.loads(pickle.dumps(cfg))}


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES.keys())
def test_copies_are_equal_frozen_and_know_their_sources(write, clone):
    cfg = load(write("TRAIN:\n  LR: 0.5"), ["DATASET.OPTIONS.a=[1]"])
    other = clone(cfg)
    assert other == cfg and isinstance(other, Config) and other.hash() == cfg.hash()
    assert other.source("TRAIN.LR") == "c.yaml:2" and other.file == "c.yaml"
    with pytest.raises(ConfigError):
        other.TRAIN.LR = 1.0


def test_yaml_and_dict_lead_back(write):
    options = "{a: [1, null], b: {c: 'on'}}"
    cfg = load(None, ["TRAIN.LR", "1e-5", "AMP=off", "EXP_NAME=1e-3", "DATASET.OPTIONS", options])
    assert load(write(cfg.to_yaml())) == cfg
    assert json.loads(json.dumps(cfg.to_dict())) == cfg.to_dict()
    assert load(write(cfg.to_yaml())).hash() == cfg.hash() != defaults().hash()


def test_with_values_is_typed_and_leaves_the_original():
    cfg = load(None, ["TRAIN.LR", "0.5"])
    other = cfg.with_values({"TRAIN.WD": 1, "MODEL.IMAGE_SIZE": (64, 96)})
    assert other.TRAIN.WD == 1.0 and other.MODEL.IMAGE_SIZE == (64, 96) and cfg.TRAIN.WD == 0.0
    assert other.source("TRAIN.LR") == "command line" and other.source("TRAIN.WD") == "with_values"
    with pytest.raises(ConfigError, match="with_values: TRAIN.LR: expected a number, got the text 'x'"):
        cfg.with_values({"TRAIN.LR": "x"})
    with pytest.raises(ConfigError, match=r"with_values: TRAIN.LE is not a key; did you mean TRAIN.LR\?"):
        cfg.with_values({"TRAIN.LE": 1.0})


def test_the_reference_page_is_up_to_date():
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == config.reference(), "run: python -m lib.config > docs/config.md"
    assert all(f"`{dotted}`" in page for dotted in config.SCHEMA.keys)


def test_every_key_is_read_somewhere():
    """A key that nothing reads promises what it does not do; such names belong into LEGACY."""
    files = [p for folder in ("lib", "scripts", "refiner") for p in (ROOT / folder).rglob("*.py") if p.name != "config.py"]
    code = "\n".join(p.read_text() for p in files)
    unread = [key for key in defaults().flat() if not re.search(rf"\b{key.rpartition('.')[2]}\b", code)]
    assert not unread
