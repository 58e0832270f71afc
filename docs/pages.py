"""The pages of `mkdocs.yml` that are made of what is there: README, records, docstrings.

README.md and what it links to keep their places, so its links hold as they are; a folder that it
links to becomes a page that lists its files. Each package has a page with all of its modules.

A dotted name in a docstring, such as `theory.mixing.beta_law`, becomes a link. If it begins with
one of the packages and leads nowhere, the build warns, which `--strict` makes an error.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import theory

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
LINK = re.compile(r"\]\(([^)#:\s]+)\)")
CELL = re.compile(r"<td.*?</td>", re.DOTALL)
NAME = re.compile(r"<code>([A-Za-z_][\w.]*)</code>(?!</a>|</autoref>)")
PACKAGES = ("theory", "toy", "deep", "figures")
PUBLIC = {f"theory.{name}": f"{module}.{name}" for name, module in theory._EXPORTS.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and the files that they link to."""
    for page, source in TEXTS.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
        for target in sorted(set(LINK.findall(text)) - set(TEXTS.values())):
            _add(files, config, target)
    nav: list[Any] = config.nav or []
    for page in nav[-1]["Reference"]:
        content = _reference(Path(page).stem)
        files.append(File.generated(config, page, content=content))
    return files


def _add(files: Files, config: MkDocsConfig, target: str) -> None:
    """A file, or a folder's files and a page that lists them."""
    path = ROOT / target
    if path.is_file() and files.get_file_from_path(target) is None:
        files.append(File.generated(config, target, abs_src_path=str(path)))
    if path.is_dir():
        inside = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        for name in inside:
            _add(files, config, f"{target}/{name}")
        listed = "\n".join(f"- [{name}]({name})" for name in inside)
        files.append(
            File.generated(config, f"{target}/index.md", content=f"# {target}\n\n{listed}")
        )


def _reference(package: str) -> str:
    """A package's docstring, then its modules'."""
    modules = sorted(p.stem for p in (ROOT / package.replace(".", "/")).glob("[!_]*.py"))
    first = f"---\ntitle: {package}\n---\n\n::: {package}\n    options: {{heading_level: 1}}"
    return "\n\n".join([first, *(f"::: {package}.{module}" for module in modules)]) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to folders lead to their pages."""

    def led(match: re.Match[str]) -> str:
        folder = files.get_file_from_path(f"{match[1]}/index.md") is not None
        return f"]({match[1]}/index.md)" if folder else match[0]

    return LINK.sub(led, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Names in docstrings become cross-references, and in tables also those within the package."""
    if not page.file.src_uri.startswith("reference/"):
        return html
    package = Path(page.file.src_uri).stem

    def linked(match: re.Match[str], prefix: str = "") -> str:
        name = match[1]
        absolute = "." in name and name.partition(".")[0] in PACKAGES
        if not (absolute or prefix):
            return match[0]
        # A name that begins with a package must lead somewhere, another one may.
        identifier, kind = (name, "") if absolute else (prefix + name, " optional")
        identifier = PUBLIC.get(identifier, identifier)
        return f'<autoref identifier="{identifier}"{kind}>{match[0]}</autoref>'

    def in_cell(cell: re.Match[str]) -> str:
        return NAME.sub(lambda match: linked(match, f"{package}."), cell[0])

    return NAME.sub(linked, CELL.sub(in_cell, html))
