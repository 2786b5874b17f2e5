"""Builds the seccomp filters that refuse system calls to untrusted programs (classic BPF, assembled here; x86-64 only).

The filters list what is refused, not what is allowed, since the calls Python needs differ from version to version. They
close the kernel's rarely used parts (where most escapes were found), the network, and memory that no resource limit counts.
Calls newer than the list return ENOSYS, which libraries take for an older kernel.

    in_namespaces()  for a program inside namespaces, which take care of files, processes and signals
    alone()          for a program without namespaces: also refuses opening files for writing, new processes and signals
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
_NR, _ARCH, _ARGS = 0, 4, 16
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NEWEST = 448  # newest call known to this list; x32 calls have bit 30 set, so they are above it too

_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020080  # new namespaces of every kind: user, pid, net, ipc, uts, cgroup, mount, time
_WRITES = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # O_WRONLY O_RDWR O_CREAT O_TRUNC O_APPEND O_TMPFILE

NETWORK = {"socket": 41}  # socketpair stays allowed: it reaches no other process
MOUNTS = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "move_mount": 429, "open_tree": 428, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "unshare": 272, "setns": 308, "swapon": 167,
    "swapoff": 168, "quotactl": 179, "quotactl_fd": 443, "open_by_handle_at": 304, "name_to_handle_at": 303,
}  # fmt: skip
KERNEL = {
    "bpf": 321, "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249, "kexec_load": 246,
    "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176, "reboot": 169, "acct": 163,
    "iopl": 172, "ioperm": 173, "modify_ldt": 154, "personality": 135, "settimeofday": 164, "clock_settime": 227,
    "adjtimex": 159, "clock_adjtime": 305, "sethostname": 170, "setdomainname": 171, "syslog": 103, "vhangup": 153,
    "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "fanotify_init": 300,
    "lookup_dcookie": 212, "uselib": 134, "ustat": 136, "sysfs": 139, "_sysctl": 156, "nfsservctl": 180,
}  # fmt: skip
OTHER_PROCESSES = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "process_madvise": 440, "process_mrelease": 448,
    "pidfd_getfd": 438, "kcmp": 312, "move_pages": 279, "migrate_pages": 256, "setpriority": 141, "ioprio_set": 251,
    "sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314, "sched_setaffinity": 203,
}  # fmt: skip
UNCOUNTED_MEMORY = {"shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319}
WRITES = {
    "creat": 85, "mkdir": 83, "mkdirat": 258, "unlink": 87, "unlinkat": 263, "rmdir": 84, "rename": 82, "renameat": 264,
    "renameat2": 316, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "mknod": 133, "mknodat": 259,
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "truncate": 76,
    "ftruncate": 77, "fallocate": 285, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "mq_unlink": 241,
}  # fmt: skip
PROCESSES = {"fork": 57, "vfork": 58, "setsid": 112, "setpgid": 109}
SIGNALS = {
    "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_open": 434,
    "pidfd_send_signal": 424,
}  # fmt: skip
_OPEN, _OPENAT, _OPENAT2, _CLONE, _CLONE3, _PRLIMIT = 2, 257, 437, 56, 435, 302


def in_namespaces() -> bytes:
    """Returns the filter for a program inside namespaces: an array of struct sock_filter, 8 bytes each."""
    refused = (NETWORK, MOUNTS, KERNEL, OTHER_PROCESSES, UNCOUNTED_MEMORY)
    return _assemble([*_refuse(refused), *_refuse_if(_CLONE, 0, _CLONE_NEW, set_=True)])


def alone() -> bytes:
    """Returns the filter for a program that nothing else isolates: it can compute, read files and print."""
    refused = (NETWORK, MOUNTS, KERNEL, OTHER_PROCESSES, UNCOUNTED_MEMORY, WRITES, PROCESSES, SIGNALS)
    return _assemble(
        [
            *_refuse(refused),
            *_refuse_if(_CLONE, 0, _CLONE_THREAD, set_=False),
            *_refuse_if(_PRLIMIT, 0, 0xFFFFFFFF, set_=True),  # 0 is the caller itself
            *_refuse_if(_OPEN, 1, _WRITES, set_=True),
            *_refuse_if(_OPENAT, 2, _WRITES, set_=True),
            *_refuse([{"openat2": _OPENAT2}], errno.ENOSYS),  # its flags are behind a pointer, which no filter follows
        ]
    )


_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def _refuse(groups: Iterable[dict[str, int]], error: int = errno.EPERM) -> list[_Instruction]:
    pairs = (((_EQUAL, 0, 1, nr), (_RETURN, 0, 0, _ERRNO | error)) for group in groups for nr in group.values())
    return [instruction for pair in pairs for instruction in pair]


def _refuse_if(nr: int, argument: int, mask: int, *, set_: bool) -> list[_Instruction]:
    """Refuses call `nr` when any bit of the mask is set in the argument, or (set_=False) when none is; else allows it."""
    refuse, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    when_set, when_clear = (refuse, allow) if set_ else (allow, refuse)
    return [
        (_EQUAL, 0, 4, nr),
        (_LOAD, 0, 0, _ARGS + 8 * argument),  # the low half: flags have 32 bits
        (_ANY_BIT, 0, 1, mask),
        when_set,
        when_clear,
    ]


def _assemble(rules: list[_Instruction]) -> bytes:
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NR),
        (_ABOVE, 0, 1, _NEWEST),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        *_refuse([{"clone3": _CLONE3}], errno.ENOSYS),  # its flags are behind a pointer; libc then takes clone
        *rules,
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
