from datetime import date

import pytest

from privfedtalk_flare.data.clips import ClipFile
from privfedtalk_flare.data.consent import consent_fault, consent_faults

TODAY = date(2026, 11, 26)


@pytest.mark.parametrize(("text", "fault"), [
    ("given: 2026-01-31", ""),
    ("given: 2026-11-26\nuntil: 2026-11-26", ""),
    ("given: 2026-01-31\nwithdrawn: 2026-11-27", ""),
    ("given: 2026-11-27", "given for a later day"),
    ("given: 2026-01-31\nuntil: 2026-11-25", "has run out"),
    ("given: 2026-01-31\nwithdrawn: 2026-11-26", "have withdrawn"),
    ("", "must say `given: YYYY-MM-DD`"),
    ("until: 2027-01-31", "must say `given: YYYY-MM-DD`"),
    ("given: yes", "must say `given: YYYY-MM-DD`"),
    ("given: 2026-01-31 10:00:00", "must say `given: YYYY-MM-DD`"),
    ("given: 2026-01-31\nuntli: 2027-01-31", "nothing but until, withdrawn"),
    ("given: 2026-01-31\nuntil: never", "a day that is not YYYY-MM-DD"),
    ("- given", "must say"),
    ("given: [", "cannot be read")])
def test_consent_holds_from_its_day_to_its_last_unless_taken_back(tmp_path, text, fault):
    (tmp_path / "consent.yaml").write_text(text, encoding="utf-8")
    said = consent_fault(tmp_path, TODAY)
    assert (fault in said) if fault else said == ""
    assert "2026" not in said and str(tmp_path) not in said


def test_consent_lies_beside_every_clip_of_a_person(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    files = [ClipFile("ann", tmp_path / name / "clip.mp4") for name in ("one", "two")]
    (tmp_path / "one" / "consent.yaml").write_text("given: 2026-01-31")
    assert consent_faults(files, TODAY) == {"ann": "no consent.yaml beside their clips"}
    (tmp_path / "two" / "consent.yaml").write_text("given: 2026-01-31\nwithdrawn: 2026-02-01")
    assert consent_faults(files, TODAY) == {"ann": "they have withdrawn their consent"}
    (tmp_path / "two" / "consent.yaml").write_text("given: 2026-01-31")
    assert consent_faults(files, TODAY) == {"ann": ""}


def test_none_is_none(tmp_path):
    assert consent_fault(tmp_path, TODAY) == "no consent.yaml beside their clips"
