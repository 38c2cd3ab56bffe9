"""The page in a real browser, Chromium without a window: it renders, films play, tables can be copied, nothing is
asked of the network. Needs `chromium` (Debian: apt-get install chromium)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from privfedtalk_flare.cli import main

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("made", ["run", "study"])
def test_the_page_renders_and_its_films_play(made: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder = request.getfixturevalue(made)
    assert main(["report", str(folder)]) == 0
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser_path, "no chromium on PATH: apt-get install chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        asked, faults = [], []
        page.on("request", lambda one: asked.append(one.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto((folder / "report.html").as_uri())
        made_film = page.locator(".pair video").nth(1)
        page.wait_for_function("() => [...document.querySelectorAll('.pair')][0].querySelectorAll('video')[0]"
                               ".currentTime > 0.2", timeout=20000)  # both start by themselves
        assert made_film.evaluate("film => [film.videoWidth, film.videoHeight, film.error]") == [64, 64, None]
        assert made_film.evaluate("film => film.duration") == pytest.approx(1.0, abs=0.1)
        button = page.locator("button[data-copy]").first
        button.click()
        page.wait_for_function("() => document.querySelector('button[data-copy]').textContent === 'copied'")
        width = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        browser.close()
    assert width[0] <= width[1]  # nothing sticks out
    assert faults == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert (tmp_path / "page.png").stat().st_size > 20_000
