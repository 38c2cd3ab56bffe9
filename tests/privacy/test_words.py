import math

from privfedtalk_flare.privacy.words import handful_words


def test_words_fit_the_numbers():
    few = handful_words(4, 0.01, 7.3)
    assert "epsilon 7.30 for 4 people" in few and "100 times the signal" in few and "learns next to nothing" in few
    assert "handful" in few and "handful" not in handful_words(500, 0.01, 7.3)
    assert "learns little, if anything, from them." in handful_words(64, 0.06, 8.0)
    assert "may still learn, if its rank is small and the server's step long," in handful_words(256, 0.23, 8.0)
    assert "may still learn" not in handful_words(64, 0.23, 8.0, most=True)
    assert "learns from them" in handful_words(500, 2.0, 7.3)
    assert "at most 2 times the noise, so the shared adapter can learn" in handful_words(500, 2.0, 7.3, most=True)
    assert "at least 100 times" in handful_words(4, 0.01, 7.3, most=True) and "at least" not in few
    assert "promises little" in handful_words(4, 0.5, 40.0)
    assert "more than 1,000 times" in handful_words(1, 0.0, 1.0) and "1 person" in handful_words(1, 0.0, 1.0)
    assert "No epsilon is promised" in handful_words(4, math.inf, math.inf)
