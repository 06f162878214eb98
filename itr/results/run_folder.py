"""Names of the files in a run directory, and the phrases of its log that say how the run ended."""

from __future__ import annotations

CONFIG, LOG, VERSIONS, DATA = "config.yaml", "train.log", "versions.json", "data.json"
LOCK = "run.lock"  # locked while a job trains in the folder
TAGS = "tags.txt"  # one per line
# In the log, in this order, once for each start of the run.
STARTED = "run directory: "
PLANNED = "planned updates: "
STOPPED = "stopped by a signal"
FAILED = "the job failed: "
