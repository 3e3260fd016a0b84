"""The records that docs/reliability.md is made of."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = """
import pytest


@pytest.mark.promise("faults", "kept", "kills")
@pytest.mark.parametrize("way", [1, 2])
def test_counted(tries, way):
    for _ in range(way):
        with tries.one():
            pass
    tries.add(10)


@pytest.mark.promise("faults", "broken")
def test_broken(tries):
    tries.add(3)
    with tries.one():
        raise ValueError


@pytest.mark.promise("input", "broken without a count")
def test_uncounted():
    assert False


@pytest.mark.promise("input", "broken before it began")
def test_set_up(missing):
    pass


@pytest.mark.promise("input", "not run")
def test_skipped():
    pytest.skip("here")


def test_nothing_promised():
    pass
"""


@pytest.fixture(params=["", "2"])
def records(request, tmp_path):
    """By the tests' names; an older record is there before. In one process and in two."""
    for name in ("conftest.py", "promises.py"):
        (tmp_path / name).write_text((HERE / name).read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  promise\npythonpath = .\n")
    kept = tmp_path / "promises.json"
    kept.write_text('{"test_other.py::test_old": {"promise": "old"}}')
    env = {**os.environ, "DUALPROX_PROMISES": str(kept)}
    workers = ["-n", request.param] if request.param else ["-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-q", *workers, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return {name.split("::")[1]: value for name, value in json.loads(kept.read_text()).items()}


@pytest.mark.slow
def test_what_was_tried_is_kept_and_what_failed_too(records):
    counts = {name: (r.get("tried"), r.get("failed")) for name, r in records.items()}
    assert counts == {
        "test_old": (None, None),
        "test_counted[1]": (11, 0),
        "test_counted[2]": (12, 0),
        "test_broken": (4, 1),
        "test_uncounted": (1, 1),
        "test_set_up": (1, 1),
    }
    assert records["test_counted[1]"]["unit"] == "kills"
    assert records["test_broken"]["area"] == "faults"
