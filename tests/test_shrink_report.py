import builtins
import copy
import json
import pickle

import pytest
from torch import nn

import dualprox as dp
from dualprox.shrinking.report import attach_report
from dualprox.timing import Timing


def cost(parameters, median):
    timing = Timing(median, median * 0.9, median * 1.1, 9, 1)
    latencies = (dp.Latency(1, timing), dp.Latency(64, None, "RuntimeError: too large"))
    return dp.Cost(parameters, 10, 4 * (parameters + 10), 2 * parameters, latencies)


@pytest.fixture
def report():
    layers = (
        dp.LayerChange("stem.conv", "Conv2d 3->64 7x7", "Conv2d 3->20 7x7", 9408, 2940, 44, 44),
        dp.LayerChange("fc", "Linear 512->10", "Linear 512->10", 5130, 5130, 3, 0, "it is read"),
    )
    plan = {"change": "test", "layers": {"stem.conv": {"rank": 3}}}
    return dp.ShrinkReport(layers, cost(25_600_000, 0.0312), cost(3_100_000, 0.0099), 1e-6, plan)


def test_the_printed_report_says_what_changed_and_what_it_saves(report):
    lines = str(report).splitlines()
    assert lines[0].split() == "layer before after parameters dead removed stayed because".split()
    assert "9,408 -> 2,940" in lines[1] and lines[1].endswith("44       44")
    assert lines[2].startswith("fc ") and lines[2].count("Linear") == 1
    assert lines[2].endswith("it is read")
    assert "parameters 25.6 M -> 3.1 M (12.1%)" in lines
    assert "MACs 51.2 M -> 6.2 M (12.1%)" in lines
    assert "file size 102 MB -> 12.4 MB (12.1%)" in lines
    assert "latency, batch 1: 31.2 ms ± 3.12 ms -> 9.9 ms ± 990 µs (3.15x as fast)" in lines
    refused = "does not run (RuntimeError: too large)"
    assert f"latency, batch 64: {refused} -> {refused}" in lines
    assert lines[-1] == "outputs differ by at most 1e-06"


def test_a_report_is_written_as_json_and_read_back(report, tmp_path):
    report.to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["layers"][0]["name"] == "stem.conv" and content["layers"][1]["dead"] == 3
    assert content["before"]["latencies"][0]["timing"]["median"] == 0.0312
    assert content["after"]["latencies"][1]["timing"] is None
    assert content["plan"] == report.plan and content["max_abs_diff"] == 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_report_is_drawn(report, tmp_path):
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_says_what_is_missing(report, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r'pip install "dualprox\[lab\]"'):
        report.plot(tmp_path / "report.png")
    assert not list(tmp_path.iterdir())


def test_a_model_carries_its_report_through_copies_and_pickles(report):
    model = attach_report(nn.Linear(2, 2), report)
    assert set(model.state_dict()) == {"weight", "bias"}
    assert list(model.children()) == []
    assert copy.deepcopy(model).report == report
    assert pickle.loads(pickle.dumps(model)).report == report
    attach_report(model, report)
    model.load_state_dict(nn.Linear(2, 2).state_dict())


class Reporter(nn.Linear):
    def report(self):
        return "mine"


def test_a_models_own_attribute_is_not_hidden(report):
    with pytest.raises(ValueError, match="no attribute `report` of its own, got one in Reporter"):
        attach_report(Reporter(2, 2), report)
    assert attach_report(nn.Sequential(Reporter(2, 2)), report).report == report
