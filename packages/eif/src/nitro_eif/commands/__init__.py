"""The commands of ``eif``, a module each.

A command's module has ``EXAMPLES`` (command lines for its help), ``add_arguments(parser)`` and
``run(options)``, which returns the exit code. To add a command, write such a module and name it here.
"""

from typing import Final

COMMANDS: Final = {
    "build": "build an image from kernel, command line and ramdisks, or from an application",
    "kernel": "fetch a distribution's kernel package, and print where it is",
    "describe": "explain an image: sections, measurements, metadata, and what is wrong with it",
    "verify": "check that Nitro would boot an image, and that it is the one you expect",
    "diff": "say what differs between two images, and which registers change because of it",
    "extract": "write an image's sections to files, or list the files in its ramdisks",
    "assemble": "put an image together from the files that extract wrote",
    "sign": "sign an image, replacing a signature that it has",
    "unsign": "take an image's signature away",
    "pcr": "compute the register that a file, certificate, role or instance makes",
    "completion": "print a completion script",
}
"""Names, and what ``eif --help`` says of each."""
