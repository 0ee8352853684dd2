"""nitro-cli's error codes, which are its exit codes as well.

Source: aws-nitro-enclaves-cli 1.5.0, src/common/document_errors.rs, for the numbers and names.
"""

from typing import Final

LINK: Final = "https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html"

ERRORS: Final = {
    "E00": ("Unspecified error", "Something else went wrong."),
    "E01": ("Missing mandatory argument", "An argument is needed and was not given."),
    "E02": ("Conflicting arguments", "Two arguments exclude each other."),
    "E03": ("Invalid argument provided", "An argument has a value that cannot be."),
    "E04": ("Socket pair creation failure", "Two processes could not be joined."),
    "E05": ("Process spawn failure", "The enclave's process could not be started."),
    "E06": ("Daemonize process failure", "The enclave's process could not be put into the background."),
    "E07": ("Read from disk failure", "The directory in which the enclaves are registered cannot be read."),
    "E08": ("Unusable connection error", "The enclave's process has closed its connection."),
    "E09": ("Socket close error", "A connection could not be closed."),
    "E10": ("Socket connect set timeout error", "A connection's time-out could not be set."),
    "E11": ("Socket error", "A socket failed."),
    "E12": ("Epoll error", "Descriptors could not be waited for."),
    "E13": ("Inotify error", "A file could not be watched."),
    "E14": ("Invalid command", "The enclave's process does not know the request."),
    "E15": ("Lock acquire failure", "A lock could not be taken."),
    "E16": ("Thread join failure", "A thread did not end."),
    "E17": ("Serde error", "A request or an answer could not be written or read."),
    "E18": ("File permissions error", "A file's permissions could not be changed."),
    "E19": ("File operation failure", "A file cannot be opened or read, such as the image."),
    "E20": ("Invalid CPU configuration", "A processor was named twice."),
    "E21": ("No such CPU available in the pool", "A processor was named that is not in the pool."),
    "E22": ("Insufficient CPUs available in the pool", "More processors were asked for than the pool has."),
    "E23": ("Malformed CPU ID error", "The list of processors of this machine cannot be read."),
    "E24": ("CPU error", "A range of processors is none."),
    "E25": ("No such hugepage flag error", "There are no huge pages of this size."),
    "E26": ("Insufficient memory requested", "The enclave needs more memory, at least four times its image."),
    "E27": ("Insufficient memory available", "This machine has less memory than was asked for."),
    "E28": ("Invalid enclave descriptor", "The enclave could not be made."),
    "E29": ("Ioctl failure", "The kernel refused a request."),
    "E30": ("Ioctl image get load info failure", "The kernel did not say where the image goes."),
    "E31": ("Ioctl set memory region failure", "The kernel refused the enclave's memory."),
    "E32": ("Ioctl add vCPU failure", "The kernel refused a processor for the enclave."),
    "E33": ("Ioctl start enclave failure", "The kernel did not start the enclave."),
    "E34": ("Memory overflow", "The image does not fit the enclave's memory."),
    "E35": ("EIF file parsing error", "The image is no enclave image file, or is damaged."),
    "E36": ("Enclave boot failure", "The enclave ended, or was not ready in time."),
    "E37": ("Enclave event wait error", "The enclave's events could not be waited for."),
    "E38": ("Enclave process command not executed error", "The enclave's process did not do what was asked."),
    "E39": ("Enclave process connection failure", "The enclave's process does not answer."),
    "E40": ("Socket path not found", "There is no enclave of this id."),
    "E41": ("Enclave process send reply failure", "The enclave's process could not answer."),
    "E42": ("Enclave mmap error", "The enclave's memory could not be mapped."),
    "E43": ("Enclave munmap error", "The enclave's memory could not be given back."),
    "E44": ("Enclave console connection failure", "There is no such console: it needs debug mode."),
    "E45": ("Enclave console read error", "The console could not be read."),
    "E46": ("Enclave console write output error", "The console's output could not be written."),
    "E47": ("Integer parsing error", "A number was wanted."),
    "E48": ("EIF building error", "The image could not be built."),
    "E49": ("Docker image build error", "The container image could not be built."),
    "E50": ("Docker image pull error", "The container image could not be had."),
    "E51": ("Artifacts path environment variable not set", "There is no directory for temporary files."),
    "E52": ("Blobs path environment variable not set", "There are no blobs: kernel, command line and init."),
    "E53": ("Clock skew error", "The clock went backwards."),
    "E54": ("Signal masking error", "Signals could not be blocked."),
    "E55": ("Signal unmasking error", "Signals could not be let through."),
    "E56": ("Logger error", "The log could not be written."),
    "E57": ("Hasher error", "A digest could not be computed."),
    "E58": ("Enclave naming error", "There is no enclave of this name, or its name cannot be."),
    "E59": ("EIF signature checker error", "The image's signature is not valid."),
    "E60": ("Signing error", "The image could not be signed."),
}
"""Name and meaning of each code."""


class NitroCliError(Exception):
    """What ends a command.

    Args:
        code: One of `ERRORS`.
        details: What happened here, for people.
    """

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"[ {code} ] {ERRORS[code][0]}. {details}")
        self.code = code

    @property
    def exit_code(self) -> int:
        """The code's number; 1 for E00, because 0 is success."""
        return int(self.code[1:]) or 1


def explanation(code: str) -> str:
    """What a code means.

    Raises:
        KeyError: There is none.
    """
    name, meaning = ERRORS[code]
    return f"[ {code} ] {name}. {meaning}\n\nFor more details, please visit {LINK}#{code}"
