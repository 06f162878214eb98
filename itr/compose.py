"""Where the configuration lies: ``conf/``, which travels inside the package."""

from pathlib import Path

CONF = Path(__file__).resolve().parent / "conf"
