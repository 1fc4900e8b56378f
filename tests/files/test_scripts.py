"""Scripts that could not start, or that another program would read than the one that checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.file_setup import Workspace, make_workspace

from catalyst_heartbeat.files import syntax
from catalyst_heartbeat.outcome import TaskFailed

PYTHON = f"Python {'.'.join(map(str, sys.version_info[:3]))}"
MINOR = sys.version_info[1]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


STARTING = {
    "a.sh": [
        "#!/bin/bash\nset -e\n", "#!/bin/sh\n:\n", "#!/usr/bin/env bash\n:\n", ":\n", "",
        "#!/bin/bash -e\n:\n", "#! /bin/bash\t-eu  \n:\n", "#!/usr/bin/env -S bash -e -u\n:\n",
        "#!/usr/bin/env -S -i A=b bash -e\n:\n", "#!/bin/bash", "# a comment\n#!/bin/zsh\n",
    ],
    "a.py": [
        "#!/usr/bin/env python3\nx = 1\n", "x = 1\r\n", "\ufeffx = 1\n",
        f"#!/usr/bin/env python3.{MINOR}\n", "#!/usr/bin/env -S python3 -u -B\n", "'''\n#!x\n'''\n",
    ],
    "a.md": ["#!/bin/zsh\r\n", "\ufeff#!/x\n"],
}  # fmt: skip
NOT_STARTING = {
    "a.sh": [
        ("#!/bin/bash\r\nset -e\r\n", "line 1: it ends in a carriage return"),
        ("#!/bin/bash\nset -e\r\n", "line 2: it ends in a carriage return"),
        ("set -e\r\n", "line 1: it ends in a carriage return"),
        ("\ufeff#!/bin/bash\n", "a byte order mark stands before"),
        ("\ufeffecho a\n", "a byte order mark stands before"),
        ("\n#!/bin/bash\n", "a blank or a line end stands before"),
        (" #!/bin/bash\n", "a blank or a line end stands before"),
        ("#!/bin/zsh\n[[ -n $x ]]\n", 'names "/bin/zsh", but .* checked with bash [0-9]'),
        ("#!/usr/bin/python3\nimport os\n", 'names "/usr/bin/python3", but'),
        ("#!/usr/bin/env fish\n", 'names "fish", but'),
        ("#!/usr/bin/env -S zsh -e\n", 'names "zsh", but'),
        ("#!/usr/bin/env -S A=b zsh\n", 'names "zsh", but'),
        ("#!/bin/bsh\n", 'names "/bin/bsh", but'),
        ("#!/usr/bin/env\n", 'names "", but'),
        ("#!\n", 'names "", but'),
        ("#!/bin/bash\u00a0\n", "names .*, but"),
        ("#!bash\n", 'names "bash", which is not there'),
        ("#!bin/bash\n", 'names "bin/bash", which is not there'),
        ("#!/no/such/bash\n", 'names "/no/such/bash", which is not there'),
        ("#!/no/such/env bash\n", 'names "/no/such/env", which is not there'),
        ("#!/usr/bin/env /no/such/bash\n", 'names "/no/such/bash", which is not there'),
        (f"#!/bin/bash -{'e' * 250}\n", "has 263 bytes; the kernel reads 255"),
        ("#!/bin/bash -e -u\n", 'passes "-e -u" as one argument'),
        ("#!/usr/bin/env bash -e\n", 'passes "bash -e" as one argument'),
    ],
    "a.py": [
        ("#!/usr/bin/env python3\r\nx = 1\r\n", "line 1: it ends in a carriage return"),
        ("\ufeff#!/usr/bin/env python3\n", "a byte order mark stands before"),
        ("#!/bin/bash\nx = 1\n", f'names "/bin/bash", but .* checked with {PYTHON}'),
        ("#!/usr/bin/env python2\n", 'names "python2", but'),
        (f"#!/usr/bin/env python3.{MINOR + 1}\n", f'names "python3.{MINOR + 1}", but'),
        ("#!/usr/bin/env pypy3\n", 'names "pypy3", but'),
    ],
}


@pytest.mark.parametrize(
    ("name", "source"), [(name, text) for name, texts in STARTING.items() for text in texts]
)
def test_a_script_that_starts_is_written(workspace: Workspace, name: str, source: str) -> None:
    workspace.run("write_file", workspace.root / name, content=source)

    assert (workspace.root / name).read_bytes() == source.encode()


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [(name, *row) for name, rows in NOT_STARTING.items() for row in rows],
)
def test_a_script_that_could_not_start_is_refused(
    workspace: Workspace, name: str, source: str, complaint: str
) -> None:
    path = workspace.write(name, "")
    model = workspace.validate("write_file", path, content=source)

    with pytest.raises(TaskFailed, match=f"{complaint}.*; rolled back, the file is unchanged"):
        workspace.run("write_file", path, content=source)
    with pytest.raises(TaskFailed, match=complaint):
        workspace.preview(model)

    assert path.read_text() == ""
    assert not workspace.leftovers()


@pytest.mark.parametrize(
    "first", ["#!/bin/bash\r", "#!bash", "#!/bin/bash -e -u", "\ufeff#!/bin/sh"]
)
def test_such_a_script_really_does_not_start(workspace: Workspace, first: str) -> None:
    path = workspace.write("a.sh", f"{first}\necho started\n")
    path.chmod(0o755)

    try:
        ended = subprocess.run([path], capture_output=True, text=True, check=False)
    except OSError:
        return

    assert ended.returncode != 0 or ended.stderr


def test_the_report_says_what_checked_it(workspace: Workspace) -> None:
    python = workspace.run("write_file", workspace.root / "a.py", content="x = 1\n")
    shell = workspace.run("write_file", workspace.root / "a.sh", content="x=1\n")
    text = workspace.run("write_file", workspace.root / "a.md", content="x = 1\n")
    undone = workspace.run("rollback_file", workspace.root / "a.py")

    assert python.text.endswith(f"; checked with {PYTHON}")
    assert "; checked with bash 5." in shell.text
    assert "checked" not in text.text + undone.text
    with pytest.raises(TaskFailed, match=rf"line 1: .* \(checked with {PYTHON}\); rolled back"):
        workspace.run("write_file", workspace.root / "a.py", content="x = f'{\n")


def test_what_could_not_start_before_comes_back(workspace: Workspace) -> None:
    path = workspace.write("a.sh", "#!/bin/bash\r\nset -e\r\n")
    workspace.run("write_file", path, content="#!/bin/bash\nset -e\n")

    workspace.run("rollback_file", path)

    assert path.read_bytes() == b"#!/bin/bash\r\nset -e\r\n"


def test_a_program_that_env_does_not_find_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syntax, "PROGRAMS", "/nowhere")

    for line in ("#!/usr/bin/env bash", "#!/usr/bin/env -S bash -e"):
        with pytest.raises(TaskFailed, match='names "bash", which is not there'):
            syntax.check_start(f"{line}\n", ".sh")
