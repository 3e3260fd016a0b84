"""kill -9: whatever the moment, the run goes on and ends with the bits of one that was left alone.

    pytest -m exhaustive tests/test_lab_kills.py

kills some 60 processes and takes a quarter of an hour on one core.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

import kills
from lab_runs import assert_same_run
from promises import Tries

SAME_BITS = "a run that is killed goes on to the same bits"
PROMISE = pytest.mark.promise("faults", SAME_BITS, "kills")
SET = ("--set", "epochs=8", "milestones=3,5", "model.hidden=64,32", "checkpoint_minutes=0.002")
ALONE = (*SET, "baseline=none")
CASES = {
    "plain": ("train", "digits_mlp_ramda", *SET),
    "shrinks": ("train", "digits_mlp_ramda", *ALONE, "coupled=true", "shrink_at_restart=true"),
    "refit": ("train", "digits_mlp_ramda_refit", *ALONE),
    "rank": ("train", "digits_mlp_lowrank", *ALONE, "precision=float16"),
    "fit": ("fit", "digits_mlp_ramda", "--params", "0.3", "--epochs", "8"),
    "path": ("path", "digits_mlp_ramda", "--strengths", "0.02,0.1", "--refit", "2", *ALONE),
}


def go_on(command: Sequence[str], folder: Path) -> list[str]:
    """The command that goes on in a folder, or begins, where it was killed before there was one."""
    if (folder / "config.json").exists():
        return [command[0], "--resume", str(folder)]
    assert not folder.exists() or not any(folder.glob("*.jsonl"))
    return [*command, "--out", str(folder)]


def runs_in(folder: Path) -> list[Path]:
    """All run folders in a folder."""
    return sorted(path.parent for path in folder.rglob("model.safetensors"))


def assert_same(whole: Path, killed: Path) -> None:
    ours, theirs = runs_in(whole), runs_in(killed)
    assert [p.relative_to(whole) for p in ours] == [p.relative_to(killed) for p in theirs]
    assert ours or (whole / "slim.safetensors").exists()
    for one, other in zip(ours, theirs, strict=True):
        assert_same_run(one, other)
    assert not [path for path in killed.rglob(".*") if not path.name.startswith(".1.")]
    for name in ("metrics.jsonl", "path.jsonl", "slim.safetensors", "plan.json"):
        if (whole / name).exists():
            assert (whole / name).read_bytes() == (killed / name).read_bytes()


def killed_at_random(
    command: Sequence[str], folder: Path, count: int, latest: float, moments: random.Random
) -> int:
    """Kill a command again and again, then let it end; how often it was killed."""
    for done in range(count):
        if not kills.kill_at_random(kills.spawn(go_on(command, folder)), folder, latest, moments):
            return done
    kills.finish(go_on(command, folder))
    return count


def killed_in_writes(command: Sequence[str], folder: Path, count: int) -> int:
    """The same, each time while a file is on its way, on a disk that is slow to take it."""
    for done in range(count):
        process = kills.spawn(go_on(command, folder), "slow", 0.05)
        if not kills.kill_in_a_write(process, folder):
            return done
    kills.finish(go_on(command, folder))
    return count


def killed_at_bytes(command: Sequence[str], folder: Path, places: Sequence[tuple[int, int]]) -> int:
    """The same, within the content of a checkpoint."""
    for number, byte in places:
        process = kills.spawn(go_on(command, folder), "at", number, byte)
        process.communicate()
        assert process.returncode == -9
        assert [path for path in folder.rglob(".*") if path.stat().st_size == byte]
    kills.finish(go_on(command, folder))
    return len(places)


@PROMISE
@pytest.mark.slow
def test_a_run_killed_a_few_times_ends_with_the_same_bits(tmp_path: Path, tries: Tries) -> None:
    command = (*CASES["plain"], "epochs=5", "milestones=2,3", "baseline=none")
    kills.finish([*command, "--out", tmp_path / "whole"])
    moments = random.Random(0)
    with tries.one():
        count = killed_at_random(command, tmp_path / "killed", 3, 0.4, moments)
        assert_same(tmp_path / "whole", tmp_path / "killed")
        assert count >= 2
    with tries.one():
        count += killed_at_bytes(command, tmp_path / "torn", [(2, 5000)])
        assert_same(tmp_path / "whole", tmp_path / "torn")
    tries.add(count - 2)


@PROMISE
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_runs_killed_at_any_moment_end_with_the_same_bits(
    name: str, tmp_path: Path, tries: Tries
) -> None:
    command, whole = CASES[name], tmp_path / "whole"
    kills.finish([*command, "--out", whole])
    moments = random.Random(sum(map(ord, name)))
    counts = []
    kinds = ("random", "writes") if name == "fit" else ("random", "writes", "bytes")
    for kind in kinds:
        folder = tmp_path / kind
        with tries.one():
            if kind == "random":
                counts.append(killed_at_random(command, folder, 6, 1.0, moments))
            elif kind == "writes":
                counts.append(killed_in_writes(command, folder, 4))
            else:
                places = [(1, 0), (2, 1), (3, moments.randrange(20_000))]
                counts.append(killed_at_bytes(command, folder, places))
            assert_same(whole, folder)
    tries.add(sum(counts) - len(kinds))
    assert counts[0] >= 3 and counts[1:] == [4, 3][: len(kinds) - 1]
