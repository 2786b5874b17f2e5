"""Ways out of a sandbox, for tests/envs/isolation/test_sandbox.py. Each is a program that prints ESCAPED where it gets through.

`W` in a program is what the test prepared outside: a secret in a file, in an environment and behind an open descriptor, a
process to signal, sockets to reach, paths that must not come to be. `attempt(f)` prints ESCAPED if f() does not raise and
returns something true.
"""

from __future__ import annotations

from dataclasses import dataclass

PREAMBLE = """
import ctypes, errno, json, os, resource, signal, socket, struct, subprocess, sys, threading, time
W = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*arguments):
    # As longs: ctypes passes a plain int as 32 bits, and what is above them is whatever was there.
    return libc.syscall(*(ctypes.c_long(x) if isinstance(x, int) else x for x in arguments))
def attempt(f):
    try:
        result = f()
    except BaseException as error:
        print("stopped:", type(error).__name__, error)
    else:
        print("ESCAPED" if result else "stopped", flush=True)
def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
def read(path):
    with open(path, "rb") as file:
        return W["secret"].encode() in file.read(1 << 20)
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """Describes one attack.

    kind     the gap of a level through which this is known to pass
    status   what the outcome must be, where there is only one
    control  without any isolation it is harmless here and does get through, which a test checks
    """

    name: str
    code: str
    kind: str = ""
    status: str = ""
    control: bool = False
    wall_s: float = 20.0
    key: str = ""  # the key in W of the path that the control has to be able to write


def _syscall(name: str, call: str, *, control: bool = False) -> Attack:
    return Attack(name, f"attempt(lambda: syscall({call}) >= 0)", "kernel", control=control)


def _write(name: str, path: str) -> Attack:
    return Attack(f"write to {name}", f"attempt(lambda: write(W[{path!r}]))", "writing", control=True, key=path)


ATTACKS = (
    # more than its share
    Attack("fork bomb", "while True:\n try: os.fork()\n except OSError: pass", wall_s=2, status="timeout"),
    Attack(
        "more processes than allowed",
        "def f():\n for _ in range(60):\n  if os.fork() == 0: time.sleep(60)\n return True\nattempt(f)",
    ),
    Attack(
        "thread bomb",
        "def f():\n for _ in range(200): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        " return True\nattempt(f)\nos._exit(0)",
        control=True,
    ),
    Attack("memory bomb", "attempt(lambda: bytearray(2 << 30))\nbytearray(2 << 30)", status="memory"),
    Attack("endless stdout", "while True: os.write(1, b'x' * 4096)", status="output"),
    Attack("endless stderr", "while True: os.write(2, b'x' * 4096)", status="output"),
    Attack("output from a child", "os.fork()\nwhile True: os.write(1, b'x' * 4096)", ""),
    Attack(
        "huge file",
        "def f():\n with open('big', 'wb') as b:\n  for _ in range(64): b.write(bytes(1 << 20))\n return True\nattempt(f)",
    ),
    Attack("many files", "attempt(lambda: [write(f'f{i}') for i in range(2000)])", "many"),
    Attack("many big files", "attempt(lambda: [open(f'b{i}', 'wb').write(bytes(4 << 20)) for i in range(20)])", "many"),
    Attack("raise the limits", "attempt(lambda: not resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)))"),
    Attack(
        "raise the limits of processes", "attempt(lambda: not resource.setrlimit(resource.RLIMIT_NPROC, (10**5,) * 2))"
    ),
    Attack("better priority", "attempt(lambda: os.nice(-5) is not None)"),
    _syscall("memory in a memfd", "319, b'm', 0", control=True),
    _syscall("memory in System V segments", "29, 0, 1 << 20, 0o1600", control=False),
    _syscall("memory in a message queue", "68, 0, 0o1600", control=False),
    # for ever
    Attack("sleep", "time.sleep(600)", wall_s=1, status="timeout"),
    Attack("busy loop", "while True: pass", status="timeout"),
    Attack("busy in C", "pow(7, 10**9)", status="timeout"),
    Attack("busy in a regular expression", "import re; re.match('(a*)*b', 'a' * 60)", status="timeout"),
    Attack(
        "deaf to signals",
        "for s in (signal.SIGTERM, signal.SIGXCPU, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):\n"
        " signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        status="timeout",
    ),
    Attack("closed output", "for fd in (0, 1, 2): os.close(fd)\ntime.sleep(600)", wall_s=1, status="timeout"),
    Attack("stdin for ever", "sys.stdin.read(); os.read(0, 10)", status="ok"),
    Attack("named pipe", "os.mkfifo('pipe'); open('pipe')", wall_s=1),
    Attack("stopped by its own hand", "os.kill(os.getpid(), signal.SIGSTOP)", wall_s=1),
    Attack(
        "double fork",
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  os.closerange(0, 64); time.sleep(600)\n os._exit(0)",
        "processes",
    ),
    Attack(
        "double fork that keeps the output open",
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(600)\n os._exit(0)",
        "processes",
    ),
    Attack(
        "crash of the interpreter", "sys.setrecursionlimit(10**9)\nf = lambda: f()\nexec('f()')\nctypes.string_at(0)"
    ),
    # files
    Attack("secret in its own environment", "attempt(lambda: W['secret'] in str(os.environ))"),
    Attack(
        "secret in other environments",
        "for pid in filter(str.isdigit, os.listdir('/proc')): attempt(lambda: read(f'/proc/{pid}/environ'))",
        "reading",
        control=True,
    ),
    Attack("private key", "attempt(lambda: read(W['key']))", "reading", control=True),
    Attack("key through the root of another process", "attempt(lambda: read(f'/proc/1/root{W[\"key\"]}'))", "reading"),
    Attack("users and passwords", "attempt(lambda: open('/etc/passwd').read())", "reading", control=True),
    Attack("code of the environment", "attempt(lambda: open(W['source']).read())", "reading", control=True),
    Attack(
        "open descriptors of the parent",
        "for fd in range(3, 256):\n attempt(lambda: W['secret'].encode() in os.pread(fd, 1000, 0))",
    ),
    _write("/tmp", "tmp"),
    _write("/etc", "etc"),
    _write("the home folder", "home"),
    _write("the folder of the parent", "cwd"),
    _write("the repository", "repo"),
    _write("/dev/shm", "shm"),
    Attack("write to the root that it sees", "attempt(lambda: open('/x', 'w'))"),
    Attack("write to the interpreter", "attempt(lambda: open(os.__file__, 'r+'))", "writing"),
    Attack("write through a symbolic link", "os.symlink(W['victim'], 'l'); attempt(lambda: write('l'))", "writing"),
    Attack("write through a hard link", "os.link(W['victim'], 'h'); attempt(lambda: write('h'))", "writing"),
    Attack(
        "symbolic links for the cleaner", "os.symlink(W['outside'], 'a'); os.symlink('/', 'b'); os.symlink('.', 'c')"
    ),
    Attack("delete outside", "attempt(lambda: os.remove(W['victim']) is None)", "writing"),
    Attack("change rights outside", "attempt(lambda: os.chmod(W['victim'], 0o666) is None)", "writing", control=True),
    Attack(
        "archive of ..",
        "import io, tarfile\nraw = io.BytesIO()\nwith tarfile.open(fileobj=raw, mode='w') as t:\n"
        " t.addfile(tarfile.TarInfo('../../../../../..' + W['tmp']))\nraw.seek(0)\n"
        "attempt(lambda: tarfile.open(fileobj=raw).extractall('.', filter='fully_trusted'))",
        "writing",
    ),
    Attack(
        "another binary",
        "attempt(lambda: subprocess.run(['/bin/sh', '-c', 'echo x > ' + W['tmp']]).returncode == 0)",
        "writing",
        control=True,
    ),
    Attack(
        "shared memory",
        "import _posixshmem\nname = '/' + os.path.basename(W['shm'])\n"
        "attempt(lambda: _posixshmem.shm_open(name, os.O_CREAT | os.O_RDWR, 0o600))",
        "writing",
        control=True,
    ),
    Attack("setting of the kernel", "attempt(lambda: open('/proc/sys/kernel/core_pattern', 'r+'))"),
    Attack(
        "devices",
        "for d in ('mem', 'kmsg', 'kvm', 'fuse', 'vda', 'sda', 'tty', 'ptmx'): attempt(lambda: open('/dev/' + d, 'rb'))",
        "reading",
    ),
    # processes
    Attack("kill a process of the driver", "attempt(lambda: os.kill(W['pid'], signal.SIGKILL) is None)", "signals"),
    Attack("kill everything", "attempt(lambda: os.kill(-1, signal.SIGKILL) is None)\ntime.sleep(.1)", "signals"),
    Attack("kill its own supervisor", "attempt(lambda: os.kill(os.getppid(), signal.SIGKILL))", "signals", status="ok"),
    Attack("stop its own supervisor", "os.kill(os.getppid(), signal.SIGSTOP)", "signals"),
    Attack("kill by group", "attempt(lambda: os.killpg(W['pid'], signal.SIGKILL) is None)", "signals"),
    _syscall("trace a process", "101, 16, W['pid'], 0, 0"),
    _syscall("be traced", "101, 0, 0, 0, 0", control=True),
    _syscall("read memory of a process", "310, os.getpid(), 0, 0, 0, 0, 0", control=True),
    Attack(
        "forge the report",
        "for fd in range(256):\n try: os.write(fd, b'{\"status\": 0}\\n')\n except OSError: pass\nos._exit(7)",
        status="exit",
    ),
    Attack(
        "forge the report through the supervisor",
        "for fd in range(64): attempt(lambda: os.write(os.open(f'/proc/{os.getppid()}/fd/{fd}', os.O_WRONLY), b'{}\\n'))",
    ),
    # network
    Attack(
        "TCP",
        "attempt(lambda: socket.create_connection(('127.0.0.1', W['tcp']), 2).send(b'x'))",
        "network",
        control=True,
    ),
    Attack(
        "UDP",
        "attempt(lambda: socket.socket(2, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', W['udp'])))",
        "network",
        control=True,
    ),
    Attack("names", "attempt(lambda: socket.getaddrinfo('example.com', 80))", "network"),
    Attack("listen", "s = socket.socket\nattempt(lambda: s().bind(('127.0.0.1', 0)) is None)", "network", control=True),
    Attack(
        "Unix socket",
        "attempt(lambda: socket.socket(socket.AF_UNIX).connect(W['unix']) is None)",
        "network",
        control=True,
    ),
    Attack(
        "abstract socket",
        "attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + W['abstract']) is None)",
        "network",
        control=True,
    ),
    Attack("netlink", "attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))", "network", control=True),
    # the kernel
    Attack("mount", "attempt(lambda: libc.mount(b't', b'/tmp', b'tmpfs', 0, None) == 0)"),
    Attack("mount in a namespace of its own", "attempt(lambda: libc.unshare(0x10020000) == 0)", "kernel"),
    _syscall("namespace by clone", "56, 0x10000000 | 17, 0, 0, 0, 0"),
    Attack(
        "out of a chroot",
        "attempt(lambda: (os.mkdir('c'), os.chroot('c'), os.chdir('../../../../..'), os.chroot('.'), read(W['key']))[-1])",
    ),
    Attack(
        "become root",
        "def rights():\n os.setuid(0)\n line = next(x for x in open('/proc/self/status') if x.startswith('CapEff'))\n"
        " return int(line.split()[1], 16)\nattempt(rights)",
    ),
    Attack(
        "program with a set-user-id bit",
        "def f():\n done = subprocess.run(['/usr/bin/su', '-c', 'id'], stdin=subprocess.DEVNULL, capture_output=True)\n"
        " return b'uid=0' in done.stdout\nattempt(f)",
    ),
    _syscall("raw socket call", "41, 1, 1, 0", control=True),
    _syscall("x32 socket call", "0x40000000 | 41, 1, 1, 0"),
    Attack(
        "32-bit call",
        "import mmap\ncode = mmap.mmap(-1, 4096, prot=7)\ncode.write(bytes.fromhex('b8 14 00 00 00 cd 80 c3'))\n"
        "call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))\n"
        "attempt(lambda: call() > 0)",
        "kernel",
    ),
    _syscall("io_uring", "425, 4, ctypes.create_string_buffer(120)"),
    _syscall("bpf", "321, 0, ctypes.create_string_buffer(128), 128"),
    _syscall("kernel keys", "248, b'user', b'k', b'v', 1, -2"),
    _syscall("performance events", "298, ctypes.create_string_buffer(128), 0, -1, -1, 0"),
    _syscall("page faults by hand", "323, 1"),
    _syscall("file by handle", "304, -100, ctypes.create_string_buffer(64), 0"),
    _syscall("the clock", "227, 0, 0"),
    _syscall("a call younger than the list", "449, 0, 0, 0, 0, 0"),
)
