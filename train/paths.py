"""Default paths in the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data" / "mnist"
RELEASE = ROOT / "model" / "release"
