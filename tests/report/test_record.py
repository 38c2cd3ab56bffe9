"""`RESULTS.md`: what it says of each study, and the picture beside it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from privfedtalk_flare.report.record import record
from privfedtalk_flare.study.plan import parse_study
from privfedtalk_flare.study.results import Results
from privfedtalk_flare.study.runner import results_in


def test_a_record_takes_the_place_of_the_one_before_and_leaves_other_studies_alone(study: Path, tmp_path: Path) -> None:
    path, found = tmp_path / "RESULTS.md", results_in(study)
    other = parse_study({"name": "other", "question": "What?", "seeds": [1], "variants": {
        "a": {"privacy": {"mechanism": "off"}}}}, "other.yaml")
    record(Results(found.study, []), path, "small")
    record(Results(other, []), path, "../my studies/other.yaml")
    first = path.read_text(encoding="utf-8")
    record(found, path, "small")
    record(found, path, "small")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Results of the studies") and text.count("## small") == text.count("## other") == 1
    assert "0 of 6 runs" in first and "0 of 6 runs" not in text and "4 of 6 runs" in text
    assert text.count(f"`privfedtalk study small --record {path}`") == 1
    assert text.count(f"`privfedtalk study '../my studies/other.yaml' --record {path}`") == 1
    assert "4 min on 2026-01-03 to 2026-01-04, by code of digest 0a1b" in text
    assert text.index("## small") < text.index("## other")
    assert "(small.svg)" in text and "other.svg" not in text and not (tmp_path / "other.svg").exists()


def test_the_picture_is_a_file_of_its_own_with_every_comparison(study: Path, tmp_path: Path) -> None:
    record(results_in(study), tmp_path / "RESULTS.md", "small")
    picture = ElementTree.parse(tmp_path / "small.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    words = {text.text for text in picture.iter(f"{svg}text")}
    compared = [str(pair) for pair in results_in(study).study.compare]
    assert picture.tag == f"{svg}svg" and set(compared) <= words and any("PSNR" in word for word in words)
    assert len(list(picture.iter(f"{svg}circle"))) == len(compared) == 1
