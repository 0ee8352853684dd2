"""Run programs that write code while they run in an enclave: ``python tools/just_in_time.py``.

Java's virtual machine compiles what runs often, and searches strings with SSE4.2; LuaJIT makes machine code
of loops. Both run in a Debian user space in the guest. Java compares each search with one letter by letter,
LuaJIT each result with the interpreter's; the host's Java must come to the same sums.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import images
import userland
from debian import say

PACKAGES = ("openjdk-21-jre-headless", "luajit")
SKIPPED = 4


def add_programs(root: Path, *, searches: int, rounds: int) -> None:
    """Compile the program in Java, and put all into the user space.

    Raises:
        ImageError: there is no compiler of Java, or it refuses.
    """
    if shutil.which("javac") is None:
        raise images.ImageError("there is no javac; Debian's package is default-jdk-headless")
    directory = root / "check"
    directory.mkdir(exist_ok=True)
    source = images.GUEST_SOURCES / "Searches.java"
    command = ["javac", "--release", "11", "-d", str(directory), str(source)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise images.ImageError("Searches.java does not compile, see the message above")
    for name in ("traces.lua", "just_in_time.sh"):
        shutil.copy(images.GUEST_SOURCES / name, directory / name)
    for name, number in (("searches", searches), ("rounds", rounds)):
        (directory / name).write_text(f"{number}\n")


def judge(guest: dict[str, object], host: dict[str, object]) -> list[str]:
    """What is wrong, for people."""
    complaints = [
        f"{name}: {guest.get(name, 'no result')} wrong"
        for name in ("wrong", "wrong-off", "wrong-on")
        if guest.get(name) != 0
    ]
    if guest.get("result-on") != guest.get("result-off") or "result-on" not in guest:
        complaints.append(f"LuaJIT: {guest.get('result-on')} compiled, {guest.get('result-off')} interpreted")
    complaints += [
        f"{name}: the guest has {guest.get(name)}, the host {value}"
        for name, value in host.items()
        if guest.get(name) != value
    ]
    return complaints


def main() -> int:
    """Run all; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(
        description="Run programs that write code while they run in an enclave, and count wrong results.",
        epilog="example: python tools/just_in_time.py --searches 1000000",
    )
    parser.add_argument("--searches", type=int, default=200_000, help="in Java (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2_000, help="of LuaJIT (default: %(default)s)")
    parser.add_argument("--kernel", choices=images.KERNELS, default="nitro", help="default: %(default)s")
    options = parser.parse_args()
    try:
        root = userland.unpack("just-in-time", *PACKAGES)
        add_programs(root, searches=options.searches, rounds=options.rounds)
        image = images.build("just-in-time", options.kernel, root, "--cmd", "/bin/sh /check/just_in_time.sh")
    except images.ERRORS as error:
        say(f"skipped: {error}")
        return SKIPPED
    console = images.boot(image, max(2048, 4 * image.stat().st_size >> 20))
    host = subprocess.run(
        ["java", "-cp", root / "check", "Searches", str(options.searches)], capture_output=True, check=True
    )
    guest = userland.results(console)
    complaints = judge(guest, userland.results(host.stdout.decode()))
    if complaints:
        say("\n".join((console, *complaints)))
        return 1
    say(f"{guest['searches']} searches in Java, {guest['rounds']} pieces of code of LuaJIT's: 0 wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
