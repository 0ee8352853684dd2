"""What a program in Python does that talks to others: JSON, digests, keys and TLS, in CPython and OpenSSL."""

import hashlib
import json
import re
import ssl
import subprocess

RECORDS = [
    {"name": f"record {number}", "value": number / 7, "tags": ["a", "b"] * 3, "no": number}
    for number in range(400)
]


def documents(rounds: int) -> None:
    """JSON, dictionaries, sorting, and a regular expression."""
    for _ in range(rounds):
        text = json.dumps(RECORDS, indent=1)
        found = json.loads(text)
        found.sort(key=lambda record: (-record["value"], record["name"]))
        words: dict[str, int] = {}
        for word in re.findall(r"[a-z]+|\d+\.\d+", text):
            words[word] = words.get(word, 0) + 1


def digests(rounds: int) -> None:
    """Of short and of long data, and keys made of passwords."""
    block = bytes(range(256)) * 4096
    for number in range(rounds):
        hashlib.sha384(block).digest()
        for short in range(500):
            hashlib.sha256(b"%d" % short).hexdigest()
        hashlib.pbkdf2_hmac("sha256", b"password", b"%d" % number, 3000)


def handshakes(rounds: int) -> None:
    """TLS between two ends in memory, with a certificate made here."""
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/key -out /tmp/cert"
    )
    subprocess.run([*make.split(), "-subj", "/CN=here"], check=True, capture_output=True)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain("/tmp/cert", "/tmp/key")  # noqa: S108 - the guest has nobody else
    client.load_verify_locations("/tmp/cert")  # noqa: S108
    for _ in range(rounds):
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(back, there, server_hostname="here"),
            server.wrap_bio(there, back, server_side=True),
        ]
        waiting = list(ends)
        while waiting:
            for end in list(waiting):
                try:
                    end.do_handshake()
                    waiting.remove(end)
                except ssl.SSLWantReadError:
                    pass
        ends[0].write(b"x" * 10_000)
        ends[1].read(10_000)


def main() -> None:
    """All of it."""
    documents(30)
    digests(25)
    handshakes(30)


if __name__ == "__main__":
    main()
