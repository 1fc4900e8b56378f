"""Builders that the tests of the file operations share."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.files.diff import Diff
from catalyst_heartbeat.outcome import Context, Result
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks import file_operations
from catalyst_heartbeat.tasks.base import Params

# Longer than the suite waits for any test: no limit, where a test says none.
PATIENCE_SECONDS = 3600
MODELS: dict[str, type[Params]] = {
    "write_file": file_operations.WriteFile,
    "edit_file": file_operations.EditFile,
    "rollback_file": file_operations.RollbackFile,
    "read_file": file_operations.ReadFile,
    "list_backups": file_operations.ListBackups,
}


@dataclass
class Workspace:
    """Folders of one test: an allowed root, backups, and what lies outside."""

    folder: Path
    settings: Settings
    last_message_id: int = 0

    @property
    def root(self) -> Path:
        return self.folder / "allowed"

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def backups(self) -> Path:
        return self.folder / "backups"

    @property
    def changelog(self) -> Path:
        return self.folder / "CHANGELOG-AUTO.md"

    def context(self, **changes: Any) -> Context:
        self.last_message_id += 1
        values: dict[str, Any] = {
            "settings": self.settings,
            "message_id": self.last_message_id,
            "requester": "big_bro",
            "reason": "a test",
            "deadline": time.monotonic() + PATIENCE_SECONDS,
        }
        return Context(**{**values, **changes})

    def run(self, task: str, path: str | os.PathLike[str], **params: Any) -> Result:
        """Validate and run a task as the executor does."""
        return self.run_as(self.context(), task, path, **params)

    def run_as(
        self, context: Context, task: str, path: str | os.PathLike[str], **params: Any
    ) -> Result:
        model = self.validate(task, path, **params)
        result: Result = getattr(file_operations, task)(model, context)
        return result

    def validate(self, task: str, path: str | os.PathLike[str], **params: Any) -> Any:
        values = {"filepath": os.fspath(path), **params}
        return MODELS[task].model_validate(values, context=self.settings)

    def preview(self, model: Any) -> str:
        diff: Diff = file_operations.preview(model, self.context())
        return diff.text

    def write(self, name: str, content: str | bytes) -> Path:
        """Put a file beneath the allowed root, as somebody else would."""
        path = self.root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def leftovers(self) -> list[str]:
        """Return the temporary files that lie about."""
        return sorted(str(path) for path in self.root.rglob(".catalyst-*"))

    def entries(self, path: Path) -> list[str]:
        """Return what the backup folder holds about a file."""
        folder = self.backups / str(path).lstrip("/")
        return sorted(os.listdir(folder)) if folder.exists() else []


def make_workspace(folder: Path) -> Workspace:
    for name in ("allowed", "outside", "backups", "state"):
        (folder / name).mkdir()
    (folder / "backups").chmod(0o700)
    environment = {
        "ALLOWED_PATHS": str(folder / "allowed"),
        "BACKUP_DIR": str(folder / "backups"),
        "CHANGELOG_PATH": str(folder / "CHANGELOG-AUTO.md"),
        "STATE_DIR": str(folder / "state"),
    }
    return Workspace(folder, program_settings.load(environment))


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs take minutes on a disk."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TESTS_MEMORY")) as folder:
        yield Path(folder)


def in_a_child(act: Callable[[], object]) -> int:
    """Do something in a forked process and return its id; exit code 0: nothing went wrong."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; the child takes no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        gc.disable()  # it would copy what the parent and the child still share
        with contextlib.suppress(BaseException):
            act()
            os._exit(0)
        os._exit(1)
    return child
