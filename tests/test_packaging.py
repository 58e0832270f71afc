"""The packages have plain names, so the tests make sure that they test this checkout."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["theory", "toy", "deep", "figures"])
def test_package_comes_from_this_checkout(name):
    module = importlib.import_module(name)
    assert Path(module.__file__).resolve().is_relative_to(ROOT)
