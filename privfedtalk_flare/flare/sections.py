"""The settings of a job stand once in each `config_fed_*.json`, as named sections that its components refer to.

    {"privacy": {"noise_multiplier": 1.0, ...}, "executors": [{..., "args": {"privacy": "{privacy}", ...}}], ...}

FLARE resolves "{privacy}" to the section of that name, and to nothing at all where there is none: `section` refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from privfedtalk_flare.settings import SettingsError, parse

T = TypeVar("T")


def section(cls: type[T], values: Mapping[str, Any] | None, name: str) -> T:
    """The settings `cls` from a component's argument. Raises `SettingsError` also where the section is missing."""
    if values is None:
        raise SettingsError(f"{name}: the job's configuration has no section of this name")
    return parse(cls, values, name)


def plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as the mapping that stands in a job's configuration."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}


def with_sections(config: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`config` (a parsed `config_fed_*.json`) with every argument that equals a section replaced by a reference.

    Only sections that are referred to appear, in their order, after the format version.
    """
    used: set[str] = set()

    def referred(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            if key in sections and value == sections[key]:
                used.add(key)
                return f"{{{key}}}"
            return {name: referred(item, name) for name, item in value.items()}
        return [referred(item) for item in value] if isinstance(value, list) else value

    rest = referred({name: value for name, value in config.items() if name != "format_version"})
    return {"format_version": config["format_version"],
            **{name: dict(values) for name, values in sections.items() if name in used}, **rest}
