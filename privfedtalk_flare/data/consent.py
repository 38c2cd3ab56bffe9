"""A person's consent, as a site keeps it beside their clips: `<corpus>/<identity>/consent.yaml`.

    given: 2026-01-31         # the day on which this person agreed that a shared model learns from their clips
    until: 2028-01-31         # the last day on which they may be used; optional
    withdrawn: 2027-03-01     # the day on which the person took it back; optional

Where a site's own file says `require_consent: true`, who has none that holds today is left out of every job.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path

from privfedtalk_flare.data.clips import ClipFile

FILE_NAME = "consent.yaml"
_KEYS = ("given", "until", "withdrawn")


def consent_faults(files: Iterable[ClipFile], today: date) -> dict[str, str]:
    """Identity -> why their consent does not hold on `today`, "" where it does: beside every clip of theirs, as a clip
    source may find them in several folders."""
    folders: dict[str, set[Path]] = {}
    for file in files:
        folders.setdefault(file.identity, set()).add(file.path.parent)
    return {identity: next(filter(None, (consent_fault(folder, today) for folder in sorted(own))), "")
            for identity, own in folders.items()}


def consent_fault(folder: Path, today: date) -> str:
    """Why the consent of the person whose clips lie in `folder` does not hold on the day `today`; "" where it does.

    The text names no person, no folder and no date of theirs: it goes into logs.
    """
    import yaml

    path = folder / FILE_NAME
    if not path.is_file():
        return f"no {FILE_NAME} beside their clips"
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError):
        return f"their {FILE_NAME} cannot be read"
    if not isinstance(told, dict) or not set(told) <= set(_KEYS) or type(told.get("given")) is not date:
        return f"their {FILE_NAME} must say `given: YYYY-MM-DD`, and beside it nothing but {', '.join(_KEYS[1:])}"
    if any(type(told[key]) is not date for key in told):
        return f"their {FILE_NAME} has a day that is not YYYY-MM-DD"
    if told["given"] > today:
        return "their consent is given for a later day"
    if told.get("until", today) < today:
        return "their consent has run out"
    if told.get("withdrawn", date.max) <= today:
        return "they have withdrawn their consent"
    return ""
