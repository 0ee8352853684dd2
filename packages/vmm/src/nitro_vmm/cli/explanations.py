"""What ``vmm explain`` says of the codes of errors."""

from typing import Final, NamedTuple

from nitro_vmm.cli.codes import (
    BUG,
    COMMAND_LINE,
    ENDED,
    EXTRA,
    KILLED,
    NO_CONSOLE,
    NO_IMAGE,
    NOTHING_SAID,
    OTHER,
    OUTPUT,
    STILL_RUNS,
)


class Explained(NamedTuple):
    """What is known of a code."""

    what: str
    """What is wrong."""
    why: str
    """How that comes about."""
    remedy: str
    """What to do."""


EXPLAINED: Final = {
    "M00": Explained(
        "vmm cannot do what it was asked", "the message says what stands in the way", "do what the hint says"
    ),
    "M01": Explained(
        "a setting cannot be",
        "it is out of range, excludes another one, or is misspelt; the message names it as it was given",
        "vmm run --help has all settings; flags win over the environment, and that wins over a file",
    ),
    "M02": Explained(
        "the image cannot boot in this machine",
        "a part of it is damaged, is not for x86-64, or does not fit the memory; the message names the part "
        "and the byte",
        "eif describe --findings IMAGE explains the file; if it was copied, copy it again",
    ),
    "M03": Explained(
        "this machine stands in the way",
        "the operating system, a library or a file refuses; the message says which",
        "vmm doctor looks at all that enclaves need",
    ),
    "M04": Explained(
        "a saved machine cannot go on",
        "it was saved by another version, by another machine or processor, or is damaged",
        "start without it, and save a new one with this version",
    ),
    "M05": Explained(
        "the enclave has ended before it did what was waited for",
        "its application ended, its kernel panicked, or it was stopped; the message says how it ended",
        "look at its console, and at the cause (B...) if there is one",
    ),
    BUG: Explained(
        "this is a mistake in vmm itself",
        "something happened that nobody thought of",
        "set VMM_DEBUG=1 for the traceback, and please report it",
    ),
    COMMAND_LINE: Explained(
        "the command line is not understood",
        "a command or an option does not exist, lacks its value, or excludes another one",
        "the hint names the nearest one; --help shows all",
    ),
    OUTPUT: Explained(
        "standard output takes nothing",
        "the disk is full, or the file or the terminal has gone",
        "give another place for the output",
    ),
    NOTHING_SAID: Explained(
        "the enclave's process ended without a word",
        "it was killed, for example because memory ran out",
        "vmm run without --detach shows more; dmesg says whether the kernel killed it",
    ),
    "M10": Explained(
        "there is no such enclave",
        "the name or id is misspelt, or it was removed; names are those of vmm ps -a",
        "vmm ps -a lists what there is",
    ),
    ENDED: Explained(
        "the enclave is not in the state that this needs",
        "it has ended, or it still runs",
        "vmm ps -a shows its state; vmm stop ends it, vmm logs shows what it printed",
    ),
    "M12": Explained(
        "the name or the CID is taken",
        "an enclave that runs has it",
        "give another one, or none: vmm then finds a free one",
    ),
    "M13": Explained(
        "the enclave's process does not answer",
        "it is stopped (SIGSTOP), hangs, or ended at this moment",
        "vmm ps shows whether it lives; vmm terminate NAME kills it",
    ),
    "M14": Explained(
        "the directory for running enclaves cannot be used",
        "it belongs to another user, others may enter it, or the disk is full or read-only",
        "set XDG_RUNTIME_DIR to a directory of yours with the mode 0700",
    ),
    "M15": Explained(
        "the enclave has too little memory",
        "Nitro wants four times the image's size, because kernel and ramdisks are held in memory, packed and "
        "unpacked",
        "give at least what the hint says, or leave --memory-mib out",
    ),
    "M16": Explained(
        "the image or key is no regular file",
        "reading a pipe or a device might never end",
        "copy it into a file, and give that",
    ),
    "M17": Explained(
        "the image is for another processor",
        "it was built for aarch64, and this machine is an x86-64",
        "build it for x86_64: eif build --arch x86_64",
    ),
    "M18": Explained(
        "Nitro would not boot the image",
        "it breaks a rule of the format: a checksum, a section, its order or its signature",
        "eif describe --findings IMAGE names the rule; build or copy the image again",
    ),
    NO_IMAGE: Explained(
        "the image cannot be read",
        "there is no such file, or you may not read it",
        "give the path of an EIF; eif build makes one",
    ),
    "M20": Explained(
        "the process may not have enough address space",
        "the emulated processor reserves some besides the enclave's memory, and a limit (ulimit -v) is lower",
        "raise the limit, or give the enclave less memory",
    ),
    "M21": Explained(
        "this Unicorn is not the one that vmm knows",
        "vmm uses inner structures of the emulator, and proves before each start that they are in place",
        "install the version that the hint names, as a wheel and not built from source",
    ),
    "M22": Explained(
        "KVM cannot be used",
        "/dev/kvm is missing, closed to you, or of a host that cannot run Linux in it",
        "vmm doctor says which; --accel unicorn emulates the processor, and --accel auto chooses",
    ),
    "M23": Explained(
        "a published port cannot be had on this machine",
        "another program listens there, the address is not of this machine, or the port is a privileged one",
        "give another --publish; port 0 is a free one",
    ),
    "M24": Explained(
        "the root that documents are signed under cannot be made",
        "the directory for it cannot be written",
        "set XDG_DATA_HOME to a directory that can be written, or give a root with --root-key",
    ),
    "M25": Explained(
        "the given root cannot sign documents",
        "key or certificate is no PEM, of another kind than P-384, or one does not belong to the other",
        "nsm pki makes a root; --root-cert names the certificate if it is in a file of its own",
    ),
    "M26": Explained(
        "the vhost-user daemon does not tell of the heartbeat",
        "it was started without --heartbeat or --stats, or the path is another daemon's",
        "start it with --heartbeat --stats PATH, and give PATH as --vsock-stats",
    ),
    "M27": Explained(
        "this process does not serve the enclave's vsock",
        "--vsock vhost-user: gives it to a daemon",
        "connect, listen and publish through the daemon's sockets",
    ),
    EXTRA: Explained(
        "a library is missing that only this needs",
        "it is an extra, which is not installed with vmm",
        "pip install what the hint says",
    ),
    NO_CONSOLE: Explained(
        "the enclave shows no console",
        "on AWS there is a console in debug mode only, and here as well unless --console or --no-console "
        "says otherwise; what vmm itself said is in vmm logs --messages NAME",
        "launch it with --console, or with --debug-mode, whose documents have PCRs of zeros",
    ),
    STILL_RUNS: Explained(
        "the enclave still runs, or has not booted yet",
        "the time that the command had is over",
        "wait longer, or vmm terminate",
    ),
    KILLED: Explained(
        "the enclave's process was killed",
        "nobody is left who could tell how the enclave ended",
        "vmm logs NAME shows what it printed until then, if its console is shown",
    ),
    "M32": Explained(
        "the configuration file cannot be used",
        "it cannot be read, is too long, or is no JSON, TOML or YAML with names and values",
        "the message names the line; vmm run --help has the names",
    ),
    "M33": Explained(
        "GDB cannot be waited for at this address",
        "another program listens there, or the address is not of this machine",
        "give another --gdb; port 0 is a free one",
    ),
    "M34": Explained(
        "this processor cannot be debugged",
        "the accelerator has no registers and breakpoints for a debugger",
        "give --accel unicorn or --accel kvm as well",
    ),
    "M35": Explained(
        "the guest's kernel does not do what a saved machine needs",
        "a machine goes on with fresh random numbers and the right time only if its kernel takes them",
        "start this image without --from and --warm",
    ),
    "M36": Explained(
        "the machine ended while its first program was looked for",
        "the kernel panicked, or it was told to stop",
        "boot the image by vmm run --console and read what it prints",
    ),
    "M37": Explained(
        "the enclave was told to end before its guest ran",
        "a signal or vmm stop came while its image was measured and loaded",
        "nothing; nothing is left of it",
    ),
    "H01": Explained(
        "too many files are open in this process",
        "each connection of the enclave takes one or two, and the limit is low",
        "raise the limit (ulimit -n, LimitNOFILE= of systemd)",
    ),
    "H02": Explained(
        "too many files are open in the whole system",
        "other programs have them",
        "end some, or raise fs.file-max",
    ),
    "H03": Explained(
        "there is not enough memory",
        "the enclave's memory and that of the emulator do not fit",
        "give the enclave less (--memory-mib), or raise the limit (ulimit -v)",
    ),
    "H04": Explained("the disk is full", "logs, images or sockets need room", "make room"),
    OTHER: Explained(
        "the operating system refused a request",
        "the message has its own words for it",
        "look at permissions and paths in the message; vmm doctor looks at the rest",
    ),
    "I01": Explained(
        "nitro-eif cannot do what it was asked", "the message says what stands in the way", "eif --help"
    ),
    "I02": Explained(
        "the file is not what its format says",
        "it is no EIF, was copied in part, or was damaged; the message names the place",
        "copy it again; eif describe IMAGE shows how far it can be read",
    ),
    "I03": Explained(
        "nitro-eif was asked for what cannot be",
        "a value is out of range, or options exclude each other",
        "eif COMMAND --help",
    ),
    "I04": Explained(
        "a file, a program or the network is in the way of nitro-eif",
        "the message has the operating system's words",
        "look at path and permissions; eif build --help names what it needs",
    ),
    "I05": Explained(
        "the image cannot be signed, or its signature is not good",
        "key and certificate do not belong together, have expired, or the key service refused",
        "eif describe IMAGE shows the signature; eif sign makes a new one",
    ),
    "I06": Explained(
        "the container registry does not give the image",
        "it refused, was not reached, or answered nonsense",
        "look at name, login and network; eif build takes archives and OCI layouts as well",
    ),
    "I07": Explained(
        "the distribution does not give the kernel",
        "it was not reached, has no such package, or the package is not signed by its keys",
        "eif kernel --help: a mirror, a version or a keyring can be named",
    ),
    "N01": Explained(
        "the security module cannot be made or asked", "the message says what stands in the way", "nsm --help"
    ),
    "N02": Explained(
        "the security module was asked for what cannot be",
        "a value is out of range, or two exclude each other",
        "nsm COMMAND --help",
    ),
    "N03": Explained(
        "a key, certificate or document cannot be used",
        "the file is missing, unreadable, or not what it should be",
        "nsm pki makes keys and certificates that fit",
    ),
    "N04": Explained(
        "the operating system is in the way of the security module",
        "a directory, a socket or the device was refused",
        "look at path and permissions in the message; XDG_DATA_HOME moves the test root",
    ),
    "N05": Explained(
        "the bytes are not the CBOR that is allowed here",
        "a request or document is cut short, too long, or made by other rules",
        "compare with the NSM's requests in the documentation",
    ),
    "N06": Explained(
        "the attestation document is not good",
        "its signature, chain, time or a measurement is not what was asked for; the message says which",
        "nsm describe DOCUMENT shows it; documents of this machine need its test root: nsm pki show",
    ),
    "N07": Explained(
        "the security module refused a request",
        "a register is locked, an index does not exist, or a field is too long",
        "the error's name is the one of AWS's NSM",
    ),
    "N08": Explained(
        "the local key service refused a request",
        "the key does not exist, or its policy does not allow this enclave",
        "its log says which condition failed",
    ),
    "N09": Explained(
        "what the key service sent cannot be opened",
        "it was made for another key, or is damaged",
        "ask with the public key of the same request",
    ),
    "V01": Explained(
        "vsock cannot be served", "the message says what stands in the way", "do what the hint says"
    ),
    "V02": Explained(
        "vsock was used in a way that cannot work",
        "the message says what to change",
        "vhost-user-vsock --help",
    ),
    "V03": Explained(
        "a vsock socket of this machine cannot be had",
        "its path is in use, too long or not writable, or nobody listens there",
        "give another --vsock-path; with --vsock vhost-user: start the daemon first",
    ),
    "V04": Explained(
        "the daemon's configuration cannot be used",
        "the file is unreadable, or a key is wrong; the message names it",
        "vhost-user-vsock --check shows what a configuration means",
    ),
    "V05": Explained(
        "the vhost-user daemon does not keep to the protocol",
        "it is for another device, of another version, or hangs",
        "start vhost-user-vsock at that path, and look at its log",
    ),
    "V06": Explained(
        "the vhost-user daemon cannot do one request", "it lacks a feature", "look at its log, or update it"
    ),
    "V07": Explained(
        "a process of the daemon did not start", "it has said why on standard error", "do what that says"
    ),
    "V08": Explained(
        "the guest's driver has broken a queue",
        "its layout or an index is wrong; the device needs a reset, which the driver has to do",
        "look at the kernel that the image has",
    ),
    "V09": Explained(
        "the guest's driver has sent a chain that is none",
        "its descriptors break virtio's rules; the chain was given back unused",
        "look at the kernel that the image has",
    ),
    "V10": Explained(
        "the guest's driver named memory that it does not have",
        "an address in a queue is outside of the enclave's memory",
        "look at the kernel that the image has",
    ),
    "V11": Explained(
        "a program did not say where it wants to connect to",
        "it closed the socket, or wrote something else than CONNECT and a port",
        "write `CONNECT 5000` and a line end first",
    ),
}
"""All codes of errors."""
