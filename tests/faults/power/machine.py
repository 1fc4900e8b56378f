"""A small virtual machine with the project on it, whose power can be cut."""

from __future__ import annotations

import base64
import io
import os
import random
import re
import select
import subprocess
import tarfile
from pathlib import Path

from faults.power.disk import Disk, Supply

# This machine, as QEMU's network shows it.
HOST = "10.0.2.2"
# Emulation is sure to work; "kvm" is ten times as fast where it works.
ACCELERATOR = os.environ.get("POWER_ACCELERATOR", "tcg")
END = re.compile(rb"<<([0-9]+)\n")


class PowerFailed(Exception):
    """The machine went off before it was done."""


class Machine:
    """A machine with one disk or two; a power cut takes from them what they had not stored."""

    def __init__(self, kernel: Path, root: Path, images: list[Path], forgets: str = "") -> None:
        """`forgets` is a path: what lies below it is never flushed; see FORGETFUL."""
        self.supply = Supply()
        self.disks = [Disk(image, self.supply) for image in images]
        arguments = "root=/dev/nvme0n1 ro quiet panic=-1 init=/init"
        self.command = [
            *("qemu-system-x86_64", "-accel", ACCELERATOR, "-m", "512", "-nodefaults"),
            *("-no-reboot", "-display", "none", "-kernel", str(kernel / "vmlinuz")),
            *("-append", f"{arguments} forgets={forgets}" if forgets else arguments),
            *("-device", "nvme,serial=1,drive=root"),
            *("-drive", f"if=none,id=root,format=raw,snapshot=on,file={root}"),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-chardev", "stdio,id=here", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=here"),
        ]

    def boot(self) -> None:
        self.supply.restore()
        served = [disk.serve() for disk in self.disks]
        ends = [end for end, _ in served]
        self.servers = [thread for _, thread in served]
        options: list[str] = []
        for end in ends:
            disk = f"driver=nbd,node-name=disk{end.fileno()},server.type=fd"
            options += ["-blockdev", f"{disk},server.str={end.fileno()}"]
            options += ["-device", f"virtio-blk-pci,drive=disk{end.fileno()}"]
        self.process = subprocess.Popen(
            [*self.command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[end.fileno() for end in ends],
        )
        for end in ends:
            end.close()
        self.wait()

    def run(self, script: str) -> tuple[int, str]:
        """Run a script and return its exit code and output. Raises PowerFailed."""
        assert self.process.stdin is not None
        self.process.stdin.write(f'{script}\necho "<<$?"\n'.encode())
        self.process.stdin.flush()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        output = b""
        while not (end := END.search(output)):
            if self.supply.failed():
                raise PowerFailed
            if select.select([self.process.stdout], [], [], 0.01)[0]:
                more = os.read(self.process.stdout.fileno(), 65536)
                assert more, f"the machine has ended: {output.decode(errors='replace')}"
                output += more
        return int(end[1]), output[: end.start()].decode(errors="replace")

    def cut(self, chance: random.Random) -> None:
        self.switch_off()
        for disk in self.disks:
            disk.forget(chance)

    def switch_off(self) -> None:
        self.supply.cut()
        self.process.kill()
        self.process.communicate()
        for server in self.servers:
            server.join()

    def files(self) -> dict[str, bytes]:
        """Return the content of every file on the disks."""
        _, text = self.run("tar -C / -cz disks | base64")
        found: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(text))) as archive:
            for member in archive:
                if file := archive.extractfile(member):
                    found[f"/{member.name}"] = file.read()
        return found
