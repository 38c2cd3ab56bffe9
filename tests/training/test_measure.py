"""What `privfedtalk backbone import` measures of a backbone."""

from __future__ import annotations

from privfedtalk_flare.training.measure import measure_backbone


def test_the_shipped_backbone_is_measured_by_every_number() -> None:
    """Two people, whose means are within what `backbone.py --shipped` asks of eight."""
    told = measure_backbone("assets", people=2)
    assert told["psnr_mask"] > 26 and told["codec_psnr_mask"] > told["psnr_mask"] and told["warp"] < 1.0
    assert told["sync"] > 0.9 and told["swapped_follows"] > 0.8 > abs(told["swapped_original"])
    assert told["verification_auc"] > 0.95
