"""The benchmarks' own parts: what they compare is the same, and what they count is right."""

import torch

from lib.geometry.heatmap import soft_argmax
from scripts.benchmarks import integral, model
from scripts.benchmarks.engine import covered
from scripts.benchmarks.harness import PeakMemory, Report


def test_the_plain_soft_argmax_and_ours_agree():
    integral.check(torch.device("cpu"), joints=2, side=9)


def test_the_head_needs_no_more_memory_than_its_gradient():
    shape = (2, 17, 64, 64, 64)
    ours, plain = (integral.extra_memory(name, shape, torch.device("cpu")) for name in (integral.OURS, integral.PLAIN))
    assert 1 <= ours <= 1.1 and plain >= 2.9


def test_peak_memory_counts_what_lives_at_once():
    def work():
        for _ in range(3):  # one after the other
            x = torch.zeros(1000)
            del x
        return torch.zeros(500), torch.zeros(500)[:1]

    assert PeakMemory.of(work) == 4000


def test_forward_alone_keeps_marginals_only():
    logits = torch.randn(2, 17, 64, 64, 64)
    assert PeakMemory.of(lambda: soft_argmax(logits)) < 0.1 * logits.nbytes


def test_ways_of_running_the_network_pass_their_own_check():
    size = model.Size(layers=18, batch=1, side=64, device="cpu")
    for way in (model.Way(frozen=True), model.Way(False, plain=True)):
        function, items, _ = model.prediction("ours", way, size)
        assert items == 1 and function(0).shape == (1, model.JOINTS, model.DEPTH, 16, 16)
        model.training_step("ours", way, size)[0](0)


def test_time_on_the_device_is_counted_once():
    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


def test_curves_are_shown_as_means_of_equal_parts():
    report = Report("engine", "crops", {}, curves={"float32": [1.0, 3.0, 5.0], "bf16": [1.0, 3.0, 4.0]})
    lines = report.table().splitlines()
    assert lines[-1].split() == ["3", "to", "3", "5.0000", "4.0000"] and report.to_dict()["curves"]["bf16"] == [1.0, 3.0, 4.0]
