import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quickstart_prints_what_the_docs_say():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.quickstart"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "Model parameters: 506,624",
        "Output shape: (16, 50, 128)",
        "Patient embedding shape: (16, 128)",
    ]
    page = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    assert all(f"    {line}\n" in page for line in lines[:3])
    peak = re.fullmatch(r"Peak memory: (\d+\.\d) GB", lines[3])
    assert peak and 0.1 < float(peak[1]) < 4
