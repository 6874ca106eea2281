"""Linux calls that Python does not wrap, through ctypes; each raises OSError with the kernel's reason."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
PR_SET_SECUREBITS = 28

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442  # this and Landlock's numbers are the same on every architecture
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_AT_RECURSIVE = 0x8000
_READ = 1 | 4 | 8  # execute, read file, read directory
_SCOPED = 1 | 2  # abstract Unix sockets and signals stay among those under the rules

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int, pointer: ctypes.c_void_p | None = None) -> None:
    """prctl(2)."""
    arguments = (ctypes.c_ulong(value), pointer or ctypes.c_void_p(), ctypes.c_ulong(0), ctypes.c_ulong(0))
    _check(_libc.prctl(option, *arguments), f"prctl {option}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    name = kind.encode() if kind else None
    result = _libc.mount(
        source.encode(), target.encode(), name, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(result, f"mount {target}")


def make_read_only(target: str) -> None:
    """Make a mount and all below it read-only; on kernels before 5.12 the mount alone."""
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    flags = ctypes.c_uint(_AT_RECURSIVE)
    if _libc.syscall(_MOUNT_SETATTR, -100, target.encode(), flags, attributes, len(attributes)) < 0:
        mount("", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def pivot_root(target: str) -> None:
    """Make a mount the root, and let go of the old one."""
    os.chdir(target)
    _check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")


def has_landlock() -> bool:
    """Does the kernel offer Landlock?"""
    return _landlock_version() > 0


def _landlock_version() -> int:
    return _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)


def restrict_reading(folders: Iterable[str]) -> None:
    """Landlock: only these folders can be read, and nothing written; from Linux 6.12 on, no other process signalled."""
    version = _landlock_version()
    handled = 0x1FFF | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    rules = struct.pack("QQQ", handled, 0, _SCOPED) if version >= 6 else struct.pack("Q", handled)
    create = (_LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), 0)
    ruleset = _check(_libc.syscall(*create), "landlock")
    for folder in folders:
        handle = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ, handle)
        _check(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock {folder}")
        os.close(handle)
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)
