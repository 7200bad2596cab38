"""Makes the networks beside the tests importable, however pytest imports these."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
