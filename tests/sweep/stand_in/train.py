"""A stand-in for train.py that takes no time, with its arguments, files, signals and exit codes.

seed 13 always fails, seed 7 only the first time, seed 99 runs until a signal ends it. Seeds listed
in the file ``hold`` do not end before that file is removed. ``STAND_IN_WATCHED``: each step waits
until the runner has read the one before.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

options = dict(word.split("=", 1) for word in sys.argv[1:])
out = Path(options["out"].strip('"'))
seed, lr = int(options.get("seed", 0)), float(options.get("optim.lr", 1e-3))
out.mkdir(parents=True, exist_ok=True)
(out / "pid").write_text(str(os.getpid()))
with open(out / "started", "a") as handle:
    handle.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
if seed == 13:
    print("error: the number of this run is unlucky", file=sys.stderr)
    sys.exit(2)
if seed == 7 and len((out / "started").read_text().splitlines()) == 1:
    raise RuntimeError("this was the first time")


def save(*_: object) -> None:
    (out / "saved").touch()
    if "STAND_IN_DEAF" not in os.environ:
        sys.exit(75)


def held() -> bool:
    try:
        return str(seed) in Path("hold").read_text().split()
    except FileNotFoundError:
        return False


def unseen(steps: int) -> bool:
    seen = out / "seen"
    return "STAND_IN_WATCHED" in os.environ and not (
        seen.exists() and int(seen.read_text() or 0) >= steps
    )


signal.signal(signal.SIGTERM, save)
steps = int(options.get("trainer.epochs", 1)) if seed != 99 or (out / "saved").exists() else 10**6
value = 0.0
with open(out / "metrics.jsonl", "w") as handle:
    for step in range(steps):
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0.01")))
        value = 100 - 50 * abs(math.log10(lr) + 3) + step
        handle.write(json.dumps({"step": step, "val/rsum": value}) + "\n")
        handle.flush()
        while unseen(step + 1):
            time.sleep(0.01)
while held():
    time.sleep(0.05)
results = {f"test/{way}_{key}": 10.0 for way in ("i2t", "t2i") for key in ("r1", "r5", "r10")}
results |= {"run": out.name, "data": "scenes", "test/rsum": 60.0 + seed, "val/rsum": value}
results |= {"test/n_images": 20, "test/n_captions": 100, "select_on": "val"}
(out / "results.json").write_text(json.dumps(results))
