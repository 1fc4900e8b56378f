"""What the small machine boots: Debian's kernel, this Python and the project, an init."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from support.postgres import PROGRAM_FOLDER, require

KERNEL = "linux-image-cloud-amd64"
# In the order in which they are loaded.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net"),
)
TOOLS = ("qemu-system-x86_64", "busybox", "mkfs.ext4", "ldd", "apt-get", "dpkg-deb")
# Parts of this Python, of its packages and of the project that no cycle needs.
LEFT_OUT = (
    *("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "config-*", "*.a", "pip", "ruff*"),
    *("pixeltable*", "mypy*", "*__mypyc*", "hypothesis*", "pygments"),
)
LEFT_OUT_OF_PROJECT = (".git", ".venv*", "tests", "benchmarks", "__pycache__", ".*_cache")
INIT = f"""#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /scratch
for module in {" ".join(MODULES)}; do insmod /modules/$module.ko; done
hostname small
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15
for disk in vda vdb; do [ ! -e /dev/$disk ] || mount /dev/$disk /disks/$disk; done
until port=$(ls /dev/vport*); do sleep 0.1; done
exec 0<>$port >&0 2>&1
echo "<<0"
sh
"""
CYCLE = f"""#!/bin/sh
cd {PROGRAM_FOLDER}
exec env -i HOME=/root PATH=/bin TMPDIR=/scratch "$@" {sys.executable} -I heartbeat_public.py
"""
# Every Python on the machine reads this. For the negative control: where the kernel's command line
# says forgets=/outbox, nothing below a folder of that name is flushed.
FORGETFUL = r"""import os, re
forgets = re.search(r"forgets=(\S+)", open("/proc/cmdline").read())
if forgets:
    real = os.fsync
    def fsync(descriptor):
        if forgets[1] not in os.readlink(f"/proc/self/fd/{descriptor}"):
            real(descriptor)
    os.fsync = fsync
"""


def make_disk(image: Path, megabytes: int, folder: Path, *options: str) -> Path:
    """Make a disk that holds what the folder holds."""
    size = ["-d", str(folder), str(image), f"{megabytes}M"]
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", *options, *size], check=True)
    return image


def make_root(folder: Path, kernel: Path) -> Path:
    """Make the disk that the machine boots from, and never writes to."""
    root = folder / "root"
    library, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    copy_tree(root, library, *LEFT_OUT, "site-packages", "dist-packages")
    copy_tree(root, packages, *LEFT_OUT)
    copy_tree(root, str(PROGRAM_FOLDER), *LEFT_OUT_OF_PROJECT)
    compileall.compile_dir(f"{root}{PROGRAM_FOLDER}", quiet=1)
    write(root, f"{packages}/sitecustomize.py", FORGETFUL)
    for name, text in (("init", INIT), ("bin/cycle", CYCLE), ("etc/passwd", "root:x:0:0::/root:")):
        write(root, f"/{name}", text)
    for name in ("proc", "dev", "scratch", "root", "disks/vda", "disks/vdb"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(kernel / "modules", root / "modules")
    copy_busybox(root)
    copy_python(root)
    image = make_disk(folder / "root.ext4", 512, root, "-O", "^has_journal")
    shutil.rmtree(root)
    return image


def copy_tree(root: Path, path: str, *left_out: str) -> None:
    ignore = shutil.ignore_patterns(*left_out)
    shutil.copytree(path, f"{root}{path}", ignore=ignore, dirs_exist_ok=True)


def write(root: Path, path: str, text: str) -> None:
    place = Path(f"{root}{path}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(0o755)


def copy_busybox(root: Path) -> None:
    busybox = str(shutil.which("busybox"))
    shutil.copy(busybox, root / "bin/busybox")
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    for applet in set(listed.stdout.split()) - {"busybox"}:
        (root / "bin" / applet).symlink_to("busybox")


def copy_python(root: Path) -> None:
    """Copy this Python with the libraries that it and its modules need, to where they are here."""
    python = os.path.realpath(sys.executable)
    modules = [str(path) for path in root.rglob("*.so*")]
    listed = subprocess.run(["ldd", python, *modules], capture_output=True, text=True).stdout
    libraries = {path for path in re.findall(r"(/\S+) \(0x", listed) if str(root) not in path}
    for path in (python, *libraries, f"{sys.prefix}/pyvenv.cfg"):
        if os.path.exists(path):
            os.makedirs(os.path.dirname(f"{root}{path}"), exist_ok=True)
            shutil.copy(path, f"{root}{path}")
    if sys.executable != python:
        os.makedirs(os.path.dirname(f"{root}{sys.executable}"), exist_ok=True)
        os.symlink(python, f"{root}{sys.executable}")


def find_kernel() -> Path:
    """Return the folder of Debian's kernel for virtual machines, got on first use."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    require(not missing, f"needs {', '.join(missing)}")
    listed = subprocess.run(["apt-cache", "depends", KERNEL], capture_output=True, text=True)
    package = re.search(r"Depends: (linux-image-\S+)", listed.stdout)
    require(package, f"needs {KERNEL}, which apt-get does not know here")
    assert package
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "heartbeat-tests" / package[1]
    if not folder.exists():
        get_kernel(package[1], folder)
    return folder


def get_kernel(package: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        got = subprocess.run(["apt-get", "download", package], cwd=place, capture_output=True)
        require(got.returncode == 0, f"cannot download {package}: {got.stderr.decode()}")
        (archive,) = Path(place).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, place], check=True)
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        (unfinished / "modules").mkdir(parents=True)
        (image,) = Path(place).glob("boot/vmlinuz-*")
        shutil.copy(image, unfinished / "vmlinuz")
        for name in MODULES:
            (module,) = Path(place).glob(f"lib/modules/*/kernel/**/{name}.ko")
            shutil.copy(module, unfinished / "modules")
    if not folder.exists():
        unfinished.rename(folder)
