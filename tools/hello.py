"""Build an enclave image from nothing, and boot it: ``python tools/hello.py [--kernel nitro]``."""

import argparse
import subprocess
import sys

import images
from debian import complain, say


def main() -> int:
    """Build and run it; the exit code is that of ``vmm run``."""
    parser = argparse.ArgumentParser(
        description="Build an enclave image from a distribution's kernel and busybox, and boot it.",
        epilog="example: nox -s hello -- --kernel nitro --memory-mib 512",
    )
    parser.add_argument(
        "--kernel",
        choices=images.KERNELS,
        default="debian",
        help="Debian 13's stock kernel, or one like AWS's, which boots faster (default: %(default)s)",
    )
    options, vmm_options = parser.parse_known_args()
    try:
        image = images.hello(options.kernel)
    except images.ERRORS as error:
        return complain(error)
    run = images.launch(image, *vmm_options)
    say(f"$ vmm run --console {image.relative_to(images.ROOT)} {' '.join(vmm_options)}")
    return subprocess.run(run, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
