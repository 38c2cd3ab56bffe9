import pytest

from privfedtalk_flare.checks import check_job
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    EncryptionSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
)


def check(adapter=None, reliability=None, privacy=None, encryption=None, rounds=None, data=None, backbone=None):
    return check_job(AdapterSettings(**adapter or {}), ReliabilitySettings(**reliability or {}),
                     PrivacySettings(**privacy or {}), EncryptionSettings(**encryption or {}),
                     RoundSettings(**rounds or {}), data=DataSettings(**data or {}),
                     backbone=BackboneSettings(**backbone or {}))


def test_the_shipped_settings_go_together():
    assert check() == []


@pytest.mark.parametrize(("settings", "named"), [
    ({"adapter": {"train": "both"}}, ["adapter.train 'both'", "privacy.mechanism 'gaussian'"]),
    ({"privacy": {"noise": "distributed"}}, ["privacy.noise 'distributed'", "reliability.mode 'metadata'"]),
    ({"privacy": {"noise": "distributed"}, "reliability": {"mode": "uniform"}},
     ["privacy.noise 'distributed'", "needs privacy.people"]),
    ({"privacy": {"noise": "distributed", "people": 2, "honest_sites": 3}, "reliability": {"mode": "sealed"}},
     ["rounds.min_sites 2", "privacy.honest_sites 3", "takes 4 replies"]),
    ({"privacy": {"noise": "distributed", "people": 2}, "reliability": {"mode": "sealed"}, "rounds": {"min_sites": 3},
      "encryption": {"scheme": "off"}}, ["privacy.noise 'distributed'", "encryption.scheme 'off'"]),
    ({"privacy": {"noise": "distributed", "people": 2, "clip_quantile": 0.5}, "reliability": {"mode": "uniform"}},
     ["privacy.noise 'distributed'", "privacy.clip_quantile 0.5"]),
    ({"privacy": {"sampling": 0.5}}, ["privacy.sampling 0.5", "reliability.mode 'metadata'", "who is in it"]),
    ({"privacy": {"sampling": 0.5}, "reliability": {"mode": "counts"}}, ["privacy.sampling 0.5", "mode 'counts'"]),
    ({"privacy": {"sampling": 0.5, "mechanism": "off"}, "reliability": {"mode": "uniform"}},
     ["privacy.sampling 0.5", "privacy.mechanism 'off'"]),
    ({"privacy": {"sampling": 0.0005, "clip_norm": 1.0}, "reliability": {"mode": "sealed"}},
     ["privacy.clip_norm 1", "over privacy.sampling 0.0005", "encryption.primes"]),
    ({"privacy": {"clip_quantile": 0.5}, "reliability": {"mode": "sealed"}},
     ["privacy.clip_quantile 0.5", "reliability.mode 'sealed'"]),
    ({"privacy": {"clip_quantile": 0.5, "mechanism": "off"}}, ["privacy.clip_quantile 0.5", "mechanism 'off'"]),
    ({"privacy": {"clip_quantile": 0.5, "clip_norm": 5.0, "clip_range": 100.0}},
     ["privacy.clip_norm 5", "times privacy.clip_range 100", "encryption.primes"]),
    ({"privacy": {"mechanism": "off"}, "reliability": {"release": "noised"}},
     ["reliability.release 'noised'", "privacy.mechanism 'off'"]),
    ({"rounds": {"phases": ("validate", "adapter", "validate")}},
     ["rounds.phases ['validate', 'adapter', 'validate']", "'adapter' stands after 'validate'"]),
    ({"rounds": {"phases": ("adapter", "adapter")}}, ["'adapter' stands after 'adapter'", "at most once"]),
    ({"rounds": {"phases": ()}}, ["rounds.phases is empty"]),
    ({"rounds": {"phases": ("personalize", "validate")}}, ["'personalize' does not go without 'adapter'"]),
    ({"rounds": {"phases": ("backbone", "adapter")}},
     ["rounds.phases ['backbone', 'adapter']", "run jobs/backbone first", "backbone import"]),
    ({"rounds": {"phases": ("backbone",)}, "backbone": {"components": ("codec", "denoiser")}},
     ["backbone.components ['codec', 'denoiser']", "empty backbone.start"]),
    ({"rounds": {"phases": ("backbone",)}, "backbone": {"components": ("denoiser", "codec"), "start": "assets"}},
     ["backbone.components ['denoiser', 'codec']", "'codec' stands after 'denoiser'"]),
    ({"rounds": {"phases": ("backbone",)}, "backbone": {"components": ("codec",), "start": "assets"}},
     ["backbone.components ['codec']", "does not go without 'denoiser'"]),
    ({"data": {"held_out": 0}}, ["data.held_out 0", "rounds.phases ['adapter', 'personalize', 'validate']"]),
    ({"privacy": {"clip_norm": 100.0}, "rounds": {"rounds": 50}},
     ["privacy.clip_norm 100", "rounds.rounds 50", "encryption.primes"]),
    ({"privacy": {"noise_multiplier": 500.0, "clip_norm": 10.0}},
     ["privacy.noise_multiplier 500", "encryption.primes"]),
    ({"rounds": {"eta": 5000.0}, "privacy": {"clip_norm": 0.1}}, ["rounds.eta 5000", "encryption.primes"]),
    ({"encryption": {"ring": 5000}}, ["encryption.ring", "the choices are 1024"]),
    ({"encryption": {"primes": (60, 40, 40)}}, ["encryption.primes [60, 40, 40]", "encryption.ring 4096"]),
    ({"encryption": {"primes": (38, 38)}}, ["one multiplication needs 3"]),
    ({"encryption": {"scale_bits": 30}}, ["encryption.scale_bits 30", "encryption.primes"]),
    ({"encryption": {"primes": (33, 32, 38)}}, ["encryption.primes", "encryption.scale_bits 32"]),
])
def test_what_does_not_go_together_is_refused_by_name(settings, named):
    with pytest.raises(SettingsError) as error:
        check(**settings)
    for name in named:
        assert name in str(error.value)


def test_the_same_is_fine_where_nothing_is_promised():
    check(adapter={"train": "both"}, privacy={"mechanism": "off"})
    check(data={"held_out": 0}, rounds={"phases": ("backbone",)})
    check(rounds={"phases": ("backbone",)}, backbone={"components": ("denoiser",), "start": "assets"})
    check(rounds={"phases": ("adapter", "validate")}, backbone={"components": ("codec",)})  # no such phase
    check(encryption={"scheme": "off"}, privacy={"clip_norm": 100.0}, rounds={"rounds": 50})


def test_other_parameters_widen_the_range():
    wide = {"ring": 8192, "primes": (60, 40, 40), "scale_bits": 40}
    check(encryption=wide, privacy={"clip_norm": 100.0}, rounds={"rounds": 50})


def test_warnings():
    assert any("sealed' costs no budget" in w for w in check(reliability={"release": "noised"}))
    assert any("'counts' has the same weights" in w for w in check(reliability={"gamma": 0.0}))
    assert any("gamma 5" in w for w in check(reliability={"mode": "sealed", "gamma": 5.0}))
