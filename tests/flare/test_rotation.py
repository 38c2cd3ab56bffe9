"""A key that is changed between two rounds: what the server keeps goes on under the new one, and opens under it alone.
"""

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from privfedtalk_flare.cli import main
from privfedtalk_flare.encryption import keys, packing
from privfedtalk_flare.encryption.packing import CiphertextError
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.chunks import from_params, to_params
from privfedtalk_flare.flare.record import read_round, save_round
from privfedtalk_flare.flare.rotation import rotate
from privfedtalk_flare.settings import EncryptionSettings

SIZE = 3000
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pairs():
    return [keys.make_pair(EncryptionSettings()) for _ in range(2)]


def a_round(aggregator, secret, number):
    """One site's update as the only one of a round; returns it."""
    client = keys.load_secret(secret)
    header = {p.JOB: "job", p.ROUND: number, p.NONCE: str(number), p.SPEC: "0" * 64, p.BACKBONE: "1" * 64,
              p.KEY_ID: keys.key_id(client)}
    update = RNG.normal(size=SIZE).astype(np.float32) * 0.1
    aggregator.begin_round(header, ["site-1"])
    assert not aggregator.accept_model(FLModel(
        params_type=ParamsType.FULL, params=to_params(packing.encrypt(update, client)),
        meta={**header, p.VALUES: SIZE, p.IDENTITIES: 1, "client_name": "site-1"}))
    aggregator.aggregate_model()
    return update


def aggregator_with(public):
    aggregator = ISFAAggregator({"mode": "uniform"})
    aggregator._context = keys.load_public(public)
    return aggregator


@pytest.fixture
def kept(pairs, tmp_path):
    """The server's state after a round under the first key, with both keys' client contexts beside it."""
    for name, (secret, _) in zip(("old", "new"), pairs, strict=True):
        (tmp_path / name).write_bytes(secret)
    aggregator = aggregator_with(pairs[0][1])
    update = a_round(aggregator, pairs[0][0], 1)
    save_round(tmp_path / "job.safetensors", aggregator.theta, {"header": {p.KEY_ID: aggregator.key_id}, "rounds": [1]})
    return tmp_path, update


def test_after_a_rotation_rounds_go_on_and_the_old_key_opens_nothing(kept, pairs):
    folder, first = kept
    new = keys.load_secret(pairs[1][0])
    assert rotate(folder / "job.safetensors", folder / "old", folder / "new", folder / "out") == keys.key_id(new)
    theta, told = read_round(folder / "out")
    assert told == {"header": {p.KEY_ID: keys.key_id(new)}, "rounds": [1]}
    aggregator = aggregator_with(pairs[1][1])
    aggregator.theta, aggregator.values = theta, SIZE
    second = a_round(aggregator, pairs[1][0], 2)
    chunks = from_params(aggregator.theta)
    np.testing.assert_allclose(packing.decrypt(chunks, SIZE, new), first + second, atol=5e-5)
    try:
        seen = packing.decrypt(chunks, SIZE, keys.load_secret(pairs[0][0]))
    except CiphertextError:
        return  # noise beyond the range
    assert abs(np.corrcoef(seen, first + second)[0, 1]) < 0.1


def test_the_command_says_which_key_it_is_under_now(kept, pairs, capsys):
    folder, _ = kept
    command = ["keys", "rotate", str(folder / "job.safetensors"), "--out", str(folder / "out")]
    assert main([*command, "--old", str(folder / "old"), "--new", str(folder / "new")]) == 0
    assert keys.key_id(keys.load_secret(pairs[1][0]))[:12] in capsys.readouterr().out


@pytest.mark.parametrize(("old", "new", "said"), [
    ("new", "old", "encrypted under key"), ("old", "old", "holds the same key"), ("old", "missing", "No such file"),
    ("old", "garbage", "cannot be read as a CKKS context")])
def test_a_key_that_cannot_be_the_one_is_one_line_and_writes_nothing(kept, capsys, old, new, said):
    folder, _ = kept
    (folder / "garbage").write_bytes(b"no context")
    assert main(["keys", "rotate", str(folder / "job.safetensors"), "--old", str(folder / old), "--new",
                 str(folder / new), "--out", str(folder / "out")]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (folder / "out").exists()


def test_what_is_no_round_is_named(kept, capsys):
    folder, _ = kept
    (folder / "job.safetensors").write_bytes(b"x" * 100)
    assert main(["keys", "rotate", str(folder / "job.safetensors"), "--old", str(folder / "old"), "--new",
                 str(folder / "new"), "--out", str(folder / "out")]) == 1
    assert "holds no round of the shared adapter" in capsys.readouterr().err
