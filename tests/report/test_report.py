"""`privfedtalk report`: one page, whole in itself, of a run or of a study."""

from __future__ import annotations

import json
import re
import shutil
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torchmetrics.functional.image.lpips import _LPIPS

from privfedtalk_flare.cli import main
from privfedtalk_flare.evaluation.summary import Summary, save_summary
from privfedtalk_flare.study.plan import as_plain, load_study
from privfedtalk_flare.training.worklog import note


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


def test_a_runs_page_has_films_tables_curves_and_what_was_promised(run: Path, run_page: str) -> None:
    page = run_page
    assert_whole(page)
    assert page.count("<video") == 4 and page.count("data:video/mp4;base64,") == 4 and page.count("<img") == 2
    assert "site-1, person 0a" in page and page.count("<svg") == 7
    for said in ("<td>27.00 (1.00)</td>", "<td>0.900 (n=3)</td>", "<td>3.60</td><td>2.00</td>",
                 "Little is &lt;learnt&gt;.", "&#34;late&#34; &amp; &lt;slow&gt;", "sigma 2.0",
                 "2 sites, 2 rounds of the shared adapter, 4 people measured.", "Loss of the shared adapter",
                 "<td>4.00</td><td>inf</td><td>-</td><td>&lt;0.10</td>",
                 "PSNR mask: of the pixels that the generator paints; sync: correlation",
                 "inf: unbounded", "; unbounded for server",
                 "<td>site-1</td><td>20.0</td><td>4.5</td><td>7,200,000</td><td>4,000,000</td>",
                 "<td>server</td><td></td><td></td><td></td><td></td><td>1.0</td><td>40.0</td>"):
        assert said in page, said
    assert stat.S_IMODE((run / "report.html").stat().st_mode) == 0o600  # it shows faces


def test_a_page_that_shows_some_of_the_films_says_so(run: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfedtalk_flare.report.run.FILMS", 1)
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "The first 1 of 2; the others lie beside them." in text and text.count("<video") == 2


def test_a_run_without_films_says_where_they_are(run: Path, tmp_path: Path) -> None:
    summary = shutil.copy(run / "server" / "simulate_job" / "summary.json", tmp_path)
    assert main(["report", str(summary), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Videos, losses and times of training stay at their sites" in page and "<video" not in page
    assert "Loss of" not in page and "<th>training s</th>" not in page and "<td>7,200,000</td>" in page


def test_of_kits_a_page_shows_one_job_and_no_other(run: Path, tmp_path: Path) -> None:
    kits = tmp_path / "prod_00"
    for home in ("server", "site-1", "site-2"):
        shutil.copytree(run / home / "simulate_job", kits / home / "mine")
    assert main(["report", str(kits), "--out", str(tmp_path / "one.html")]) == 0
    shutil.copytree(run / "site-1" / "simulate_job", kits / "site-1" / "dead")  # a job that did not live to a summary
    note(kits / "site-1" / "dead", "validate", 99.0)
    assert main(["report", str(kits), "--out", str(tmp_path / "two.html")]) == 0
    shutil.copytree(run / "server" / "simulate_job", kits / "server" / "next")
    file = kits / "server" / "mine" / "summary.json"
    assert main(["report", str(file), "--out", str(tmp_path / "three.html")]) == 0
    one, *others = ((tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("one", "two", "three"))
    assert others == [one, one] and one.count("<video") == 4 and "measuring s" not in one
    assert main(["report", str(kits)]) == 1  # two jobs with a summary: which one?


def test_a_backbones_page_has_a_curve_for_each_component(tmp_path: Path) -> None:
    save_summary(Summary({}, [], None, None, 60.0, 0.1, [], [], {}, []), tmp_path / "server" / "simulate_job"
                 / "summary.json")
    for part in ("backbone codec", "backbone denoiser"):
        for number in (1, 2):
            note(tmp_path / "site-1" / "simulate_job", part, 5.0, number, [1.0 / number])
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_whole(page)
    for said in ("Loss of the backbone&#39;s codec, mean", "Loss of the backbone&#39;s denoiser", "<th>codec s</th>"):
        assert said in page, said
    assert page.count("<polyline") == 2 and "0 rounds" not in page and "0 people" not in page


def test_a_recorded_study_has_a_page_too(study: Path, tmp_path: Path) -> None:
    shutil.copy(study / "study.yaml", tmp_path)
    for result in study.glob("runs/*/result.json"):
        shutil.copy(result, tmp_path / f"{result.parent.name}.json")
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "4 of 6 runs" in page and "<h2>Differences</h2>" in page and "<video" not in page


def test_a_studys_page_has_its_answers_and_the_same_clips_by_each_variant(study_page: str) -> None:
    page = study_page
    assert_whole(page)
    assert "<h1>Study: small</h1>" in page and "Is &lt;a&gt; better &amp; why?" in page
    assert "4 of 6 runs" in page and page.count("<video") == 4
    assert "a: site-1, person 0a" in page and "b: site-1, person 0a" in page
    (bold,) = re.findall(r"<strong>([^<]*)</strong>", page)
    assert float(bold.partition(" ")[0]) == pytest.approx(1.0, abs=0.15)
    assert "95 % interval" in page and "<svg" in page
    cells = ["a", "0.500", "-", "0.800", "-", "4.00", "inf", "-", "3.60", "2.00", "20", "0.50"]  # nobody is damaged
    assert re.sub(r"\s+", "", "".join(f"<td>{cell}</td>" for cell in cells)) in re.sub(r"\s+", "", page)


def test_films_of_other_clips_are_not_shown_as_the_same(study: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study, tmp_path / "study")
    content = yaml.safe_load((copy / "study.yaml").read_text(encoding="utf-8"))
    content["variants"]["b"] = {"corpus": {"clips": [5]}}
    (copy / "study.yaml").write_text(yaml.safe_dump({**content, "compare": []}), encoding="utf-8")
    for path in copy.glob("runs/b-*/result.json"):
        made = as_plain(load_study(str(copy / "study.yaml")).variants["b"])
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "made_from": made}))
    assert main(["report", str(copy)]) == 0
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "a: site-1, person 0a" in page and "b: site-1, person 0a" not in page and page.count("<video") == 2


def test_tables_carry_their_markdown_and_latex(study_page: str) -> None:
    copies = re.findall(r'data-copy="([^"]*)"', study_page)
    assert len(copies) == 2 * study_page.count("<table>")
    assert copies[0].startswith("|  | PSNR mask dB up |") and copies[1].startswith(r"\begin{tabular}")


def test_what_needs_weights_says_so(run_page: str) -> None:
    assert ("Left out, as their weights are not named; --weights FOLDER says where they lie: LPIPS "
            "(lpips_alex.safetensors), FID (inception.safetensors), ") in run_page
    assert "<th>films</th>" not in run_page


def test_films_are_measured_beside_the_real_ones_by_the_networks_that_are_there(study: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = _LPIPS(pretrained=False, net="alex", pnet_rand=True).state_dict()
    (tmp_path / "weights").mkdir()
    state = {name: tensor.abs() * 100 if name.startswith("lin") else tensor for name, tensor in state.items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()},  # a distance has no sign
              tmp_path / "weights" / "lpips_alex.safetensors")
    page = tmp_path / "page.html"
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "study" / "runs" / "b-2" / "workspace" / "site-1" / "simulate_job" / "videos" / "0b.mp4").unlink()
    assert main(["report", str(tmp_path / "study"), "--out", str(page), "--weights", str(tmp_path / "weights")]) == 0
    table = page.read_text(encoding="utf-8").split("<h2>Films by networks</h2>")[1]
    assert "Of the 3 films whose people every line has" in table and "<th>LPIPS down</th></tr>" in table
    assert f"Left out, as their weights are not in {tmp_path / 'weights'}: FID (inception.safetensors)," in table
    rows = {name: float(re.search(rf"<td>{name}</td><td>([0-9.]+)[^<]*</td></tr>", table).group(1))
            for name in ("ground_truth", "copy_reference", "a", "b")}
    assert rows["ground_truth"] == 0.0 < rows["a"] < rows["b"]  # b's copies are darker than a's
    assert rows["copy_reference"] > 0.0


def test_what_is_neither_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "no summary.json here" in capsys.readouterr().err
