"""A study's file: what it may say, and that a mistake in it is found before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from privfedtalk_flare.cli import STUDIES
from privfedtalk_flare.privacy.accountant import Release, views
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.study.plan import Comparison, load_study, parse_study, recipe_of

SMALL = {"name": "small", "question": "Which?", "seeds": [1, 2], "corpus": {"sites": 3, "clips": [3, 4, 5]},
         "job": {"privacy": {"mechanism": "off"}, "training": {"steps": 4}},
         "variants": {"one": None, "two": {"training": {"tdc": 0.0}, "seeds": [1]}},
         "compare": [["one", "two"], ["one", "two", ["site-2"]], ["two", "backbone", "personalized"],
                     ["two", "one", ["site-2"], "shared"]]}


def test_variants_differ_in_what_they_say_and_share_the_rest() -> None:
    study = parse_study(SMALL, "study.yaml")
    two = study.variants["two"]
    assert dict(two.sections["training"]) == {"steps": 4, "tdc": 0.0} and two.seeds == (1,)
    assert [(variant.name, seed) for variant, seed in study.runs] == [("one", 1), ("two", 1), ("one", 2)]
    assert study.compare == (Comparison("one", "two"), Comparison("one", "two", ("site-2",)),
                             Comparison("two", "backbone", row="personalized"),
                             Comparison("two", "one", ("site-2",), "shared"))
    assert [str(pair) for pair in study.compare] == ["one - two", "one - two at site-2", "two - backbone, personalized",
                                                   "two - one, shared at site-2"]
    recipe = recipe_of(two, 7)
    assert (recipe.training.steps, recipe.training.tdc, recipe.rounds.min_sites, recipe.data.seed) == (4, 0.0, 3, 7)
    assert recipe.data.held_out == 2  # one scored, another measured
    assert recipe.privacy.mechanism == "off" and recipe.data.source == "site"


def test_one_number_of_clips_is_that_of_all_sites() -> None:
    study = parse_study({**SMALL, "corpus": {"clips": 4}, "compare": [], "variants": {
        "one": {}, "two": {"corpus": {"clips": 5}}, "three": {"corpus": {"clips": [5], "sites": 2}}}}, "study.yaml")
    assert [variant.corpus.clips for variant in study.variants.values()] == [(4,), (5,), (5,)]


@pytest.mark.parametrize(("change", "said"), [
    ({"seeds": []}, "seeds is missing"),
    ({"seeds": [-1]}, r"seeds \[-1\] must be a list of integers"),
    ({"sheeds": [1]}, "unknown key sheeds; the choices are name, question, seeds"),
    ({"row": "best"}, "row 'best'; the choices are shared, personalized"),
    ({"job": {"data": {"people": 3}}}, "unknown key data; the choices are adapter, training"),
    ({"job": {"training": 4}}, "job.training: expected settings, got 4"),
    ({"variants": {"one": {"training": {"stepps": 3}}}},
     "study.yaml: variants.one.training: unknown setting 'stepps'; the choices are steps"),
    ({"job": {"training": {"steps": "many"}}}, "study.yaml: job.training.steps: expected int, got 'many'"),
    ({"job": {"privacy": {"mechanism": False}}}, "job.privacy.mechanism: expected str, got False .YAML takes off, on"),
    ({"variants": {"one": {"method": "magic"}}}, "'magic'; the choices are federated, local, pooled"),
    ({"corpus": {"sites": 2, "clips": [3, 3, 3]}}, "give one number, or one for each of the 2 sites"),
    ({"corpus": {"clips": [2]}}, "each at least 3: 2 clips are held out"),
    ({"corpus": {"damage": "noise"}}, "damage 'noise' at 0 of 4 sites"),
    ({"corpus": {"damage": "rust", "damaged": 1}}, "study.yaml: corpus.damage: got 'rust'; the choices are none"),
    ({"variants": {"one": {"adapter": {"train": "both"}, "privacy": {"mechanism": "gaussian"}}}},
     "study.yaml: variants.one: adapter.train 'both' does not go with privacy.mechanism 'gaussian'"),
    ({"variants": {"../one": {}}}, r"variants.../one: a variant's name is made of letters, digits, spaces"),
    ({"variants": {"a_b": {}}}, "a_b: a variant's name is made of"),
    ({"name": "a/b"}, "name 'a/b': a study's name is made of"),
    ({"variants": ["a"]}, "variants: expected a mapping"),
    ({"corpus": [1]}, "corpus: expected a mapping"),
    ({"corpus": {"people": 1500}}, "people"),
    ({"variants": {"one": {"aggregator": "nope.Nope"}}}, "one.aggregator: 'nope.Nope' cannot be loaded"),
    ({"variants": {"one": {"aggregator": 3}}}, "one.aggregator: 3 cannot be loaded"),
    ({"variants": {"one": {"aggregator": "pathlib.Path"}}}, "pathlib.Path is no subclass of study.controls.Control"),
    ({"variants": {"one": {"method": "pooled", "privacy": {"mechanism": "gaussian"}}}},
     "there is no aggregator and no noise"),
    ({"variants": {"one": {"method": "pooled"}, "two": {"seeds": [1]}}, "compare": []},
     "variants.one: no other method has seed 2, and"),
    ({"variants": {"one": {"method": "pooled"}}, "corpus": {"measured": 2}}, "everybody is measured; leave"),
    ({"variants": {"one": {"method": "local", "aggregator": "privfedtalk_flare.study.controls.ShuffledScores"}}},
     "there is no aggregator and no noise"),
    ({"compare": "one"}, "must be a list"),
    ({"compare": [[["one"], "one"]]}, "give two of one, two"),
    ({"compare": [["one", "three"]]}, r"\['one', 'three'\]: 'three' is none of them; give two of one, two"),
    ({"compare": [["backbone", "one"]]}, "'backbone' is none of them; give two of one, two .or backbone as the second"),
    ({"compare": [["one", "far", ["site-1"]]], "variants": {"one": {}, "far": {"seeds": [99]}}}, "no seed in common"),
    ({"compare": [["one", "small", ["site-2"]]],
      "variants": {"one": {}, "small": {"corpus": {"sites": 1, "clips": [3]}}}},
     r"\['site-2'\]; give a list of site-1, then a row"),
    ({"compare": [["one", "shared", "personalized"]],
      "variants": {"one": {}, "shared": {"rounds": {"phases": ["adapter", "validate"]}}}},
     "row personalized of shared needs phase personalize; its phases are adapter, validate"),
    ({"variants": {"one": {"rounds": {"phases": ["adapter"]}}, "two": {}}}, "row shared of one needs phase validate"),
    ({"compare": [["one", "two", ["site-9"]]]},
     r"\['site-9'\]; give a list of site-1, site-2, site-3, then a row \(shared, personalized\)"),
    ({"compare": [["one", "two", "shared", ["site-2"]]]}, r"\['site-2'\]; give a list of .*, then a row"),
    ({"compare": [["one", "few"]], "variants": {"one": {}, "few": {"corpus": {"clips": [3, 4, 6]}}}},
     "one and few measure other clips at site-3; compare them at sites where `clips`"),
    ({"compare": [["one", "late", ["site-1", "site-3"]]],
      "variants": {"one": {}, "late": {"corpus": {"damage": "late", "damaged": 1}}}}, "other clips at site-3")])
def test_a_mistake_is_named_before_anything_runs(change: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_study({**SMALL, **change}, "study.yaml")


def test_the_shipped_studies_can_be_read_and_no_others_are_named() -> None:
    for name in STUDIES:
        study = load_study(name)
        assert study.name == name and study.runs and study.compare
    folder = Path(__file__).resolve().parents[2] / "privfedtalk_flare" / "study" / "shipped"
    assert tuple(sorted(path.stem for path in folder.glob("*.yaml"))) == STUDIES
    with pytest.raises(SettingsError, match="no such file, and no shipped study; the choices are ablation"):
        load_study("wishes")


@pytest.mark.parametrize("name", ["privacy", "scale"])
def test_an_epsilon_in_a_shipped_studys_variant_is_what_its_people_spend(name: str) -> None:
    named = {variant: one for variant, one in load_study(name).variants.items() if "epsilon" in variant}
    assert len(named) > 3
    for variant, one in named.items():
        recipe = recipe_of(one, 1)
        releases = [Release(recipe.privacy.noise_multiplier, score="none")] * recipe.rounds.rounds
        assert views(releases, recipe.privacy.delta)["receivers"].epsilon == pytest.approx(
            float(variant.split("epsilon ")[1]), rel=0.003)


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    assert load_study(str(tmp_path / "mine.yaml")).name == "small"
    (tmp_path / "mine.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"(?s)mine.yaml: not valid YAML: .*'\n  line 1, column 8:"):
        load_study(str(tmp_path / "mine.yaml"))
