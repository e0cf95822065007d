"""The report in a real browser: headless Chromium, with no way to any network."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from archir.search.report import page
from archir.search.report.gather import gather
from archir.search.report.page import sha256_of, text_of

from .made import write_genomes
from .test_report import EVIL, member, write_run

BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome"),
    pytest.mark.xdist_group("browser"),
]
DESKTOP, PHONE = (1440, 1000), (380, 800)


class Browser:
    """Opens a file at an address within it, in a window of some size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, file: Path, fragment: str, size: tuple[int, int], *words: str) -> str:
        command = [
            str(BROWSER),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=3000",
            f"--user-data-dir={self.folder / 'profile'}",
            f"--window-size={size[0]},{size[1]}",
            *words,
            f"{file.as_uri()}{fragment}",
        ]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.decode("utf-8")

    def dom(self, file: Path, fragment: str = "", size: tuple[int, int] = DESKTOP) -> str:
        return self.run(file, fragment, size, "--dump-dom")

    def picture(self, file: Path, fragment: str, size: tuple[int, int]) -> np.ndarray:
        from matplotlib.image import imread

        target = self.folder / "shot.png"
        self.run(file, fragment, size, f"--screenshot={target}")
        return np.asarray(imread(target))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = write_genomes(folder / "run", 40, each=10)
    target = folder / "report.html"
    target.write_text(page(gather(run), title="a run", version="1"), "utf-8")
    return target


def panel(dom: str) -> str:
    found = re.search(r'<aside id="panel"[^>]*data-m="(\d+)".*?</aside>', dom, re.DOTALL)
    assert found is not None
    return found[0]


def root(dom: str) -> str:
    found = re.search(r"<html[^>]*>", dom)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_member_that_the_address_names(
    browser: Browser, report: Path, size: tuple[int, int]
) -> None:
    dom = browser.dom(report, "#member-17", size)
    assert 'data-ready="yes"' in root(dom)
    assert "data-error" not in root(dom)
    shown = panel(dom)
    assert 'data-m="17"' in shown
    assert "Network 17" in shown
    assert "archir new nsga_micro" in shown
    assert re.search(r'<tr data-m="17" class="on"', dom)
    drawn = set(re.findall(r'class="p[^>]*data-m="(\d+)"', dom))
    members = gather(report.parent / "run").journal.members
    assert {int(n) for n in drawn} >= {m.number for m in members if m.status == "scored"}
    assert len(re.findall(r'class="n[^>]*data-m="(\d+)"', dom)) == len(members)
    assert 'class="up line"' in dom


def test_without_a_name_the_best_is_shown(browser: Browser, report: Path) -> None:
    best = gather(report.parent / "run").best
    assert best is not None
    for fragment in ("", "#member-999", "#nonsense"):
        dom = browser.dom(report, fragment)
        assert f"Network {best.number}<" in panel(dom)
        assert "data-error" not in root(dom)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_looks_like_something(browser: Browser, report: Path, size: tuple[int, int]) -> None:
    picture = browser.picture(report, "", size)
    assert picture.shape[:2] == size[::-1]
    dark = (picture[..., :3].mean(axis=2) < 0.5).mean()
    assert 0.005 < dark < 0.5
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 50
    ink = (picture[..., :3] != picture[0, 0, :3]).any(axis=2)
    assert ink[: size[1] // 2].any()
    assert ink[:, : size[0] // 2].any()
    assert not ink[:, -6:].any()  # nothing runs over the right edge


PROBE = """
const seen = [];
const note = (what) => seen.push(`${what}:${panel.dataset.m}`);
const pause = () => new Promise((done) => setTimeout(done, 60));
(async () => {
  const svg = document.querySelector(".pareto svg.marks");
  const box = svg.getBoundingClientRect();
  const aimed = places(svg, box).find(([n]) => n === TARGET)[1];
  const at = { clientX: box.left + aimed[0] + 1, clientY: box.top + aimed[1] + 1, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  seen.push(`tip:${tip.hidden ? "" : tip.textContent.split("  ")[0]}`);
  svg.dispatchEvent(new MouseEvent("click", at));
  await pause();
  note("click");
  const key = (node, name) =>
    node.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  key(svg.closest(".plot"), "ArrowRight");
  await pause();
  note("right");
  key(svg.closest(".plot"), "ArrowLeft");
  await pause();
  note("left");
  const marked = (n) => document.querySelector(`.pareto [data-m="${n}"]`);
  const before = getComputedStyle(marked(TARGET)).getPropertyValue("--x");
  document.querySelector("[value=params]").click();
  await pause();
  seen.push(`moved:${before !== getComputedStyle(marked(TARGET)).getPropertyValue("--x")}`);
  document.querySelector("[value=error]").click();
  seen.push(`error:${getComputedStyle(document.querySelector(".pareto .turned")).display}`);
  const filter = document.getElementById("filter");
  filter.value = "failed";
  filter.dispatchEvent(new Event("input"));
  seen.push(`failed:${[...body.rows].filter((row) => !row.hidden).length}`);
  filter.value = "";
  filter.dispatchEvent(new Event("input"));
  all("th button", table).find((b) => b.textContent.startsWith("accuracy")).click();
  seen.push(`best:${body.rows[0].dataset.m}`);
  key(body.rows[0].querySelector("a"), "ArrowDown");
  await pause();
  seen.push(`down:${body.rows[1].dataset.m === panel.dataset.m}`);
  document.documentElement.dataset.probe = seen.join(" ");
})();
"""


def test_pointer_keys_and_switches(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The page's own script, with one behind it that does what a reader does."""
    text = report.read_text("utf-8")
    run = gather(report.parent / "run")
    members = run.journal.members
    twins = {m.macs for m in members if m.same_as is not None}
    target = next(m for m in members if m.status == "scored" and m.macs not in twins)
    script = text_of("report.js")
    probed = script + PROBE.replace("TARGET", str(target.number))
    text = text.replace(script, probed).replace(sha256_of(script), sha256_of(probed))
    page = tmp_path / "probed.html"
    page.write_text(text, "utf-8")
    dom = browser.dom(page)
    assert "data-error" not in root(dom)
    found = re.search(r'data-probe="([^"]*)"', root(dom))
    assert found is not None, root(dom)
    told = dict(word.split(":") for word in found[1].split())
    number = str(target.number)
    assert (told["tip"], told["click"], told["left"]) == (f"#{number}", number, number)
    assert told["right"] != number
    assert (told["moved"], told["down"]) == ("true", "true")
    assert told["error"] != "none"
    assert int(told["failed"]) == sum(m.status == "failed" for m in members)
    assert run.best is not None
    assert told["best"] == str(run.best.number)


def test_hostile_words_stay_words(browser: Browser, tmp_path: Path) -> None:
    origin = {"kind": "rewrite", "uses": [{"rule": EVIL, "at": EVIL, "arguments": {EVIL: EVIL}}]}
    bad = member(1, None, stage="search", reason=EVIL, parents=(0,), origin=origin)
    texts = {0: f"# {EVIL}\n", 1: f"# other {EVIL}\n"}
    run = write_run(tmp_path / "run", [member(0), bad], texts)
    target = tmp_path / "r.html"
    target.write_text(page(gather(run), title=EVIL, version="1"), "utf-8")
    for number in (0, 1):
        dom = browser.dom(target, f"#member-{number}")
        assert "data-error" not in root(dom)
        assert "<title>taken" not in dom
        assert not re.search(r"<img", re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL))
    assert html.escape(EVIL, quote=False) in panel(dom)


def test_a_run_with_nothing_in_it(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], {})
    target = tmp_path / "r.html"
    target.write_text(page(gather(run), title="empty", version="1"), "utf-8")
    dom = browser.dom(target)
    assert 'data-ready="yes"' in root(dom)
    assert "data-error" not in root(dom)
