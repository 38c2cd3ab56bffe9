"""What a study asks: `STUDY.yaml`, read into frozen dataclasses.

    name: methods
    question: Does training together help?
    seeds: [1, 2, 3]                 # each renders other people
    row: shared                      # the adapter that is compared: shared or personalized
    corpus: {sites: 4, people: 2, clips: [3, 3, 8, 8], seconds: 2.0}
    job:                             # settings of every run, section by section, as in a job's configuration
      privacy: {mechanism: "off"}
    variants:                        # by name: what is different in each
      fedavg: {reliability: {mode: counts}}
      isfa: {}
      local: {method: local}
      damaged: {corpus: {damage: noise, damaged: 2}, seeds: [1]}
    compare:                         # the first less the second, paired by person; at these sites, or all undamaged
      - [isfa, fedavg]
      - [fedavg, backbone]           # less what its own runs measured before training
      - [isfa, local, [site-1, site-2]]
      - [isfa, fedavg, personalized]  # in another row than the study's; after sites too
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from privfedtalk_flare.flare.recipe import SECTIONS, PrivFedTalkRecipe
from privfedtalk_flare.settings import SettingsError, parse, setting
from privfedtalk_flare.study.controls import Control

DAMAGES = ("none", "noise", "flicker", "blur", "late", "mixed")
POOLED = "pooled"
"""The method, and the name of its one site, that has everybody's clips."""
METHODS = ("federated", "local", POOLED)
ROWS = ("shared", "personalized")
BACKBONE = "backbone"
"""What any variant can be compared with: the row of that name in its own runs."""
RUNNABLE = tuple(section for section in SECTIONS if section not in ("data", "backbone"))
HELD_OUT = 2
"""Clips of each person that nothing is trained on: one that reliability is scored on, one that is measured. ISFA would
else be measured on what its weights were chosen by."""
MOST_PEOPLE = 1000
"""Of one site: people are numbered, and each site has a block of so many numbers."""
_STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*")
_NAME = re.compile(r"[A-Za-z0-9+.-]+( [A-Za-z0-9+.-]+)*")
_KEYS = ("name", "question", "seeds", "row", "corpus", "job", "variants", "compare")


@dataclass(frozen=True)
class CorpusSpec:
    """The people of a run: rendered, the same for every variant that asks for the same, at every site others."""

    sites: int = setting(4, "sites", low=1, high=64)
    people: int = setting(2, "people at each site", low=1, high=MOST_PEOPLE)
    clips: tuple[int, ...] = setting((6,), "clips of each person, one of them scored and one measured: one number for "
                                           "all sites, or one for each")
    seconds: float = setting(2.0, "length of a clip", low=1.0, high=60.0)
    accent: float = setting(1.0, "how differently than the backbone's people their lips shape the same sounds", low=0.0,
                            high=1.0)
    measured: int | None = setting(None, "most people of a site who are measured; default: everybody", low=2)
    damage: str = setting("none", "what is wrong with the clips of the damaged sites (mixed: with every second)",
                          choices=DAMAGES)
    damaged: int = setting(0, "how many sites are damaged, counted from the last one", low=0)
    strength: float = setting(1.0, "of the damage; 1 is plain to see. Mixed clips have none", low=0.0)

    def clips_of(self, site: int) -> int:
        """Clips of each person at site number `site`, from 0 on."""
        return self.clips[0] if len(self.clips) == 1 else self.clips[site]

    def clips_at(self, site: str) -> tuple[Any, ...]:
        """What decides which clips the people of this site have."""
        damage = () if site in self.good else (self.damage, self.strength)
        return self.clips_of(self.names.index(site)), self.seconds, self.accent, damage

    @property
    def names(self) -> list[str]:
        return [f"site-{number + 1}" for number in range(self.sites)]

    @property
    def good(self) -> list[str]:
        """The sites that are not damaged."""
        return self.names[:self.sites - self.damaged]


def undamaged(*corpora: CorpusSpec) -> list[str]:
    """The sites that none of them damages."""
    return min((corpus.good for corpus in corpora), key=len)


def unlike(*corpora: CorpusSpec, sites: Iterable[str]) -> list[str]:
    """Those of `sites` where the same people have other clips in one of them than in another."""
    return [site for site in sites if len({corpus.clips_at(site) for corpus in corpora}) > 1]


@dataclass(frozen=True)
class Variant:
    """One column of the matrix. `method`: trained by federation, by a trainer at each site alone, or by one that has
    all clips (for comparison only). `aggregator`: the path of a `study.controls.Control`, "" for the method's own."""

    name: str
    method: str
    aggregator: str
    corpus: CorpusSpec
    sections: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """The variant `first` less `second`, at `sites` (none: every site that neither damages), in `row` ("": the
    study's). `second` may be `backbone`: what `first` itself measured before any training."""

    first: str
    second: str
    sites: tuple[str, ...] = ()
    row: str = ""

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.first,) if self.second == BACKBONE else (self.first, self.second)

    def __str__(self) -> str:
        row = f", {self.row}" if self.row else ""
        return f"{self.first} - {self.second}{row}" + (f" at {', '.join(self.sites)}" if self.sites else "")


@dataclass(frozen=True)
class Study:
    """The whole of a `STUDY.yaml`; `source` is its text."""

    name: str
    question: str
    row: str
    variants: Mapping[str, Variant]
    compare: tuple[Comparison, ...]
    source: str

    @property
    def runs(self) -> list[tuple[Variant, int]]:
        """Every (variant, seed): all variants of a seed before the next seed, so that a part of a study compares."""
        seeds = dict.fromkeys(seed for variant in self.variants.values() for seed in variant.seeds)
        return [(variant, seed) for seed in seeds for variant in self.variants.values() if seed in variant.seeds]


def load_study(name: str) -> Study:
    """The study in file `name`, or the shipped one of that name. Raises `SettingsError`, which names the place."""
    import yaml

    path = Path(name)
    if not path.is_file():
        shipped = {one.stem: one for one in _shipped()}
        if name not in shipped:
            raise SettingsError(f"study {name!r}: no such file, and no shipped study; the choices are "
                                f"{', '.join(sorted(shipped))}")
        path = shipped[name]
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}".replace('in "<unicode string>", ', "")) from error
    return parse_study(content, str(path), text)


def _shipped() -> list[Path]:
    return sorted(Path(str(resources.files("privfedtalk_flare.study"))).glob("shipped/*.yaml"))


def parse_study(content: Any, where: str, source: str = "") -> Study:
    """`content` as YAML has it, `source` as it was written. Every variant's job is built once, so that a mistake does
    not wait for its turn."""
    _known(content, _KEYS, where)
    for key in ("name", "question", "seeds", "variants"):
        if not content.get(key):
            raise SettingsError(f"{where}: {key} is missing")
    if not _STUDY.fullmatch(str(content["name"])):
        raise SettingsError(f"{where}: name {content['name']!r}: a study's name is made of letters, digits and + - .")
    seeds, row = _seeds(content["seeds"], where), content.get("row", "shared")
    if row not in ROWS:
        raise SettingsError(f"{where}: row {row!r}; the choices are {', '.join(ROWS)}")
    base = _sections(content.get("job") or {}, RUNNABLE, f"{where}: job")
    people = _people(content.get("corpus"), f"{where}: corpus")
    variants = {str(name): _variant(str(name), told or {}, base, people, seeds, f"{where}: variants.{name}")
                for name, told in _mapping(content["variants"], f"{where}: variants").items()}
    sited = {seed for variant in variants.values() if variant.method != POOLED for seed in variant.seeds}
    for variant in variants.values():
        _check_row(variant, row, f"{where}: variants.{variant.name}")
        if lost := sorted(set(variant.seeds) - sited):
            raise SettingsError(f"{where}: variants.{variant.name}: no other method has seed {lost[0]}, and which site "
                                "a person of one trainer for all is of is found in the others' runs; give it their "
                                "seeds, or one of them this one")
    pairs = content.get("compare") or []
    if not isinstance(pairs, list):
        raise SettingsError(f"{where}: compare {pairs!r:.60} must be a list")
    compare = tuple(_comparison(pair, variants, f"{where}: compare") for pair in pairs)
    return Study(str(content["name"]), str(content["question"]), row, variants, compare, source)


def _variant(name: str, told: Any, base: Mapping[str, Mapping[str, Any]], people: Mapping[str, Any],
             seeds: tuple[int, ...], where: str) -> Variant:
    """What the study says of one variant, on top of what it says of all: `base`, `people` and `seeds`."""
    if not _NAME.fullmatch(name) or name == BACKBONE:
        raise SettingsError(f"{where}: a variant's name is made of letters, digits, spaces and + - . and is not "
                            f"{BACKBONE}")
    _known(told, ("method", "aggregator", "corpus", "seeds", *RUNNABLE), where)
    own = _sections({key: told[key] for key in told if key in RUNNABLE}, RUNNABLE, where)
    merged = {section: {**base.get(section, {}), **own.get(section, {})} for section in {**base, **own}}
    corpus = parse(CorpusSpec, {**people, **_people(told.get("corpus"), f"{where}.corpus")}, f"{where}.corpus")
    method = told.get("method", "federated")
    if method not in METHODS:
        raise SettingsError(f"{where}.method: {method!r}; the choices are {', '.join(METHODS)}")
    _check_corpus(corpus, f"{where}.corpus")
    variant = Variant(name, method, told.get("aggregator", ""), corpus, merged,
                      _seeds(told["seeds"], where) if "seeds" in told else seeds)
    _check_training(variant, where)
    return variant


def _comparison(told: Any, variants: Mapping[str, Variant], where: str) -> Comparison:
    choices = (f"give two of {', '.join(variants)} (or {BACKBONE} as the second), then a list of sites, a row, both or "
               "nothing")
    if not (isinstance(told, list) and 2 <= len(told) <= 4 and all(isinstance(name, str) for name in told[:2])):
        raise SettingsError(f"{where}: {told!r}: {choices}")
    first, second, *rest = told
    for name, known in ((first, variants), (second, (*variants, BACKBONE))):
        if name not in known:
            raise SettingsError(f"{where}: {told!r}: {name!r} is none of them; {choices}")
    of = [variants[name] for name in (first, second) if name != BACKBONE]
    if not set.intersection(*(set(variant.seeds) for variant in of)):
        raise SettingsError(f"{where}: {first} and {second} have no seed in common, so nobody is in both")
    row = rest.pop() if rest and rest[-1] in ROWS else ""
    for variant in of if row else ():
        _check_row(variant, row, where)
    known = [site for site in of[0].corpus.names if all(site in variant.corpus.names for variant in of)]
    sites = rest[0] if rest else []
    if len(rest) > 1 or not (isinstance(sites, list) and all(site in known for site in sites)):
        raise SettingsError(f"{where}: {rest[-1]!r}; give a list of {', '.join(known)}, then a row "
                            f"({', '.join(ROWS)})")
    corpora = [variant.corpus for variant in of]
    if other := unlike(*corpora, sites=sites or undamaged(*corpora)):
        raise SettingsError(f"{where}: {first} and {second} measure other clips at {other[0]}; compare them at sites "
                            "where `clips`, `seconds`, `accent` and damage are the same")
    return Comparison(first, second, tuple(sites), row)


def _check_row(variant: Variant, row: str, where: str) -> None:
    """Raises `SettingsError` where no run of `variant` measures anybody in `row`."""
    phases = recipe_of(variant, 0).rounds.phases
    if missing := {"validate", *(("personalize",) if row == "personalized" else ())} - set(phases):
        raise SettingsError(f"{where}: row {row} of {variant.name} needs phase {', '.join(sorted(missing))}; its "
                            f"phases are {', '.join(phases)}")


def recipe_of(variant: Variant, seed: int) -> PrivFedTalkRecipe:
    """The job of a variant, at all its sites, which find their clips in their own corpora. (Without federation its
    settings alone are asked for.)"""
    rounds = {"min_sites": variant.corpus.sites, **variant.sections.get("rounds", {})}
    data = {"source": "site", "seed": seed, "held_out": HELD_OUT}
    return PrivFedTalkRecipe("study", data=data, **{**variant.sections, "rounds": rounds})


def as_plain(variant: Variant) -> dict[str, Any]:
    """All that the study says of this variant, as JSON has it."""
    return {"method": variant.method, "aggregator": variant.aggregator, "corpus": dataclasses.asdict(variant.corpus),
            "sections": {name: dict(values) for name, values in sorted(variant.sections.items())}}


def _check_training(variant: Variant, where: str) -> None:
    try:
        recipe = recipe_of(variant, 0)
    except SettingsError as error:  # settings that do not go together; each by itself was checked where it stands
        raise SettingsError(f"{where}: {error}") from error
    if variant.aggregator:
        module, _, name = str(variant.aggregator).rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingsError(f"{where}.aggregator: {variant.aggregator!r} cannot be loaded: {error}") from error
        if not (isinstance(found, type) and issubclass(found, Control)):
            raise SettingsError(f"{where}.aggregator: {variant.aggregator} is no subclass of study.controls.Control")
    if variant.method != "federated" and (variant.aggregator or variant.corpus.measured is not None
                                          or recipe.privacy.mechanism != "off"):
        raise SettingsError(f"{where}: without federation there is no aggregator and no noise, and everybody is "
                            "measured; leave `aggregator` and `measured` out, and give `privacy: {mechanism: \"off\"}`")


def _check_corpus(corpus: CorpusSpec, where: str) -> None:
    if len(corpus.clips) not in (1, corpus.sites) or min(corpus.clips) <= HELD_OUT:
        raise SettingsError(f"{where}.clips: {list(corpus.clips)}; give one number, or one for each of the "
                            f"{corpus.sites} sites, each at least {HELD_OUT + 1}: {HELD_OUT} clips are held out")
    if corpus.damaged >= corpus.sites or (corpus.damaged > 0) != (corpus.damage != "none"):
        raise SettingsError(f"{where}: damage {corpus.damage!r} at {corpus.damaged} of {corpus.sites} sites; name a "
                            "damage and fewer sites than there are, or neither")


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if not (isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)):
        raise SettingsError(f"{where}: seeds {value!r} must be a list of integers, 0 or more")
    return tuple(value)


def _sections(content: Any, known: tuple[str, ...], where: str) -> dict[str, dict[str, Any]]:
    _known(content, known, where)
    for name, values in content.items():
        if not isinstance(values, Mapping):
            raise SettingsError(f"{where}.{name}: expected settings, got {values!r}")
        parse(SECTIONS[name], values, f"{where}.{name}")
    return {name: dict(values) for name, values in content.items()}


def _people(content: Any, where: str) -> dict[str, Any]:
    told = dict(_mapping(content or {}, where))
    if type(told.get("clips")) is int:
        told["clips"] = [told["clips"]]
    parse(CorpusSpec, told, where)
    return told


def _mapping(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise SettingsError(f"{where}: expected a mapping, got {content!r:.60}")
    return content


def _known(content: Any, known: tuple[str, ...], where: str) -> None:
    if unknown := sorted(str(key) for key in _mapping(content, where) if key not in known):
        raise SettingsError(f"{where}: unknown key {', '.join(unknown)}; the choices are {', '.join(known)}")
