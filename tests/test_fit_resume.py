"""A fit that is interrupted goes on from its file, to the bits of one that was not."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import dualprox as dp
from dualprox.fitting.result import Progress
from fitting_cases import StopError, batches, network
from lab_runs import assert_equal

LOW_RANK = dp.NuclearNorm(1.0)  # nothing needs to be traced


def loader(name: str) -> DataLoader[Any]:
    """Batches in another order every epoch, drawn by torch's global generator."""
    inputs, labels = zip(*batches(name), strict=True)
    return DataLoader(TensorDataset(torch.cat(inputs), torch.cat(labels)), 16, shuffle=True)


def fit(name: str, file: Path | None, stop_after: int = 0, **more: Any) -> dp.Fit:
    def watch(now: Progress) -> None:
        if now.epoch == stop_after + 1:
            raise StopError

    model = network(name)
    target = more.pop("target", dp.TargetSize(params=0.5))
    return dp.fit(
        model, loader(name), 6, target, latency=False, checkpoint=file,
        watch=watch if stop_after else None, **more,
    )  # fmt: skip


def assert_same_fit(one: dp.Fit, other: dp.Fit) -> None:
    assert_equal(one.model.state_dict(), other.model.state_dict(), "model")
    assert one.history == other.history and one.notes == other.notes and one.plan == other.plan
    assert one.reached == other.reached and one.report.to_dict() == other.report.to_dict()


@pytest.mark.promise("faults", "a fit that is stopped goes on to the same bits", "interruptions")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("mlp", {"optimizer": "ramda"}),
        ("mlp", {"penalty": LOW_RANK}),
        ("mlp", {"target": dp.TargetSize(nonzeros=0.3)}),
        ("cnn", {"penalty": dp.GroupLasso(1.0), "optimizer": "rmda", "refit": False}),
    ],
)
def test_a_fit_stopped_in_every_stage_ends_with_the_same_bits(
    name: str, more: dict[str, Any], tmp_path: Path, tries: Any
) -> None:
    whole = fit(name, None, **more)
    stages = [row["stage"] for row in whole.history]
    assert {"warmup", "search"} <= {*stages}, stages
    file = tmp_path / "fit.pt"
    for done in (1, 3, 5):
        with tries.one():
            with pytest.raises(StopError):
                fit(name, file, done, **more)
            assert torch.load(file, weights_only=True)["epoch"] == done
    again = fit(name, file, **more)
    assert_same_fit(whole, again)
    assert again.seconds > 0
    # Of a fit that is finished nothing is trained again.
    assert_same_fit(whole, fit(name, file, **more))
    assert [path.name for path in tmp_path.iterdir()] == ["fit.pt"]


class Counting:
    """Batches whose order is decided by how often they were gone through."""

    def __init__(self) -> None:
        self.data, self.passes = batches("mlp"), 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Any:
        self.passes += 1
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.passes))
        return iter([self.data[index] for index in order])


class Restored(Counting):
    """The same, with torch's two methods to go on after a pass."""

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes = state["passes"]


def test_a_loader_that_has_a_state_is_saved_with_it(tmp_path: Path) -> None:
    def fit(loader: Counting, file: Path, epochs_left: int | None = None) -> Tensor:
        def watch(now: Progress) -> None:
            if now.epoch == epochs_left:
                raise StopError

        found = dp.fit(
            network("mlp"), loader, 4, dp.TargetSize(params=0.5), latency=False,
            checkpoint=file, watch=watch, penalty=LOW_RANK,
        )  # fmt: skip
        return torch.cat([param.detach().flatten() for param in found.model.parameters()])

    ends = []
    for kind in (Restored, Counting):
        whole = fit(kind(), tmp_path / f"{kind.__name__}.whole")
        file = tmp_path / f"{kind.__name__}.stopped"
        with pytest.raises(StopError):
            fit(kind(), file, 3)
        ends.append(torch.equal(whole, fit(kind(), file)))
    assert ends == [True, False]  # False: else the test could not fail


class Drawing(Counting):
    """Batches in an order that Python and numpy draw."""

    def __iter__(self) -> Any:
        order = random.sample(range(len(self.data)), len(self.data))
        return iter([self.data[order[index]] for index in np.random.permutation(len(order))])


def test_the_random_numbers_of_python_and_numpy_go_on_too(tmp_path: Path) -> None:
    def fit(stop_after: int | None = None) -> Tensor:
        def watch(now: Progress) -> None:
            if now.epoch == stop_after:
                raise StopError

        random.seed(1)
        np.random.seed(1)
        found = dp.fit(
            network("mlp"), Drawing(), 4, dp.TargetSize(params=0.5), latency=False,
            checkpoint=tmp_path / f"{stop_after or 'whole'}.pt", watch=watch, penalty=LOW_RANK,
        )  # fmt: skip
        return torch.cat([param.detach().flatten() for param in found.model.parameters()])

    whole = fit()
    with pytest.raises(StopError):
        fit(3)
    (tmp_path / "3.pt").rename(tmp_path / "whole.pt")
    assert torch.equal(fit(), whole)


def test_a_file_that_does_not_fit_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "fit.pt"
    low: dict[str, Any] = {"penalty": LOW_RANK, "refit_lr": 0.05}
    fit("mlp", file, **low)
    kept = file.read_bytes()
    with pytest.raises(ValueError, match=r"fit.pt is of a fit with target 0.5, here 0.25"):
        fit("mlp", file, target=dp.TargetSize(params=0.25), **low)
    wishes: list[tuple[dict[str, Any], str]] = [
        ({"at_least": {"0.weight": 0.9}}, r"at least {}, here {'0.weight': 0.9}"),
        ({"at_most": {"0.weight": 0.9}}, r"at most {}, here {'0.weight': 0.9}"),
        ({"tolerance": 0.1}, "tolerance 0.03, here 0.1"),
    ]
    for wish, said in wishes:
        with pytest.raises(ValueError, match=f"fit.pt is of a fit with {said}"):
            fit("mlp", file, target=dp.TargetSize(params=0.5, **wish), **low)
    with pytest.raises(ValueError, match=r"fit.pt is of a fit with lr 0.5, here 0.01"):
        fit("mlp", file, lr=0.01, **low)
    with pytest.raises(ValueError, match=r"fit.pt is damaged: RuntimeError: Error"):
        fit("cnn", file, **low)
    assert file.read_bytes() == kept
    for content, message in ((kept[: len(kept) // 2], "is damaged"), (b"", "is damaged")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"checkpoint {file} {message}"):
            fit("mlp", file, **low)
        assert file.read_bytes() == content
    torch.save({"weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"fit.pt is no checkpoint of a fit"):
        fit("mlp", file, **low)
    for place in (tmp_path, tmp_path / "nowhere" / "fit.pt"):
        with pytest.raises(ValueError, match="checkpoint must be a file in a folder that exists"):
            fit("mlp", place, **low)
