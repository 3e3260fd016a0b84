"""What can be asked for, and what is said where it cannot."""

from typing import Any

import pytest

import dualprox as dp

GOOD: list[dict[str, Any]] = [
    {"params": 0.5}, {"params": 1.0}, {"params": 1}, {"params": 12_345}, {"macs": 1e-3},
    {"macs": 10**9}, {"latency_ms": 0.1}, {"latency_ms": 3}, {"weighted_group_sparsity": 0},
    {"weighted_group_sparsity": 0.99}, {"nonzeros": 0.05}, {"nonzeros": 999},
]  # fmt: skip
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "one of params, macs, latency_ms, weighted_group_sparsity, nonzeros must be given, got "
     "none"),
    ({"params": 0.5, "macs": 0.5}, r"exactly one of .* must be given, got params=0.5, macs=0.5"),
    *(({name: value}, rf"{name} must be a share in \(0, 1\] or an int >= 1, got ")
      for name in ("params", "macs", "nonzeros")
      for value in (0, 0.0, -0.5, 1.5, -3, float("nan"), float("inf"), True, "0.5")),
    *(({"latency_ms": value}, "latency_ms must be a number > 0, got ")
      for value in (0, -1.0, float("nan"), float("inf"), True, "1")),
    *(({"weighted_group_sparsity": value}, r"weighted_group_sparsity must be in \[0, 1\), got ")
      for value in (1, 1.0, -0.1, float("nan"), False, "0.5")),
    ({"params": 0.5, "batch_size": 0}, "batch_size must be an int >= 1, got 0"),
    ({"params": 0.5, "batch_size": 2.0}, r"batch_size must be an int >= 1, got 2\.0"),
    ({"params": 0.5, "tolerance": 0}, "tolerance must be a number > 0, got 0"),
    ({"params": 0.5, "tolerance": -1.0}, "tolerance must be a number > 0, got"),
    ({"params": 0.5, "at_least": {"*": 1.5}}, r"at_least\['\*'\] must be in \[0, 1\], got 1\.5"),
    ({"params": 0.5, "at_most": {"a": -1}}, r"at_most\['a'\] must be in \[0, 1\], got -1"),
]  # fmt: skip


@pytest.mark.parametrize("settings", GOOD, ids=str)
def test_one_measure_is_asked_for(settings: dict[str, Any]) -> None:
    target = dp.TargetSize(**settings)
    ((name, value),) = settings.items()
    assert (target.measure, target.value) == (name, value)
    assert repr(target) == f"TargetSize({name}={value!r})"


@pytest.mark.parametrize(("settings", "message"), BAD, ids=str)
def test_refusals_name_setting_rule_and_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.TargetSize(**settings)


def test_repr_shows_what_was_chosen_and_makes_the_same_again() -> None:
    target = dp.TargetSize(
        latency_ms=2.5, batch_size=8, at_least={"a.*": 0.5}, at_most={"*": 0.9}, tolerance=0.01
    )
    assert repr(target) == (
        "TargetSize(latency_ms=2.5, batch_size=8, at_least={'a.*': 0.5}, at_most={'*': 0.9}, "
        "tolerance=0.01)"
    )
    assert eval(repr(target), {"TargetSize": dp.TargetSize}) == target


def test_a_target_is_a_share_of_the_dense_size() -> None:
    assert dp.TargetSize(params=0.25).share_of(400) == 0.25
    assert dp.TargetSize(params=100).share_of(400) == 0.25
    assert dp.TargetSize(params=500).share_of(400) == 1.0
    assert dp.TargetSize(params=1).share_of(400) == 1 / 400
    assert dp.TargetSize(weighted_group_sparsity=0.75).share_of(7) == 0.25
    assert dp.TargetSize(latency_ms=1.5).share_of(6.0) == 0.25


def test_the_tightest_bounds_of_all_patterns_hold() -> None:
    target = dp.TargetSize(
        params=0.5, at_least={"a.*": 0.2, "*.weight": 0.3}, at_most={"b.*": 0.5, "b.x": 0.4}
    )
    assert target.bounds_of(["a.bias"]) == (0.2, 1.0)
    assert target.bounds_of(["a.weight"]) == (0.3, 1.0)
    assert target.bounds_of(["a.bias", "b.x"]) == (0.2, 0.4)
    assert target.bounds_of(["c"]) == (0.0, 1.0)
    target.require_used(["a.weight", "b.x"])
    with pytest.raises(ValueError, match=r"'b\.x' matches no parameter with groups; there are a"):
        target.require_used(["a.weight", "b.y"])
