"""A seccomp filter for the program: what it may not ask of the kernel.

Two strengths. Inside its own namespaces a program loses sockets and the calls that widen what it can reach of the
kernel. Without namespaces (`alone`) it also loses processes, signals to others, every way to change a file, and every
way to name another socket than its pair's, file locks, and the scheduling of others: it can compute, read, and write to the pipes it was given.

Numbers are those of Linux's unistd.h: x86-64 and 64-bit Arm.
"""

from __future__ import annotations

import ctypes
import os
import struct

import kernel

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # x86-64's second table, refused whole
_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag, CLONE_NEWTIME included
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# name: (x86-64, 64-bit Arm); None where the call does not exist.
_ALWAYS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),  # memory that no limit of ours counts
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
}
_ALONE: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "connect": (42, 203),
    "bind": (49, 200),
    "sendmmsg": (307, 269),
    "flock": (73, 32),  # a lock on what can be read would make the host wait
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "creat": (85, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
# clone3 and openat2 hide their flags behind a pointer.
_CLONE, _CLONE3, _OPENAT2 = (56, 220), (435, 435), (437, 437)
_OPEN, _OPENAT, _KILL_CALL, _TGKILL, _PRLIMIT = (2, None), (257, 56), (62, 129), (234, 131), (302, 261)
_FCNTL, _IOCTL, _SENDTO, _SOCKETPAIR = (72, 25), (16, 29), (44, 206), (53, 199)
_SETPRIORITY, _SETAFFINITY = (141, 140), (203, 122)
# F_SETOWN, F_SETSIG, F_SETOWN_EX, F_NOTIFY: whom the kernel signals, and with what.
_OWNING = (8, 10, 15, 0x402)
_LOCKING = (6, 7, 37, 38, 0x400)  # F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW, F_SETLEASE
_AF_UNIX = 1
# Bits that SOCK_STREAM (1) and SOCK_SEQPACKET (5) lack and the other kinds of Unix sockets have. To these two alone an
# address in `sendmsg`, behind a pointer where no filter sees it, says nothing.
_OTHER_SOCKETS = 0xA
_OWNING_IOCTL = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP: the same for sockets


def supported() -> bool:
    """Is there a filter for this machine?"""
    return os.uname().machine in _MACHINES


def install(alone: bool) -> None:
    """Filter this process and all it becomes; the caller has set PR_SET_NO_NEW_PRIVS.

    Args:
      alone: there are no namespaces around the program; the stronger filter.
    """
    column, architecture = _MACHINES[os.uname().machine]
    code = _program(column, architecture, alone)
    buffer = ctypes.create_string_buffer(code)
    filter_struct = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    pointer = ctypes.cast(ctypes.create_string_buffer(filter_struct), ctypes.c_void_p)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, pointer)


def _program(column: int, architecture: int, alone: bool) -> bytes:
    deny, unknown = _ERRNO | _EPERM, _ERRNO | _ENOSYS
    lines = [
        _line(_LOAD, _ARCHITECTURE),
        _line(_JUMP_EQUAL, architecture, 1, 0),
        _line(_RETURN, _KILL),
        _line(_LOAD, _NUMBER),
    ]
    if column == 0:
        lines += [_line(_JUMP_AT_LEAST, _X32, 0, 1), _line(_RETURN, _KILL)]
    table = _ALWAYS | (_ALONE if alone else {})
    for numbers in table.values():
        lines += _simple(numbers[column], deny)
    lines += _simple(_CLONE3[column], unknown)
    if alone:
        own = os.getpid()
        lines += _simple(_OPENAT2[column], unknown)
        lines += _argument(_CLONE[column], 0, _line(_JUMP_SET, _CLONE_THREAD, 1, 0), deny)
        lines += _argument(_OPEN[column], 1, _line(_JUMP_SET, _WRITING, 0, 1), deny)
        lines += _argument(_OPENAT[column], 2, _line(_JUMP_SET, _WRITING, 0, 1), deny)
        for call in (_KILL_CALL, _TGKILL):
            lines += _argument(call[column], 0, _line(_JUMP_EQUAL, own, 1, 0), deny)
        lines += _argument(_SETPRIORITY[column], 0, _line(_JUMP_EQUAL, 0, 1, 0), deny)  # PRIO_PROCESS
        for call, index in ((_PRLIMIT, 0), (_SETAFFINITY, 0), (_SETPRIORITY, 1)):
            lines += _argument(call[column], index, _line(_JUMP_EQUAL, 0, 1, 0), deny)
        lines += _argument(_SOCKETPAIR[column], 0, _line(_JUMP_EQUAL, _AF_UNIX, 1, 0), deny)
        lines += _argument(_SOCKETPAIR[column], 1, _line(_JUMP_SET, _OTHER_SOCKETS, 0, 1), deny)
        for call, commands in ((_FCNTL, _OWNING + _LOCKING), (_IOCTL, _OWNING_IOCTL)):
            for command in commands:
                lines += _argument(call[column], 1, _line(_JUMP_EQUAL, command, 0, 1), deny)
        for high in (False, True):  # an address; without one it is `send`
            lines += _argument(_SENDTO[column], 4, _line(_JUMP_EQUAL, 0, 1, 0), deny, high=high)
    else:
        lines += _argument(_CLONE[column], 0, _line(_JUMP_SET, _CLONE_NEW, 0, 1), deny)
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _simple(number: int | None, verdict: int) -> list[bytes]:
    return [] if number is None else [_line(_JUMP_EQUAL, number, 0, 1), _line(_RETURN, verdict)]


def _argument(
    number: int | None, index: int, test: bytes, verdict: int, *, high: bool = False
) -> list[bytes]:
    """For one call, decide by the low half of an argument, or the high: `test` falls through to the verdict or jumps past."""
    if number is None:
        return []
    return [
        _line(_JUMP_EQUAL, number, 0, 4),
        _line(_LOAD, _ARGUMENTS + 8 * index + 4 * high),  # both machines are little-endian
        test,
        _line(_RETURN, verdict),
        _line(_LOAD, _NUMBER),
    ]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
