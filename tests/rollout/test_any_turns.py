"""Turns that nobody should write are played, judged, written and read back: a short spell of it.

`python benchmarks/fuzz.py` goes on for 100,000 of each domain.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_any_turns_are_played_and_kept():
    command = [sys.executable, "benchmarks/fuzz.py", "--turns", "200", "--seed", "test"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = re.findall(r"^(retail|airline|telecom): (2\d\d) turns.*'turns that call': (\d+)",
                       done.stdout, re.MULTILINE)
    assert [name for name, *_ in found] == ["retail", "airline", "telecom"]
    assert all(int(called) > 66 for *_, called in found)
