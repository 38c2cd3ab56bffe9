"""A site's state with an empty ledger in it."""

import pytest

from privfedtalk_flare.privacy.opening import LedgerFiles, create


@pytest.fixture
def state(tmp_path):
    create(LedgerFiles.of(tmp_path / "state"))
    return tmp_path / "state"
