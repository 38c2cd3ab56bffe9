"""Names that the server and the sites agree on: tasks, headers, payload keys, status codes."""

from __future__ import annotations

TASK_BACKBONE = "backbone"
TASK_ADAPTER = "adapter"
TASK_PERSONALIZE = "personalize"
TASK_VALIDATE = "validate"
TASKS = (TASK_BACKBONE, TASK_ADAPTER, TASK_PERSONALIZE, TASK_VALIDATE)

# Header of a task, echoed by every reply: both ends check that they mean the same round.
JOB = "job"
ROUND = "round"
NONCE = "nonce"
SPEC = "spec"
BACKBONE = "backbone"
KEY_ID = "key_id"
HEADER = (JOB, ROUND, NONCE, SPEC, BACKBONE, KEY_ID)

# What a reply may carry beside the header and the payload.
SCORE = "score"
COUNT = "count"
IDENTITIES = "identities"
METRICS = "metrics"
STATUS = "status"
BUSY = "busy"
"""When the site worked, [[start, end], ...] in whole seconds since the epoch: for overhead_share."""
EPSILON = "epsilon"
SNR = "snr"
LEDGER = "ledger"
"""Where the site's ledger stands: {id, count, head}. The server keeps the farthest of each site over all jobs."""
ECHO = "echo"
"""Task: what the server has kept, site -> {id, count, head}. A site whose ledger is not there or beyond it stops."""

CHUNK_PREFIX = "chunk_"
"""Payload keys of ciphertext chunks: `chunk_0000`, ... each a one-dimensional uint8 array."""
PLAIN = "plain"
"""Payload key of an unencrypted adapter or update, (D,) float32; only where the job says scheme 'off'."""
ZERO = "zero"
"""Header flag of round 0: theta = 0, said and not encrypted."""

# Appended by the controller and executor.
CLIP_NORM = "clip_norm"
"""Adapter task, with adaptive clipping: C of this round."""
CLIP_BIT = "clip_bit"
"""Reply to it: the noised mean of the bits that say whose update was within C, in [-1/2, 1/2]."""
VALUES = "values"
"""Reply to an adapter task: D, the length of the update. The server takes spec, backbone, key id and D from the first
replies (the values most sites agree on; the others are refused) and states them in every later header."""
AFTER = "after"
"""Task that carries theta: nonces of the broadcasts that carried the theta before its last step; [] in round 0."""
STEP_NOISE = "step_noise"
"""Task that carries theta: standard deviation, per coordinate, of the noise in theta's last step: eta sqrt(V)."""
MOVED = "moved"
"""Task that carries theta: [sum of eta, sum of eta^2 V] of all steps since theta = 0, for the receivers' norm check."""
AGREED = "agreed"
"""Task that carries theta: the server's copy of the settings that sites must have as well, section -> mapping."""
VIDEOS = "videos"
ADAPTERS = "adapters"
"""Replies to personalize and validate: lists of relative names, opaque ids only."""
PHASE = "phase"
"""Task `backbone`: which component trains (`codec`, `identity`, `denoiser`)."""
LOSS = "loss"
"""Reply to a backbone task; its COUNT is the number of training clips."""

STATUS_OK = "ok"
STATUS_NO_CLIPS = "no_clips"
STATUS_DATA_ERROR = "data_error"
STATUS_OUT_OF_MEMORY = "out_of_memory"
STATUS_BUDGET_SPENT = "budget_exceeded"
STATUS_NO_LEDGER = "no_ledger"
"""Ledger, key or anchor is missing: the site's operator has not run `privacy init`, or must restore a backup."""
STATUS_LEDGER = "ledger_not_trusted"
"""The ledger was altered, is another site's, or is behind its anchor or the server's echo."""
STATUS_WRONG_HEADER = "wrong_header"
STATUS_NO_ENCRYPTION = "encryption_required"
STATUS_NO_BACKBONE = "backbone_not_allowed"
STATUS_MISSING_ASSET = "missing_asset"
STATUS_POLICY = "site_policy"
"""The site's own privacy.json does not allow the job, or what would leave."""
STATUS_LOG_STREAMING = "log_streaming_allowed"
"""The site lets its logs go to the server, round every filter, and takes no task while it does."""
STATUS_STEP_REFUSED = "step_refused"
"""Theta came farther than clipped and noised updates can carry it; the site stops until its operator has looked."""
STATUS_STOPPED = "stopped"
STATUS_FAILED = "failed"
STATUSES = (STATUS_OK, STATUS_NO_CLIPS, STATUS_DATA_ERROR, STATUS_OUT_OF_MEMORY, STATUS_BUDGET_SPENT,
            STATUS_NO_LEDGER, STATUS_LEDGER, STATUS_WRONG_HEADER, STATUS_NO_ENCRYPTION, STATUS_NO_BACKBONE,
            STATUS_MISSING_ASSET, STATUS_POLICY, STATUS_LOG_STREAMING,
            STATUS_STEP_REFUSED, STATUS_STOPPED, STATUS_FAILED)
"""All a failed reply says, as meta STATUS, beside its return code."""
