"""The wheel holds all packages and their data and nothing else, and works away from the checkout.

It is installed into an environment of its own, which finds the other distributions in this one.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from theory import read_reports

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("theory", "toy", "deep", "figures")


def run(*command, cwd):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, timeout=300,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the checkout keeps no traces."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns(
        ".*", "*.egg-info", "build", "results", "runs", "shared", "site", "wheels"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
        "--no-index", "-w", folder, source, cwd=folder)  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel):
    """The interpreter of a fresh environment with the wheel in it."""
    home = wheel.parent / "environment"
    venv.create(home)
    interpreter = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps",
        "--no-index", wheel, cwd=home)  # fmt: skip
    # A path file below another path file is not read, so this checkout does not come along.
    (site,) = home.glob("lib/*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def test_it_holds_the_packages_with_their_data_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = [name for name in archive.namelist() if name not in held]
    files = {path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()}
    expected = {p.relative_to(ROOT).as_posix() for p in files if p.suffix != ".pyc"}
    assert held == expected
    assert {"deep/recipes.toml", "deep/tables/published.toml"} < held
    assert any(name.endswith("/LICENSE") for name in about)


def test_its_modules_and_data_come_from_where_it_is_installed(python, tmp_path):
    """Both data files are read as the commands read them."""
    told = run(python, "-c", (
        "import json, theory, toy, deep, figures\n"
        "from deep.recipes import recipe_settings\n"
        "from deep.tables.published import published\n"
        "print(json.dumps([[m.__file__ for m in (theory, toy, deep, figures)],"
        " recipe_settings('small-cifar10'), sorted(published(4).rows)]))"
    ), cwd=tmp_path)  # fmt: skip
    files, settings, rows = json.loads(told)
    assert all(Path(file).is_relative_to(python.parent.parent) for file in files)
    recipes = tomllib.loads((ROOT / "deep" / "recipes.toml").read_text(encoding="utf-8"))
    assert settings["lr"] == recipes["published"]["lr"]
    assert "iris" in rows


def test_it_checks_a_network_from_another_folder(python, tmp_path):
    told = run(
        python, "-m", "theory.check_approx", "--model", "mlp", "--data", "digits", "--width", "8",
        "--epochs", "0", "--samples", "12", "--pair-samples", "2", "--out", "found", cwd=tmp_path,
    )  # fmt: skip
    assert "L_mix = L_std + R" in told
    (check,) = read_reports(tmp_path / "found" / "report.json")
    assert check.environment["commit"] is None  # its code lay in no checkout
    assert check.environment["versions"]["mixup-theory"]
    assert (tmp_path / "found" / "overview.png").stat().st_size > 10_000
