"""The helpers beside this file can be imported by the tests of the folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
