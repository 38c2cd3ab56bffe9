import numpy as np
import pytest

from privfedtalk_flare.data.clips import ClipFile, load_clip
from privfedtalk_flare.data.portrait import SIZE, mask_box
from privfedtalk_flare.data.synthetic import Person, write_corpus
from privfedtalk_flare.evaluation.aperture import face_area


@pytest.fixture(scope="session")
def mask():
    made = np.zeros((SIZE, SIZE), bool)
    made[mask_box(SIZE)] = True
    return made


@pytest.fixture(scope="session")
def area():
    return face_area(SIZE)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """20 people, one clip of 2 s each, written as MP4 and decoded again: what metrics meet in a job."""
    people = [Person.draw(314, index) for index in range(20)]
    paths = write_corpus(tmp_path_factory.mktemp("corpus"), people, clips=1, seconds=2.0)
    return [load_clip(ClipFile(path.parent.name, path)) for path in paths]


@pytest.fixture(scope="session")
def clip(corpus):
    return corpus[0]
