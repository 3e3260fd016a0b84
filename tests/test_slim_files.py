"""Files of slim networks: weights with a plan, exported programs, ONNX."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    model = network()
    with torch.no_grad():
        model.get_parameter("5.weight")[:, :3] = 0.0
        model.get_parameter("0.weight")[6] = 0.0  # constant behind the norm, goes into a bias
        model.get_parameter("1.bias")[6] = 0.7
    return dp.shrink(model, torch.randn(1, 3, 8, 8), latency=False)


def example(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_weights_and_plan_rebuild_the_network_around_its_class(
    slim: nn.Module, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    dp.save_slim(slim, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"slim.safetensors", "plan.json"}
    again = dp.load_slim(network(), tmp_path).eval()
    assert again.get_parameter("0.weight").shape == (4, 3, 3, 3)
    assert torch.equal(again(example(5)), slim(example(5)))


def test_thin_and_sparse_networks_come_back_too(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    torch.manual_seed(0)
    x = torch.randn(4, 64)

    def fresh() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()

    model = fresh()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.randn(64, 3) @ torch.randn(3, 64))
    thin = dp.factorize(model, x, latency=False)
    dp.save_slim(thin, tmp_path / "thin")
    assert torch.equal(dp.load_slim(fresh(), tmp_path / "thin").eval()(x), thin(x))
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(torch.rand(64, 64) < 0.05)
    sparse = dp.sparsify(model, x, faster_only=False, latency=False)
    dp.save_slim(sparse, tmp_path / "sparse")
    assert torch.equal(dp.load_slim(fresh(), tmp_path / "sparse").eval()(x), sparse(x))


def test_damaged_files_are_refused_by_name(slim: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    dp.save_slim(slim, tmp_path)
    weights = (tmp_path / "slim.safetensors").read_bytes()
    (tmp_path / "slim.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"slim\.safetensors is damaged"):
        dp.load_slim(network(), tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is not a plan"):
        dp.load_slim(network(), tmp_path)


def test_a_plan_can_set_sizes_and_nothing_else(slim: nn.Module, tmp_path: Path) -> None:
    dp.save_slim(slim, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["attributes"]["0"]["forward"] = "os.system"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"plan must set sizes, got 'os.system' for 0.forward"):
        dp.load_slim(network(), tmp_path)


def test_a_plan_for_another_network_is_refused(slim: nn.Module, tmp_path: Path) -> None:
    dp.save_slim(slim, tmp_path)
    with pytest.raises(ValueError, match=r"no module '1'|has no tensor"):
        dp.load_slim(nn.Sequential(nn.Linear(3, 2)), tmp_path)


def test_a_network_without_a_report_is_not_slim(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slim must be made by shrink"):
        dp.save_slim(network(), tmp_path)


def test_an_exported_program_runs_at_any_batch(slim: nn.Module, tmp_path: Path) -> None:
    dp.save_program(slim, example(1), tmp_path / "slim.pt2")
    program = torch.export.load(tmp_path / "slim.pt2").module()
    torch.testing.assert_close(program(example(7)), slim(example(7)))


def test_onnxruntime_computes_what_torch_computes(slim: nn.Module, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert dp.save_onnx(slim, example(1), tmp_path / "slim.onnx") < 1e-5
    session = ort.InferenceSession(tmp_path / "slim.onnx")
    (feed,) = session.get_inputs()
    (found,) = session.run(None, {feed.name: example(6).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), slim(example(6)))


def test_a_network_of_one_batch_size_keeps_the_examples(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.view(3, 4))

    model = Fixed().eval()
    assert dp.save_onnx(model, torch.randn(3, 4), tmp_path / "fixed.onnx") < 1e-5
    assert ort.InferenceSession(tmp_path / "fixed.onnx").get_inputs()[0].shape == [3, 4]


def test_an_onnx_file_that_computes_something_else_is_not_kept(
    slim: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    true_run = ort.InferenceSession.run

    def wrong(self: Any, *args: Any) -> Any:
        return [array * 1.01 for array in true_run(self, *args)]

    monkeypatch.setattr(ort.InferenceSession, "run", wrong)
    with pytest.raises(dp.ShrinkError, match="onnxruntime's outputs differ"):
        dp.save_onnx(slim, example(1), tmp_path / "slim.onnx")
    assert not list(tmp_path.iterdir())


def test_a_plan_is_applied_as_the_report_holds_it(slim: nn.Module) -> None:
    plan = json.loads(json.dumps(dp.report_of(slim).plan))
    again = dp.apply_plan(network(), plan)
    again.load_state_dict(slim.state_dict())
    assert torch.equal(again.eval()(example(2)), slim(example(2)))
    with pytest.raises(ValueError, match="got one of factorize: factorize_like takes it"):
        dp.apply_plan(network(), {"change": "factorize", "layers": {}})


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(dp.ShrinkError, match=r"torch\.export cannot export Sorted"):
        dp.save_onnx(Sorted(), torch.ones(2, 2), tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())
