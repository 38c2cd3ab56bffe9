"""The page: sections of texts, tables, charts and films, written as one HTML file that loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from privfedtalk_flare.files import write_whole
from privfedtalk_flare.study.tables import Table, as_latex, as_markdown

_KINDS = {".mp4": "video/mp4", ".png": "image/png"}


@dataclass(frozen=True)
class Film:
    """A held-out clip of `person` (opaque name) at `site` beside what was generated for it; `sheet`: frames of both,
    one below the other; `reference`: the picture it was generated from."""

    real: Path
    generated: Path
    site: str
    person: str
    caption: str
    sheet: Path | None = None
    reference: Path | None = None


@dataclass(frozen=True)
class Chart:
    """SVG text that `report.charts` made."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order."""

    title: str
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    films: Sequence[Film] = ()

    def __bool__(self) -> bool:
        return bool(self.texts or self.tables or self.charts or self.films)


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes the page, for its owner's eyes (mode 0600): it shows faces. Empty sections are left out."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("privfedtalk_flare.report").joinpath("page.html").read_text(encoding="utf-8")
    shown = [{"title": one.title, "texts": one.texts, "tables": [_table(table) for table in one.tables],
              "charts": [{"svg": Markup(chart.svg), "caption": chart.caption} for chart in one.charts if chart.svg],
              "films": [_film(film) for film in one.films]} for one in sections if one]
    page = environment.from_string(source).render(title=title, lead=lead, sections=shown)
    return write_whole(path, page.encode())


def _table(table: Table) -> dict[str, Any]:
    head, lines = table
    cells = [[{"text": cell.strip("*"), "strong": cell.startswith("**")} for cell in line] for line in lines]
    return {"head": head, "lines": cells, "markdown": as_markdown(table), "latex": as_latex(table)}


def _film(film: Film) -> dict[str, str]:
    return {"real": _inside(film.real), "generated": _inside(film.generated), "caption": film.caption,
            "sheet": _inside(film.sheet) if film.sheet is not None else ""}


def _inside(path: Path) -> str:
    """The file as a data: URL."""
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
