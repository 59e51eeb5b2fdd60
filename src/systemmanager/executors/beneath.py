"""openat2(2): a path opened below a folder in one step of the kernel's, which no rename or link can come between."""

import ctypes
import errno
import os

_OPENAT2 = 437  # on every architecture
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_MISSING = (errno.ENOSYS, errno.EPERM)
"""No such call in this kernel (before 5.6), or a container's seccomp filter does not know it."""
_TRIES = 8

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(folder: int, path: str) -> int | None:
    """An O_PATH descriptor of `path` below `folder`, no link followed and nothing left; None without openat2.

    Raises `OSError`: EXDEV for what leads out, ELOOP for a link.
    """
    how = _How(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    name = os.fsencode(path or ".")
    for _ in range(_TRIES):
        found: int = _libc.syscall(_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))
        if found >= 0:
            return found
        number = ctypes.get_errno()
        if number in _MISSING:
            return None
        if number not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: something was renamed meanwhile
            break
    raise OSError(number, os.strerror(number))
