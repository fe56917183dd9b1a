class ControlCipher:
    """The cipher of tls-crypt for one direction, of two keys of 32 bytes (ValueError for others)."""

    def __new__(cls, cipher: bytes, mac: bytes) -> ControlCipher: ...
    def seal(self, head: bytes, body: bytes) -> bytes:
        """Tag (32) and ciphertext of ``body``; ``head`` goes in clear, and is not repeated."""

    def open(self, head: bytes, sealed: bytes) -> bytes | None:
        """The body again; None for what was not made with these keys and this head."""
