"""``make bench``: AES-256-GCM of the libraries that the data plane could take, a call's cost by length.

ring and aws-lc-rs by ``rust/core/examples/ciphers.rs``, OpenSSL by its own program.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LENGTHS = (100, 576, 1400)


def main() -> None:
    example = ["cargo", "run", "--release", "--locked", "--quiet", "-p", "ginnel-core", "--example", "ciphers"]
    done = subprocess.run(example, cwd=ROOT, check=True, capture_output=True, text=True)
    print("AES-256-GCM, one call, ns: library, bytes, seal, open")
    print(done.stdout.partition("\n")[2], end="")
    for length in LENGTHS:
        print(f"OpenSSL {length} {openssl(length):.0f}")


def openssl(length: int) -> float:
    """ns to seal so many bytes, by EVP with a header and a tag."""
    words = [
        "openssl",
        "speed",
        "-elapsed",
        "-mr",
        "-seconds",
        "1",
        "-bytes",
        str(length),
        "-aead",
        "-evp",
        "aes-256-gcm",
    ]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    # +F:number:name:bytes a second
    line = next(line for line in done.stdout.splitlines() if line.startswith("+F:"))
    return length / float(line.rpartition(":")[2]) * 1e9


if __name__ == "__main__":
    main()
