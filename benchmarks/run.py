"""Measures what the heartbeat costs beside what else one could use, and prints the table.

    python benchmarks/run.py            all rows; some minutes
    python benchmarks/run.py --quick    fewer rounds and rows, to see that it works

It makes benchmarks/.venv on first use and starts a PostgreSQL of its own, with fsync.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
VENV = FOLDER / ".venv"
REQUIREMENTS = FOLDER / "requirements.txt"


def enter_own_venv() -> None:
    """Start over in benchmarks/.venv, which is made anew when the requirements changed."""
    if Path(sys.prefix) == VENV:
        return
    python, stamp = VENV / "bin" / "python", VENV / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        venv.create(VENV, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    sys.exit(subprocess.run([str(python), __file__, *sys.argv[1:]]).returncode)


def main() -> int:
    if sys.argv[1:] not in ([], ["--quick"]):
        print(__doc__, file=sys.stderr)
        return 2
    enter_own_venv()
    sys.path.insert(0, str(FOLDER.parent))
    from benchmarks.measure import measure  # it needs the packages of the virtual environment

    measure(quick=sys.argv[1:] == ["--quick"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
