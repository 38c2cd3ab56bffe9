"""`privfedtalk personalize`: people who come after the training, at one site, without a server."""

import shutil
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from privfedtalk_flare.cli import main
from privfedtalk_flare.data.synthetic import Person, write_corpus
from privfedtalk_flare.generator.adapters import SharedAdapter, read_shared, save_shared
from privfedtalk_flare.generator.pipeline import load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of two people, and shared adapters of the shipped backbone: one that fits, and others."""
    folder = tmp_path_factory.mktemp("joining")
    write_corpus(folder / "corpus", [Person.draw(5, number, 1.0) for number in range(2)], 2, 1.2)
    pipeline = load_pipeline("assets")
    digest = pipeline.digest
    spec = SharedAdapter(pipeline.denoiser, 4, 1.0, "b").spec
    theta = np.random.default_rng(0).normal(0, 1e-3, spec.size).astype(np.float32)
    save_shared(theta, spec, folder / "shared" / "adapter.safetensors", digest)
    save_shared(theta, spec, folder / "foreign" / "adapter.safetensors", "0" * 64)
    return folder


@pytest.fixture(scope="module")
def kit(folder):
    """The site's FLARE workspace, whose own file says where its clips are."""
    for name in ("startup", "local"):
        (folder / "kit" / name).mkdir(parents=True)
    site_file(folder)
    return folder / "kit"


def site_file(folder, more=""):
    (folder / "kit" / "local" / "privfedtalk.yaml").write_text(
        f"corpus: {folder / 'corpus'}\nstate: {folder / 'state'}\n{more}", encoding="utf-8")


def personalize(kit, *more, shared="shared/adapter.safetensors"):
    return main(["personalize", str(kit), "--shared", str(kit.parent / shared), "--steps", "2", *more])


def test_new_people_get_their_own_adapters_and_are_measured(folder, kit, capsys):
    assert personalize(kit) == 0
    told = capsys.readouterr().out
    assert "Held-out clips" in told and "personalized" in told and "Mean over 2 people" in told
    names = sorted(path.name for path in (folder / "corpus").iterdir())
    files = sorted((folder / "state" / "identities").rglob("adapter.safetensors"))
    assert len(files) == 2 and all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert all(f"{name}: {folder / 'state' / 'identities'}" in told for name in names)
    films = sorted(path.name for path in (folder / "state" / "videos").glob("*.mp4"))
    assert len(films) == 4 and sum(name.endswith(".real.mp4") for name in films) == 2
    face = next((folder / "state" / "videos").glob("*.png"))
    assert face.stat().st_size > 1000
    assert not (folder / "state" / "ledger.jsonl").exists()  # nothing is released


def test_who_has_an_adapter_keeps_it_unless_asked_for_again(folder, kit, capsys):
    files = sorted((folder / "state" / "identities").rglob("adapter.safetensors"))
    before = [load_file(file) for file in files]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert personalize(kit, "--steps", "1") == 0
    assert "everybody has an adapter of their own that fits" in capsys.readouterr().out
    assert [file.stat().st_mtime_ns for file in files] == stamps
    files[0].unlink()
    assert personalize(kit) == 0
    assert "personalize: person 1 of 1 done" in capsys.readouterr().out
    assert files[1].stat().st_mtime_ns == stamps[1]
    assert all(np.array_equal(values, before[0][name]) for name, values in load_file(files[0]).items())
    assert personalize(kit, "--steps", "1", "--again") == 0
    assert all(file.stat().st_mtime_ns > stamp for file, stamp in zip(files, stamps, strict=True))


def test_the_sites_rules_hold_and_its_last_shared_adapter_is_the_default(folder, kit, capsys):
    site_file(folder, "require_consent: true\n")
    assert personalize(kit) == 1
    assert "no person with more than 1 good clips" in capsys.readouterr().err
    consent = sorted((folder / "corpus").iterdir())[0] / "consent.yaml"
    consent.write_text("given: 2026-01-31\n", encoding="utf-8")
    assert main(["personalize", str(kit), "--steps", "1"]) == 1
    assert f"{folder / 'state' / 'shared' / 'adapter.safetensors'}: cannot be read" in capsys.readouterr().err
    (folder / "state" / "shared").mkdir()
    shutil.copy(folder / "shared" / "adapter.safetensors", folder / "state" / "shared")
    assert main(["personalize", str(kit), "--steps", "1", "--again"]) == 0
    assert "personalize: person 1 of 1 done" in capsys.readouterr().out
    site_file(folder)


def test_their_adapters_work_on_top_of_the_shared_one_in_a_video(folder, kit, tmp_path):
    from PIL import Image

    from privfedtalk_flare.data.clips import find_clips, load_clip
    from privfedtalk_flare.data.media import write_mp4

    site_file(folder, "low_memory: true\nthreads: 1\n")
    assert personalize(kit, "--again") == 0
    site_file(folder)
    clip = load_clip(find_clips(folder / "corpus")[0])
    Image.fromarray(clip.frames[0]).save(tmp_path / "face.png")
    write_mp4(tmp_path / "speech.mp4", clip.frames, clip.audio)
    own = next((folder / "state" / "identities").rglob("adapter.safetensors"))
    assert main(["generate", "--face", str(tmp_path / "face.png"), "--audio", str(tmp_path / "speech.mp4"), "--out",
                 str(tmp_path / "talk.mp4"), "--adapters", str(folder / "shared" / "adapter.safetensors"),
                 str(own)]) == 0
    assert (tmp_path / "talk.mp4").stat().st_size > 1000


@pytest.mark.parametrize(("shared", "said"), [
    ("foreign/adapter.safetensors", "an adapter of backbone 000000000000, this one is"),
    ("corpus/none.safetensors", "cannot be read as safetensors")])
def test_an_adapter_that_does_not_fit_is_refused(kit, capsys, shared, said):
    assert personalize(kit, shared=shared) == 1
    assert said in capsys.readouterr().err


def test_an_identity_adapter_is_no_shared_one(folder):
    own = next((folder / "state" / "identities").rglob("adapter.safetensors"))
    with pytest.raises(ValueError, match="no shared adapter; give the shared/adapter"):
        read_shared(own)
