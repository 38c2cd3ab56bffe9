"""Where the identity embedder is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from privfedtalk_flare.evaluation.identity import IdentityEmbedder, build_embedder, load_embedder


def test_it_lies_beside_the_backbone_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    made = build_embedder(3)
    made.save_pretrained(tmp_path / "identity")
    loaded = load_embedder(str(tmp_path))
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_it_lies_beside_the_backbone_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(IdentityEmbedder, "from_pretrained",
                        lambda source, **options: asked.append((source, options["subfolder"])) or build_embedder(0))
    load_embedder("someone/backbone")
    assert asked == [("someone/backbone", "identity")]
