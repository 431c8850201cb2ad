"""The inside of the sandbox: a program of its own, which gives up rights, says which, and runs untrusted code.

Started by sandbox.py as `python -I -S sandbox_child.py FD LIMITS`, in an empty directory that holds program.py. It
imports nothing of jaxgpt. On FD it writes one JSON line, {protection: reason why it is missing, or empty}, and "done"
after the code has run to its end, which an exit inside the code does not reach.

Where the kernel does not give a protection, the code is run only if the caller does not require it.

References: man 2 landlock_create_ruleset, seccomp, unshare, prctl, capset, setrlimit; linux/landlock.h up to ABI 6;
asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

import contextlib
import ctypes
import json
import os
import resource
import struct
import sys

_SYSCALLS = {
    # Other processes: none is started, signalled or limited.
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "prlimit64": (302, 261), "setrlimit": (160, 164), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "prctl": (157, 167), "setpgid": (109, 154), "setsid": (112, 157),
    # The network.
    "socket": (41, 198), "io_uring_setup": (425, 425),
    # What stays after the process, or is not counted by its limits.
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Files outside, which Landlock lets be changed by their owner.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "truncate": (76, 45),
    # The machine.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "bpf": (321, 280), "userfaultfd": (323, 282),
    "perf_event_open": (298, 241), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161), "acct": (163, 89),
}  # fmt: skip
"""Calls that fail with EPERM: name -> number on x86_64, on aarch64."""
_CLONE, _CLONE3, _CAPSET, _SECCOMP = {"x86_64": (56, 435, 126, 317), "aarch64": (220, 435, 91, 277)}.get(
    os.uname().machine, (0, 0, 0, 0)
)
_CLONE_THREAD = 0x00010000
_EPERM, _ENOSYS = 1, 38
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function, *args) -> int:
    result = function(*(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def set_limits(limits: dict) -> None:
    bounds = {
        resource.RLIMIT_CPU: limits["cpu_s"], resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"], resource.RLIMIT_NOFILE: limits["n_files"],
        resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: limits["n_processes"],
    }  # fmt: skip
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def die_with_parent() -> None:
    """The parent may be killed at any time; then this process ends too."""
    _call(_libc.prctl, _PR_SET_PDEATHSIG, 9, 0, 0, 0)
    _call(_libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)


def leave_network() -> None:
    """An own user namespace, for the right to have an own network: one without interfaces that are up."""
    new_user, new_net, new_ipc = 0x10000000, 0x40000000, 0x08000000
    _call(_libc.unshare, new_user | new_net | new_ipc)


def confine_files(directory: str) -> None:
    """Landlock: files of the directory may be made, written and removed, Python's and the system's libraries read."""
    execute, write, read, read_dir, remove_file, make_reg, truncate = 1, 2, 4, 8, 1 << 5, 1 << 8, 1 << 14
    create, add, restrict = 444, 445, 446
    abi = _call(_libc.syscall, create, None, 0, 1)
    handled_files = (1 << min({1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16), 16)) - 1
    handled_net, scoped = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("QQQ", handled_files, handled_net, scoped)[:size]
    ruleset = _call(_libc.syscall, create, ctypes.c_char_p(attributes), size, 0)
    readable = [f"{sys.base_prefix}/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64"]
    allowed = dict.fromkeys(readable, execute | read | read_dir)
    allowed |= dict.fromkeys(["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/etc/ld.so.cache"], read)
    allowed["/usr/share/zoneinfo"] = read | read_dir
    allowed[directory] = write | read | read_dir | remove_file | make_reg | truncate
    for path, rights in allowed.items():
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_PATH)
            if not os.path.isdir(path):
                rights &= execute | write | read | truncate
            rule = struct.pack("=Qi", rights & handled_files, fd)
            _call(_libc.syscall, add, ruleset, 1, ctypes.c_char_p(rule), 0)
            os.close(fd)
    _call(_libc.syscall, restrict, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """What root may do beyond the owner of its files."""
    if not _CAPSET:
        raise OSError(_ENOSYS, f"not written for {os.uname().machine}")
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _call(_libc.syscall, _CAPSET, ctypes.c_char_p(header), ctypes.c_char_p(nothing))


def filter_syscalls() -> None:
    """seccomp: the calls of `_SYSCALLS` fail, and no process is made, only threads. Calls of other machines kill."""
    machine = os.uname().machine
    if not _SECCOMP:
        raise OSError(_ENOSYS, f"not written for {machine}")
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    load, equal, at_least, has_bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    fail, kill, allow = 0x00050000, 0x80000000, 0x7FFF0000
    program = [
        (load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, kill),  # x32
        (equal, 0, 1, _CLONE3), (answer, 0, 0, fail | _ENOSYS),  # its flags are in memory; libc takes clone instead
    ]  # fmt: skip
    for numbers in _SYSCALLS.values():
        number = numbers[machine == "aarch64"]
        if number is not None:
            program += [(equal, 0, 1, number), (answer, 0, 0, fail | _EPERM)]
    program += [
        (equal, 0, 3, _CLONE), (load, 0, 0, 16), (has_bits, 1, 0, _CLONE_THREAD), (answer, 0, 0, fail | _EPERM),
        (answer, 0, 0, allow),
    ]  # fmt: skip
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    pointer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(pointer))
    _call(_libc.syscall, _SECCOMP, 1, 0, ctypes.c_char_p(header))


def main() -> None:
    fd, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    with open("program.py", encoding="utf-8") as file:
        source = file.read()
    steps = {
        "limits": lambda: set_limits(limits),
        "die with the parent": die_with_parent,
        "no network": leave_network,
        "no new rights": lambda: _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        "files": lambda: confine_files(os.getcwd()),
        "no capabilities": drop_capabilities,
        "system calls": filter_syscalls,
    }
    missing = {}
    for name, step in steps.items():
        try:
            step()
            missing[name] = ""
        except (OSError, AttributeError, ValueError) as error:
            missing[name] = str(error) or type(error).__name__
    if not missing["system calls"]:
        missing["no network"] = ""  # there is no socket; containers often forbid the namespace
    os.write(fd, json.dumps(missing).encode() + b"\n")
    if limits["required"] and any(missing.values()):
        return
    sys.argv = ["program.py"]
    os.environ.clear()  # Python sets LC_CTYPE in an empty one
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    sys.stdout.flush()
    os.write(fd, b"done")


if __name__ == "__main__":
    main()
