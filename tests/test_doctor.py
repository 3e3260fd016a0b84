"""`dualprox doctor`, and what works without the extras."""

import subprocess
import sys

import pytest

from dualprox.kernels import native, triton_steps
from dualprox.lab import doctor
from dualprox.lab.cli import main

pytestmark = pytest.mark.usefixtures("torch_as_before")


def test_doctor_says_which_kernels_there_are(capsys, monkeypatch):
    monkeypatch.setattr(native, "instruction_set", lambda: "avx9")
    monkeypatch.setattr(native, "why_unavailable", lambda: None)
    monkeypatch.setattr(triton_steps, "unavailable", lambda: "there is no CUDA device")
    monkeypatch.setattr(doctor, "native_difference", lambda: 1e-7)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "native        avx9\n" in printed and "there is no CUDA device" in printed
    assert "native-check  ok: native and eager differ by 1.0e-07" in printed
    monkeypatch.setattr(native, "instruction_set", lambda: None)
    monkeypatch.setattr(native, "why_unavailable", lambda: "not compiled")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "native        no: not compiled\n" in printed and "native-check" not in printed


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_doctor_fails_when_the_native_kernels_are_wrong(capsys, monkeypatch, difference):
    monkeypatch.setattr(native, "why_unavailable", lambda: None)
    monkeypatch.setattr(doctor, "native_difference", lambda: difference)
    assert main(["doctor"]) == 1
    assert "native-check  FAILED" in capsys.readouterr().out


def test_without_the_lab_extras_the_core_imports_and_train_says_what_to_install(tmp_path):
    program = (
        "import sys\n"
        "BLOCKED = ('sklearn', 'matplotlib', 'PIL', 'rich', 'safetensors')\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in BLOCKED:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import dualprox\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "def hidden(name, package=None):\n"
        "    try:\n"
        "        return find(name, package)\n"
        "    except ImportError:\n"
        "        return None\n"
        "importlib.util.find_spec = hidden\n"
        "from dualprox.lab.cli import main\n"
        "assert main(['doctor']) == 0\n"
        "assert main(['list']) == 0\n"
        "sys.exit(main(['train']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert 'pip install "dualprox[lab]"' in done.stderr and "Traceback" not in done.stderr
    assert "missing (extra: lab)" in done.stdout
