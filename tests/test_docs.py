"""The site builds without a warning, names every module, and its links lead somewhere."""

import os
import re
import subprocess
import sys
import tomllib
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

import theory

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]["packages"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: path of each page -> its HTML."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}, folder


def page(site, name):
    pages, folder = site
    return pages[folder / name / "index.html"]


def test_home_is_the_readme(site):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    headings = [line.lstrip("# ").replace("`", "") for line in lines if re.match("##+ ", line)]
    home = re.sub(r"<[^>]+>", "", page(site, ""))
    assert len(headings) > 5
    assert all(heading in unescape(home) for heading in headings)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_a_page_with_all_of_its_modules(site, package):
    shown = page(site, f"reference/{package}")
    modules = [path.stem for path in (ROOT / package.replace(".", "/")).glob("[!_]*.py")]
    assert modules
    assert f"<title>{package} - mixup-theory</title>" in shown
    for name in [package, *(f"{package}.{module}" for module in modules)]:
        assert f'id="{name}"' in shown


def test_each_equation_leads_to_a_function(site):
    table = re.search(r"<table>.*?</table>", page(site, "reference/theory"), re.DOTALL)[0]
    rows = re.findall(r"<tr>\s*<td.*?</tr>", table, re.DOTALL)
    lines = [line for line in theory.__doc__.splitlines() if line.startswith("| ")]
    assert len(rows) == len(lines) - 2 > 0
    assert all('href="#theory.' in row or "../theory." in row for row in rows)


def test_links_lead_to_pages_files_and_places(site):
    pages, folder = site
    places = {path: set(re.findall(r'\bid="([^"]+)"', html)) for path, html in pages.items()}
    followed = 0
    for path, html in pages.items():
        for link in map(unescape, re.findall(r'(?:href|src)="([^"]*)"', html)):
            # 404.html, which is shown at any address, links from the root.
            if re.match(r"[a-z]+:", link) or path.name == "404.html":
                continue
            target, _, place = unquote(link).partition("#")
            there = (path.parent / target).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            assert there.is_relative_to(folder), f"{link} in {path}"
            assert there.exists(), f"{link} in {path}"
            if place and there in places:
                assert place in places[there], f"{link} in {path}"
            followed += 1
    assert followed > 1000
