from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import TaskFailed

NO_SUCH_FLAG = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two files beneath a root, and a secret beside it."""
    root = tmp_path / "base/root"
    (root / "deep/er").mkdir(parents=True)
    (root / "file.py").write_text("inside")
    (root / "deep/er/file.py").write_text("inside")
    (root.parent / "secret.py").write_text("secret")
    return root


def read(root: Path, relative: str) -> str:
    with beneath.closing(beneath.open_path(str(root), relative, os.O_RDONLY)) as descriptor:
        return os.read(descriptor, 100).decode()


@pytest.mark.parametrize("relative", ["file.py", "deep/er/file.py"])
def test_what_lies_beneath_is_opened(root: Path, relative: str) -> None:
    assert read(root, relative) == "inside"


def test_a_file_is_made_with_the_mode_that_was_asked_for(root: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY

    os.close(beneath.open_path(str(root), "deep/new.py", flags, 0o600))

    assert (root / "deep/new.py").stat().st_mode & 0o777 == 0o600


def lay_file_link(root: Path) -> str:
    (root / "link.py").symlink_to("../secret.py")
    return "link.py"


def lay_absolute_link_back_inside(root: Path) -> str:
    (root / "link.py").symlink_to(root / "file.py")
    return "link.py"


def lay_parent_link(root: Path) -> str:
    (root / "link").symlink_to("..")
    return "link/secret.py"


def lay_link_to_a_folder_inside(root: Path) -> str:
    (root / "link").symlink_to("deep/er")
    return "link/file.py"


def lay_link_in_the_root_itself(root: Path) -> str:
    root.rename(root.with_name("moved"))
    root.symlink_to("moved")
    return "file.py"


def lay_link_above_the_root(root: Path) -> str:
    folder = root.parent
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")
    return "file.py"


def lay_dots(root: Path) -> str:
    return "deep/../../secret.py"


def lay_dots_that_stay_inside(root: Path) -> str:
    return "deep/../file.py"


def lay_absolute(root: Path) -> str:
    return str(root.parent / "secret.py")


def lay_empty_part(root: Path) -> str:
    return "deep//er/file.py"


REDIRECTIONS: list[tuple[Callable[[Path], str], int]] = [
    (lay_file_link, errno.ELOOP),
    (lay_absolute_link_back_inside, errno.ELOOP),
    (lay_parent_link, errno.ELOOP),
    (lay_link_to_a_folder_inside, errno.ELOOP),
    (lay_link_in_the_root_itself, errno.ELOOP),
    (lay_link_above_the_root, errno.ELOOP),
    (lay_dots, errno.EXDEV),
    (lay_dots_that_stay_inside, errno.EXDEV),
    (lay_absolute, errno.EXDEV),
    (lay_empty_part, errno.EXDEV),
]


@pytest.mark.parametrize(
    ("lay", "code"), REDIRECTIONS, ids=[lay.__name__[4:] for lay, _ in REDIRECTIONS]
)
def test_no_redirection_is_followed(root: Path, lay: Callable[[Path], str], code: int) -> None:
    relative = lay(root)

    with pytest.raises(OSError, match=rf"\[Errno {code}\]"):
        read(root, relative)

    # Control: the path leads somewhere for everybody who does not look.
    assert (root / relative).read_text() in ("inside", "secret")


def test_a_dangling_link_is_not_created_through(root: Path) -> None:
    (root / "link.py").symlink_to("../new.py")
    flags = os.O_CREAT | os.O_WRONLY

    with pytest.raises(OSError, match="symbolic links"):
        beneath.open_path(str(root), "link.py", flags, 0o600)

    assert not (root.parent / "new.py").exists()
    os.close(os.open(root / "link.py", flags, 0o600))
    assert (root.parent / "new.py").exists()


def test_a_parent_that_is_a_file_is_no_folder(root: Path) -> None:
    with pytest.raises(NotADirectoryError):
        read(root, "file.py/x.py")


def test_the_top_folder_can_be_opened() -> None:
    with beneath.closing(beneath.open_folder("/")) as folder:
        assert os.path.samestat(os.fstat(folder), os.stat("/"))


def test_descriptors_are_not_handed_to_children_and_none_is_left_open(root: Path) -> None:
    lay_file_link(root)
    before = os.listdir("/proc/self/fd")

    with beneath.closing(beneath.open_path(str(root), "file.py", os.O_RDONLY)) as descriptor:
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="symbolic links"):
        read(root, "link.py")

    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_only_a_regular_file_passes_and_opening_never_waits(root: Path, kind: str) -> None:
    path = root / "odd.py"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()

    with (
        beneath.closing(beneath.open_path(str(root), "odd.py", os.O_RDONLY)) as descriptor,
        pytest.raises(TaskFailed, match="not a regular file"),
    ):
        beneath.check_plain(descriptor, "odd.py")


def test_a_socket_is_refused_in_words(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "odd.py"))

        with pytest.raises(OSError, match="No such device") as caught:
            read(root, "odd.py")

    assert "not a regular file" in str(beneath.cannot_open(caught.value, "odd.py"))


@pytest.fixture(params=["renameat2", "links"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system that has the flags of renameat2, and on one that has not."""
    if request.param == "links":
        monkeypatch.setattr(beneath, "RENAME_EXCHANGE", NO_SUCH_FLAG)
        monkeypatch.setattr(beneath, "RENAME_NOREPLACE", NO_SUCH_FLAG)
    (tmp_path / "one.tmp").write_text("1")
    (tmp_path / "two").write_text("2")
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_exchange_swaps_two_files_or_is_a_plain_rename(folder: Path) -> None:
    with beneath.closing(beneath.open_folder(str(folder))) as descriptor:
        exchanged = beneath.exchange(descriptor, "one.tmp", "two")

    assert contents(folder) == ({"one.tmp": "2", "two": "1"} if exchanged else {"two": "1"})
    assert exchanged == (beneath.RENAME_EXCHANGE == 2)


def test_an_exchange_with_what_does_not_exist_changes_nothing(folder: Path) -> None:
    with beneath.closing(beneath.open_folder(str(folder))) as descriptor:
        if beneath.RENAME_EXCHANGE == 2:
            with pytest.raises(FileNotFoundError):
                beneath.exchange(descriptor, "one.tmp", "three")
        with pytest.raises(FileNotFoundError):
            beneath.exchange(descriptor, "zero.tmp", "two")

    assert contents(folder) == {"one.tmp": "1", "two": "2"}


def test_a_move_never_replaces(folder: Path) -> None:
    with beneath.closing(beneath.open_folder(str(folder))) as descriptor:
        with pytest.raises(FileExistsError):
            beneath.move(descriptor, "one.tmp", "two")
        kept = contents(folder)
        beneath.move(descriptor, "one.tmp", "three")

    assert kept == {"one.tmp": "1", "two": "2"}
    assert contents(folder) == {"three": "1", "two": "2"}
    # Control: a plain rename does replace.
    os.rename(folder / "three", folder / "two")
    assert contents(folder) == {"two": "1"}
