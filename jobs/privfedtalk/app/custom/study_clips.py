"""How this study's clips are found. Edit it: the job carries this file to every site as part of its `app/custom`.

Named in the job by `data.clip_source: study_clips.find_clips`.
"""

from __future__ import annotations

from pathlib import Path

from privfedtalk_flare.data.clips import ClipFile
from privfedtalk_flare.data.clips import find_clips as find_in_folders


def find_clips(corpus: Path) -> list[ClipFile]:
    """Lists the site's clips: every `<corpus>/<identity>/<clip>.mp4`, sorted.

    `corpus` is the folder that the site names in its own `local/privfedtalk.yaml`. An identity is one person; all of a
    person's clips must carry the same identity, and one person belongs to one site only: the privacy account counts
    people. The list is split into training and held-out clips by the package, never here.
    """
    return find_in_folders(corpus)
