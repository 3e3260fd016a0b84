"""Sharded parameters (DTensor) train as the full ones do: two processes on the CPU."""

import pytest

from sharded_tests import failures_of, gloo, report

# Processes are started once for all.
pytestmark = [gloo, pytest.mark.xdist_group("sharded")]
OPTIMIZERS = ("RMDA", "RAMDA", "ProxSGD", "ProxAdamW")
every = pytest.mark.parametrize("optimizer", OPTIMIZERS)


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    return failures_of("sharded_tensors", 2, tmp_path_factory.mktemp("sharded"))


@pytest.mark.promise(
    "processes",
    "a sharded weight trains as the full one does, whatever its penalty and along whatever axis it "
    "is cut: the same support, float64 weights to 1e-9, over a restart, a refit and a reload",
    "optimizer, penalty and layout",
)
@every
def test_sharded_weights_follow_the_full_ones(failures, tries, optimizer):
    for kind in (r"\w+\(.*S\(\d\)", "None", "tensor"):
        assert report(failures, rf"{optimizer} {kind}", tries) == ""


@pytest.mark.promise(
    "processes",
    "a group over several tensors that are sharded, each in its own way, lives or dies as on one "
    "process",
    "optimizer and penalty",
)
@every
def test_groups_over_sharded_tensors_follow_the_full_ones(failures, tries, optimizer):
    assert report(failures, f"{optimizer} coupled", tries) == ""


@pytest.mark.promise(
    "processes",
    "a step with groups sends at most four numbers per group and call, however large the groups "
    "are, and without groups nothing",
    "optimizer and kind of penalty",
)
@every
def test_a_step_talks_of_groups_not_of_entries(failures, tries, optimizer):
    assert report(failures, f"{optimizer} talks", tries) == ""


@every
def test_terms_of_sums_are_refused(failures, optimizer):
    assert report(failures, f"{optimizer} refuses") == ""


def test_maxima_are_those_of_all_parts_and_keep_what_is_not_a_number(failures):
    assert report(failures, "a NaN") == "" == report(failures, "a part without")


def test_kernels_step_no_part_as_if_it_were_all(failures):
    assert report(failures, "a part is") == ""


@pytest.mark.exhaustive
@pytest.mark.promise(
    "processes",
    "on a mesh of two axes a tensor may be cut along both, twice along one, or copied along one",
    "layout and penalty",
)
def test_meshes_of_two_axes_follow_the_full_tensors(tmp_path, tries):
    assert report(failures_of("sharded_tensors", 4, tmp_path), "four", tries) == ""
