import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["evaluation.metrics", "evaluation.temporal", "evaluation.summary", "evaluation.table",
                                  "reliability", "snr", "study.results"])
def test_the_examples_in_docstrings_hold(name):
    tried = doctest.testmod(importlib.import_module(f"privfedtalk_flare.{name}"))
    assert tried.attempted > 0 and tried.failed == 0
