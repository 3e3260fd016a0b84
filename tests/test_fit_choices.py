"""What `fit` decides by itself, and that it does what its plan says."""

from typing import Any

import pytest
from torch import Tensor, nn

from dualprox.fitting.control import SizeControl
from fitting_cases import fitted, network


class OwnRMSNorm(nn.Module):
    """As model libraries have their own."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("name", "norms", "optimizer", "refit", "steer"),
    [
        ("mlp", [], "ramda", ("adamw", 3e-3), 0.65),
        ("mlp", [], "rmda", ("sgd", 0.05), 0.65),
        ("cnn", [], "rmda", ("sgd", 0.1), 0.65),
        ("transformer", [], "ramda", ("adamw", 1.5e-3), 0.65),
        ("transformer", [], "rmda", ("adamw", 1.5e-3), 1.0),
        ("mlp", [OwnRMSNorm()], "rmda", ("adamw", 1.5e-3), 1.0),
    ],
)
def test_what_is_decided_depends_on_the_norms_of_the_network(
    name: str,
    norms: list[nn.Module],
    optimizer: Any,
    refit: tuple[str, float],
    steer: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan says it, and the strength is found anew in the share of the search that it says."""
    looks: list[int] = []
    look = SizeControl._steer

    def counted(control: SizeControl, goal: float, weigh: bool = True) -> float:
        if weigh:
            looks.append(control.steps)
        return look(control, goal, weigh)

    monkeypatch.setattr(SizeControl, "_steer", counted)
    model = nn.Sequential(*norms, network(name)) if norms else network(name)
    plan = fitted(name, 10, model=model, optimizer=optimizer).plan
    assert (plan.refit_optimizer, plan.refit_lr, plan.steer) == (*refit, steer)
    searched = round((plan.warmup_epochs + plan.search_epochs) * 8) - round(plan.warmup_epochs * 8)
    assert max(looks) == round(steer * searched)
