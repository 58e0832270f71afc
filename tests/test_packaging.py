"""The packages have plain names, so the tests make sure that they test this checkout.

And what is imported is no more than what is needed: `-X importtime` lists a process's imports.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    "PIL", "joblib", "matplotlib", "pandas", "pooch", "requests", "seaborn", "sklearn", "sympy",
    "torch_geometric",
}  # fmt: skip


@pytest.mark.parametrize("name", ["theory", "toy", "deep", "figures"])
def test_package_comes_from_this_checkout(name):
    module = importlib.import_module(name)
    assert Path(module.__file__).resolve().is_relative_to(ROOT)


def imported(*arguments):
    """Modules that an interpreter with these arguments imports, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True,
        cwd=ROOT, check=True, timeout=120,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}, done.stdout


def test_the_library_loads_nothing_heavy():
    modules, _ = imported("-c", "import theory")
    assert "theory" in modules
    assert modules & {*HEAVY, "deep", "figures", "numpy", "scipy", "torch", "toy"} == set()


@pytest.mark.parametrize("command", ["toy", "deep.train"])
def test_help_loads_nothing_that_it_does_not_need(command):
    modules, told = imported("-m", command, "--help")
    assert "usage: " in told
    assert "torch" in modules  # so the list is that of this process
    assert modules & {*HEAVY, "deep.data.load", "figures", "scipy.stats", "theory.probe"} == set()
