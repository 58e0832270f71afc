"""The page of a check: whole in one file, and in a browser as it is meant."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from torch import nn

from figures.page import NAME, page, save
from theory.approximation import check_approximation

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the search path")
# Presses the head "q" twice, then notes what a reader would see.
PRESS = """<script>
const heads = [...document.querySelectorAll("#samples th")];
const column = heads.findIndex(head => head.textContent === "q");
const read = () => [...document.querySelectorAll("#samples tbody tr")]
  .map(row => row.cells[column].textContent).join(" ");
heads[column].querySelector("button").click();
document.body.dataset.up = read();
heads[column].querySelector("button").click();
document.body.dataset.down = read();
document.body.dataset.sorted = heads[column].getAttribute("aria-sort");
document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth;
document.body.dataset.pictures =
  [...document.images].filter(image => image.naturalWidth > 100).length;
</script>"""


@pytest.fixture(scope="module")
def reports():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    report = check_approximation(model, [(x, y)], order=2, pair_samples=4)
    return [replace(report, training={"epoch": float(k), "step": k}) for k in range(2)]


def test_the_page_needs_no_other_file(reports, tmp_path):
    text = save(tmp_path, reports, "python -m theory.check_approx --model <mine>").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "--model &lt;mine&gt;" in text
    for claim in reports[-1].claims.values():
        assert f">{claim.verdict}</span>" in text
    assert (tmp_path / NAME).exists()


def test_every_sample_is_a_row(reports):
    body = page(reports).partition('id="samples"')[2].partition("</table>")[0]
    assert body.count("<tr>") == 1 + len(reports[-1].samples)
    assert f">{reports[-1].samples['q'][3]:.4g}<" in body


@in_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser_heads_sort_and_nothing_overflows(width, reports, tmp_path):
    path = save(tmp_path, reports)
    path.write_text(path.read_text().replace("</body>", f"{PRESS}</body>"))
    dom = _browse(tmp_path, path, f"--window-size={width},900", "--dump-dom")
    found = dict(re.findall(r'data-(up|down|sorted|overflow|pictures)="([^"]*)"', dom))
    values = [f"{value:.4g}" for value in sorted(reports[-1].samples["q"])]
    assert found["up"].split() == values
    assert found["down"].split() == values[::-1]
    assert found["sorted"] == "descending"
    assert int(found["overflow"]) <= 0
    assert int(found["pictures"]) == page(reports).count("<img ")


@in_browser
def test_it_prints(reports, tmp_path):
    pdf = tmp_path / "page.pdf"
    _browse(tmp_path, save(tmp_path, reports), f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")


def _browse(folder, path, *flags):
    """Chromium without a window; it gets a home of its own."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}/p",
    ]
    done = subprocess.run(
        [*command, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout
