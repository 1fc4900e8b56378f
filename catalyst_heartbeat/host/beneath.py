"""Opens and renames files beneath a folder without ever following a symbolic link."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Iterator

from catalyst_heartbeat.outcome import TaskFailed

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
# O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
ALWAYS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
# What a file system or a kernel answers that cannot exchange, or cannot refuse to replace.
NO_RENAME_FLAGS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

libc = ctypes.CDLL(None, use_errno=True)


def open_path(root: str, relative: str, flags: int, mode: int = 0) -> int:
    """Open what lies beneath a root, whose own path has no symbolic link in it either."""
    with closing(open_folder(root)) as folder:
        return open_beneath(folder, relative, flags, mode)


def open_folder(path: str) -> int:
    """Open a folder by its absolute path, for listing and fsync."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    with closing(os.open("/", flags | ALWAYS)) as top:
        relative = path.strip("/")
        return open_beneath(top, relative, flags) if relative else os.dup(top)


def open_beneath(folder: int, relative: str, flags: int, mode: int = 0) -> int:
    """Open what lies beneath an open folder.

    Raises OSError: ELOOP for a symbolic link anywhere, EXDEV for a path that does not go down.
    """
    *parents, name = relative.split("/")
    if {"", ".", ".."} & {*parents, name} or "\0" in relative:
        raise OSError(errno.EXDEV, "not a path beneath the folder")
    here = os.dup(folder)
    try:
        for parent in parents:
            below = open_one(here, parent, os.O_PATH | os.O_DIRECTORY)
            os.close(here)
            here = below
        return open_one(here, name, flags, mode)
    finally:
        os.close(here)


def open_one(folder: int, name: str, flags: int, mode: int = 0) -> int:
    try:
        return os.open(name, flags | ALWAYS, mode, dir_fd=folder)
    except NotADirectoryError:
        # O_DIRECTORY answers a symbolic link with ENOTDIR, as it does a file.
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise os_error(errno.ELOOP) from None
        raise


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close the descriptor at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_plain(descriptor: int, path: str) -> os.stat_result:
    """Check that an open file is regular, has one name only and no set-user-ID bit."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise TaskFailed(f"refused: {path} is not a regular file")
    if status.st_nlink != 1:
        raise TaskFailed(f"refused: {path} has {status.st_nlink} names (hard links), not one")
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise TaskFailed(f"refused: {path} has a set-user-ID or set-group-ID bit")
    return status


def read_plain(descriptor: int, path: str, most: int) -> tuple[bytes, os.stat_result]:
    """Read a whole plain file of at most so many bytes."""
    status = check_plain(descriptor, path)
    content = bytearray()
    while len(content) <= most:
        chunk = os.read(descriptor, most + 1 - len(content))
        if not chunk:
            return bytes(content), status
        content += chunk
    raise TaskFailed(f"refused: {path} is larger than {most} bytes")


def write_all(descriptor: int, content: bytes) -> None:
    """Write everything and wait until it is on disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def cannot_open(error: OSError, path: str) -> TaskFailed:
    """Say why opening a path failed."""
    if error.errno == errno.ELOOP:
        return TaskFailed(f"refused: there is a symbolic link in the path {path}")
    if error.errno == errno.ENOTDIR:
        return TaskFailed(f"refused: a part of the path {path} is not a folder")
    if error.errno in (errno.ENXIO, errno.EISDIR, errno.ENODEV):
        return TaskFailed(f"refused: {path} is not a regular file")
    if error.errno == errno.ENOENT:
        return TaskFailed(f"{path} does not exist")
    return TaskFailed(f"cannot open {path}: {error.strerror}")


def temporary_name(message_id: int) -> str:
    """Return a name that nobody can foresee and that tells whose leftover it is after a crash."""
    return f".catalyst-{message_id}-{secrets.token_hex(4)}.tmp"


def exchange(folder: int, one: str, other: str) -> bool:
    """Exchange two entries of a folder, so that `other` exists at every instant.

    Where the file system cannot, `one` replaces `other` by a plain rename: then return False.
    """
    try:
        rename_with(folder, one, other, RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in NO_RENAME_FLAGS:
            raise
        os.rename(one, other, src_dir_fd=folder, dst_dir_fd=folder)
        return False
    return True


def move(folder: int, source: str, target: str) -> None:
    """Rename an entry of a folder; raise FileExistsError where the new name is taken."""
    try:
        rename_with(folder, source, target, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in NO_RENAME_FLAGS:
            raise
        os.link(source, target, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.unlink(source, dir_fd=folder)


def rename_with(folder: int, source: str, target: str, flags: int) -> None:
    if not hasattr(libc, "renameat2"):
        raise os_error(errno.ENOSYS)
    old, new = (ctypes.c_char_p(os.fsencode(name)) for name in (source, target))
    where = ctypes.c_int(folder)
    if libc.renameat2(where, old, where, new, ctypes.c_uint(flags)) != 0:
        raise os_error(ctypes.get_errno())


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
