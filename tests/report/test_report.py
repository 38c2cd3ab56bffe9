"""`privfedtalk report`: one page, whole in itself, of a run or of a study."""

from __future__ import annotations

import re
import shutil
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from privfedtalk_flare.cli import main


def page_of(path: Path, *more: str) -> str:
    assert main(["report", str(path), *more]) == 0
    return (path / "report.html").read_text(encoding="utf-8")


def assert_whole(page: str) -> None:
    """Every tag is closed, and nothing is asked of anywhere else."""
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            for name, value in attrs:
                assert name not in ("src", "href") or (value or "").startswith("data:"), (tag, name, (value or "")[:80])
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(page)
    assert open_tags == []
    assert "http:" not in page and "https:" not in page and "url(" not in page


def test_a_runs_page_has_films_tables_curves_and_what_was_promised(run: Path) -> None:
    page = page_of(run)
    assert_whole(page)
    assert page.count("<video") == 4 and page.count("data:video/mp4;base64,") == 4 and page.count("<img") == 2
    assert "site-1, person 0a" in page and page.count("<svg") == 6
    for said in ("27.00 ± 1.00", "0.900", "Little is &lt;learnt&gt;.", "&#34;late&#34; &amp; &lt;slow&gt;", "sigma 2.0",
                 "2 sites, 2 rounds of the shared adapter, 4 people measured."):
        assert said in page, said
    assert stat.S_IMODE((run / "report.html").stat().st_mode) == 0o600  # it shows faces


def test_a_run_without_films_says_where_they_are(run: Path, tmp_path: Path) -> None:
    summary = shutil.copy(run / "server" / "simulate_job" / "summary.json", tmp_path)
    assert main(["report", str(summary), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Videos stay at their sites" in page and "<video" not in page


def test_a_studys_page_has_its_answers_and_the_same_clips_by_each_variant(study: Path) -> None:
    page = page_of(study)
    assert_whole(page)
    assert "<h1>Study: small</h1>" in page and "Is &lt;a&gt; better &amp; why?" in page
    assert "4 of 6 runs" in page and page.count("<video") == 4
    assert "a: site-1, person 1a" in page and "b: site-1, person 1b" in page
    bold = re.findall(r"<strong>([^<]*)</strong>", page)
    assert (len(bold) == 1 and bold[0].startswith("+0.9")) or bold[0].startswith("+1.0")
    assert "95 % interval" in page and "<svg" in page


def test_tables_carry_their_markdown_and_latex(study: Path) -> None:
    copies = re.findall(r'data-copy="([^"]*)"', page_of(study))
    assert len(copies) == 2 * page_of(study).count("<table>")
    assert copies[0].startswith("|  | PSNR mask dB up |") and copies[1].startswith(r"\begin{tabular}")


def test_films_are_measured_beside_the_real_ones_and_what_needs_weights_says_so(run: Path) -> None:
    page = page_of(run)
    head = ["warp error grey down", "jitter down", "films"]
    assert "".join(f"<th>{name}</th>" for name in ("", *head)) in page
    assert "LPIPS is left out: no lpips_alex.safetensors was named; --weights FOLDER says where it lies." in page
    real, still, made = (re.search(rf"<td>{name}</td><td>([0-9.]+)</td>", page).group(1) for name in
                         ("ground_truth", "first frame, still", "generated"))
    assert 0 < float(made) <= float(real) + 0.5 and float(still) > 0


def test_what_is_neither_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "no summary.json here" in capsys.readouterr().err
