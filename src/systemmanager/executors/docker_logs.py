"""A container's log as the engine sends it."""

import struct

_HEADER = struct.Struct(">BxxxL")


def plain_text(content: bytes, tty: bool) -> str:
    """What a container wrote, in order. Without a terminal the engine frames each piece: stream, length, bytes.

    The end may be cut, in a frame or within a header.
    """
    if tty:
        return content.decode("utf-8", "replace").replace("\r\n", "\n")
    pieces: list[bytes] = []
    at = 0
    while at + _HEADER.size <= len(content):
        _, length = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        pieces.append(content[at : at + length])
        at += length
    return b"".join(pieces).decode("utf-8", "replace")
