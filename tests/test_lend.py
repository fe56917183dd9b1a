"""What a lent program meets: every way to the device, and every way out.

The programs run as whoever runs the tests: as root, the real device is within their reach, and must not be reached.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ginnel.device.address import parse_address
from ginnel.device.interface import Interfaces
from ginnel.device.lend import LentProgram, Node
from ginnel.errors import DeviceError
from ginnel.testing.ioctl_cases import IOCTL_CASES
from tests.harness.lend import PREAMBLE, lent
from tests.test_rtnetlink import samples


@pytest.fixture
async def interfaces():
    made = Interfaces(first_index=1 << 20)
    yield made
    await made.aclose()


async def said(interfaces, program, **options):
    """What a program says, when it ends well."""
    async with lent(interfaces, program, **options) as running:
        lines = await running.lines()
        assert await running.program.wait() == 0, lines
    return lines


async def test_every_way_to_the_node(interfaces, tmp_path):
    (tmp_path / "link").symlink_to("/dev/net/tun")
    lines = await said(
        interfaces,
        f"""
os.chdir("/")
folder = os.open("/dev", os.O_RDONLY)
link = {str(tmp_path / "link")!r}
opened = [os.open(path, os.O_RDWR) for path in ("/dev/net/tun", "dev/net/tun", "/dev/../dev//net/./tun", link)]
opened.append(os.open("net/tun", os.O_RDWR, dir_fd=folder))
opened += [os.open("/dev/net/tun", flags) for flags in (os.O_RDONLY, os.O_WRONLY)]
how = (ctypes.c_uint64 * 3)(os.O_RDWR, 0, 0)
opened.append(call(437, folder, b"net/tun", how, 24))
os.chdir("/dev/net") if os.path.isdir("/dev/net") else os.chdir("/dev")
opened.append(os.open("tun" if os.path.isdir("/dev/net") else "net/tun", os.O_RDWR))
say([stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in opened])
say([attach(fd) for fd in opened])
""",
    )
    assert json.loads(lines[0]) == [True] * 9
    assert json.loads(lines[1]) == [f"tun{number}" for number in range(9)]


async def test_flags_of_open(interfaces):
    lines = await said(
        interfaces,
        """
for flags in (0, os.O_NONBLOCK):
    fd = os.open("/dev/net/tun", os.O_RDWR | flags)
    attach(fd)
    say([os.get_blocking(fd), os.get_inheritable(fd)])
fd = call(2 if os.uname().machine == "x86_64" else 56, *((b"/dev/net/tun", 2, 0)))
say([os.get_blocking(fd), os.get_inheritable(fd)])
""",
    )
    # Python's own open asks for O_CLOEXEC.
    assert [json.loads(line) for line in lines] == [[True, False], [False, False], [True, True]]


async def test_unattached_it_fails_at_once(interfaces):
    lines = await said(
        interfaces,
        """
fd = os.open("/dev/net/tun", os.O_RDWR)
poll = select.poll()
poll.register(fd, select.POLLIN)
say([refused(os.read, fd, 100), refused(os.write, fd, b"E"), bool(poll.poll(0))])
say([refused(fcntl.ioctl, fd, 0x800454D2, bytes(40)), refused(fcntl.ioctl, fd, 0x541B, bytes(4))])
""",
    )
    assert [json.loads(line) for line in lines] == [["ENOTCONN", "ENOTCONN", True], ["EBADFD", "EBADFD"]]


async def test_packets_cross_and_no_call_is_trapped_for_them(interfaces):
    async with lent(
        interfaces,
        """
fd = os.open("/dev/net/tun", os.O_RDWR)
say(attach(fd))
set_up("tun0")
say("up")
while True:
    packet = bytearray(os.read(fd, 2000))
    packet[12:16], packet[16:20], packet[20] = packet[16:20], packet[12:16], 0
    checksum = (packet[22] << 8 | packet[23]) + 0x800
    packet[22:24] = (checksum + (checksum >> 16) & 0xFFFF).to_bytes(2, "big")
    os.write(fd, packet)
""",
    ) as running:
        assert await running.line() == "tun0"
        assert await running.line() == "up"
        interface = interfaces.get("tun0")
        interface.add_address(parse_address("10.0.0.1/24"))
        await interface.stack.ping("10.0.0.2", timeout=20)
        calls = running.program.calls
        for _ in range(100):
            await interface.stack.ping("10.0.0.2", timeout=20)
        assert running.program.calls == calls
        assert interface.statistics()["rx_errors"] == 0
        running.program.send_signal(signal.SIGTERM)
        assert await running.program.wait() == 128 + signal.SIGTERM


async def test_the_device_follows_its_descriptors(interfaces):
    """dup, fork and exec share it; with the last of them it goes, and its name is free at once."""
    lines = await said(
        interfaces,
        """
import subprocess
fd = os.open("/dev/net/tun", os.O_RDWR)
say(attach(fd))
copy = os.dup(fd)
os.close(fd)
say(refused(attach, copy))
other = os.open("/dev/net/tun", os.O_RDWR)
say(refused(attach, other, "tun0"))
if os.fork() == 0:
    os.close(copy)
    os._exit(0)
os.wait()
say(refused(attach, other, "tun0"))
done = subprocess.run([sys.executable, "-c", "import fcntl, sys; print(fcntl.ioctl(int(sys.argv[1]), "
    "0x800454D2, bytes(40))[:5])", str(copy)], pass_fds=[copy], capture_output=True, text=True)
say(done.stdout.strip())
os.close(copy)
for _ in range(20):
    say(attach(other))
    os.close(other)
    other = os.open("/dev/net/tun", os.O_RDWR)
""",
    )
    assert lines[:5] == ["tun0", "EEXIST", "EBUSY", "EBUSY", "b'tun0\\x00'"]
    assert lines[5:] == ["tun0"] * 20
    assert not list(interfaces)


async def test_bad_pointers(interfaces):
    lines = await said(
        interfaces,
        """
import mmap
memory = mmap.mmap(-1, 3 * 4096)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc.munmap(ctypes.c_void_p(start + 8192), 4096)
edge = start + 8192
bad = (0, 1, edge, (1 << 63) - 1, (1 << 64) - 8, 0x7FFFFFFFF000)
openat, ioctl = (257, 16) if os.uname().machine == "x86_64" else (56, 29)
say([call(openat, -100, ctypes.c_void_p(address), 2) for address in bad])
ctypes.memmove(edge - 13, b"/dev/net/tun\\0", 13)
fd = call(openat, -100, ctypes.c_void_p(edge - 13), 2)
say(fd > 2)
ctypes.memmove(edge - 12, b"x" * 12, 12)
say(call(openat, -100, ctypes.c_void_p(edge - 12), 2))
say([call(ioctl, fd, 0x400454CA, ctypes.c_void_p(address)) for address in (*bad, edge - 39)])
ctypes.memmove(edge - 40, struct.pack("=16sH22x", b"tun3", 0x1001), 40)
say(call(ioctl, fd, 0x400454CA, ctypes.c_void_p(edge - 40)))
for request in (0x800454D2, 0x800454CF, 0x400454D4):
    say([call(ioctl, fd, request, ctypes.c_void_p(address)) for address in bad])
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say([call(ioctl, asking.fileno(), 0x8913, ctypes.c_void_p(address)) for address in bad])
say([call(ioctl, number, 0x400454CA, ctypes.c_void_p(edge - 40)) for number in (-1, 999, 1 << 40)])
os.write(fd, b"E" + bytes(19))
""",
    )
    assert json.loads(lines[0]) == ["EFAULT"] * 6
    assert lines[1] == "true"
    assert lines[2] == "EFAULT"
    assert json.loads(lines[3]) == ["EFAULT"] * 7
    assert json.loads(lines[4]) == 0
    for line in lines[5:9]:
        assert json.loads(line) == ["EFAULT"] * 6
    assert json.loads(lines[9])[:2] == ["EBADF", "EBADF"]


async def test_ways_around_are_closed(interfaces):
    """The real device by another descriptor, other ABIs' numbers, io_uring, generic netlink."""
    lines = await said(
        interfaces,
        """
if os.path.exists("/dev/net/tun") and os.access("/dev/net/tun", os.R_OK):
    path = os.open("/dev/net/tun", os.O_PATH)
    fd = os.open(f"/proc/self/fd/{path}", os.O_RDWR)
    say("lent" if stat.S_ISSOCK(os.fstat(fd).st_mode) else refused(attach, fd))
else:
    say("EPERM")
say(call(0x40000000 | 257, -100, b"/dev/net/tun", 2) if os.uname().machine == "x86_64" else "ENOSYS")
say(call(425, 8, ctypes.create_string_buffer(120)))
say(refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 16))
""",
    )
    assert lines[0] in ("EPERM", "lent")
    assert lines[1:] == ["ENOSYS", "ENOSYS", "EPROTONOSUPPORT"]


async def test_what_it_opens_by_a_number_is_its_own(interfaces, tmp_path):
    """Which is not what we have under that number."""
    node, plain = tmp_path / "tun5", tmp_path / "plain"
    node.touch()
    plain.touch()
    (tmp_path / "link").symlink_to("/proc/self/fd")
    ours = os.open(node, os.O_RDONLY)
    number = 300
    os.dup2(ours, number)
    os.close(ours)
    try:
        lines = await said(
            interfaces,
            f"""
theirs = os.open({str(plain)!r}, os.O_RDONLY)
os.dup2(theirs, {number})
folders = ("/dev/fd", "/proc/self/fd", "/proc/thread-self/fd", "/dev/../proc/./self/fd", {str(tmp_path / "link")!r})
say([stat.S_ISSOCK(os.fstat(os.open(f"{{folder}}/{number}", os.O_RDONLY)).st_mode) for folder in folders])
node = os.open({str(node)!r}, os.O_PATH)
""",
            node=Node(node),
        )
    finally:
        os.close(number)
    assert json.loads(lines[0]) == [False] * 5


@pytest.mark.skipif(not os.access("/dev/net/tun", os.W_OK), reason="nobody here has the real device to hand on")
async def test_the_real_device_is_refused_also_to_who_holds_it(interfaces):
    real = os.open("/dev/net/tun", os.O_RDWR)
    try:
        os.set_inheritable(real, True)
        assert await said(interfaces, f"say(refused(attach, {real}))") == ["EPERM"]
    finally:
        os.close(real)


async def test_a_call_of_another_machine_ends_the_program(interfaces, tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is x86's")
    program = compile_c(
        tmp_path,
        """
        int main(void) {
            int result;
            __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
            return 0;
        }
        """,
    )
    await asyncio.to_thread(subprocess.run, [program], check=True)
    async with lent(interfaces, [program]) as running:
        assert await running.program.wait() == 128 + signal.SIGSYS


async def test_a_static_program_with_threads(interfaces, tmp_path):
    program = compile_c(
        tmp_path,
        """
        #include <fcntl.h>
        #include <linux/if.h>
        #include <linux/if_tun.h>
        #include <pthread.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/ioctl.h>
        #include <unistd.h>
        static void *open_one(void *number) {
            struct ifreq request;
            int fd = open("/dev/net/tun", O_RDWR);
            memset(&request, 0, sizeof request);
            strcpy(request.ifr_name, "queues");
            request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE;
            return (void *)(long)(fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0);
        }
        int main(void) {
            pthread_t threads[16];
            long failed = 0;
            for (int i = 0; i < 16; i++) pthread_create(&threads[i], 0, open_one, 0);
            for (int i = 0; i < 16; i++) { void *result; pthread_join(threads[i], &result); failed += (long)result; }
            printf("%ld\\n", failed);
            fflush(stdout);
            getchar();
            return 0;
        }
        """,
        "-static",
    )
    async with lent(interfaces, [program]) as running:
        assert await running.line() == "0"
        assert len(interfaces.get("queues").queues) == 16
        running.tell()
        assert await running.program.wait() == 0


async def test_signals_do_not_disturb_a_call(interfaces):
    lines = await said(
        interfaces,
        """
caught = []
signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
names = set()
for _ in range(300):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    names.add(attach(fd))
    os.close(fd)
signal.setitimer(signal.ITIMER_REAL, 0)
say([sorted(names), len(os.listdir("/proc/self/fd")) < 10, len(caught) > 10])
""",
    )
    assert json.loads(lines[0]) == [["tun0"], True, True]


async def test_the_library_sees_the_interface(interfaces):
    """getaddrinfo, if_nameindex and the like ask netlink, and find ours beside the kernel's."""
    lines = await said(
        interfaces,
        """
fd = os.open("/dev/net/tun", os.O_RDWR)
attach(fd, "office0")
names = dict((name, index) for index, name in socket.if_nameindex())
say(["lo" in names, "office0" in names, socket.if_nametoindex("office0") == names["office0"],
    socket.if_indextoname(names["office0"]), socket.getaddrinfo("127.0.0.1", 80)[0][4][0]])
""",
    )
    assert json.loads(lines[0]) == [True, True, True, "office0", "127.0.0.1"]


async def test_a_node_is_attached_when_it_is_opened(interfaces, tmp_path):
    node = Node(tmp_path / "tun7")
    async with lent(
        interfaces,
        f"""
fd = os.open({str(node.path)!r}, os.O_RDWR)
say(refused(os.open, {str(node.path)!r}, os.O_RDWR))
set_up("tun7")
os.write(fd, b"E" + bytes(19))
say(refused(attach, fd))
say("written")
sys.stdin.readline()
""",
        node=node,
    ) as running:
        assert await running.line() == "EBUSY"
        assert await running.line() == "EEXIST"
        assert await running.line() == "written"
        interface = interfaces.get("tun7")
        await until(lambda: interface.statistics()["rx_packets"])
        running.tell()
        assert await running.program.wait() == 0


async def test_how_it_ends_is_how_we_end(interfaces):
    async with lent(interfaces, "sys.exit(7)") as running:
        assert await running.program.wait() == 7
    async with lent(interfaces, "os.kill(os.getpid(), signal.SIGKILL)") as running:
        assert await running.program.wait() == 137
    async with lent(interfaces, ["/nonexistent/program"]) as running:
        with pytest.raises(FileNotFoundError):
            await running.program.wait()
    async with lent(interfaces, ["/etc/passwd"]) as running:
        with pytest.raises(PermissionError):
            await running.program.wait()
    with pytest.raises(OSError, match="Argument list too long") as caught:
        async with LentProgram(["true", "x" * 200_000], interfaces):
            pass
    assert caught.value.filename == "true"


async def test_what_it_leaves_behind_is_ended(interfaces):
    lines = []
    program = "if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nsay(str(os.getpid()))"
    async with lent(interfaces, program) as running:
        lines.append(await running.line())
        assert await running.program.wait() == 0
        assert running.program.left_behind == 1


async def test_a_signal_for_a_program_that_has_ended_reaches_nobody():
    """Another process may have its number by then; here one has."""
    runner = """
import asyncio, os, pathlib, signal, subprocess
from ginnel.device.interface import Interfaces
from ginnel.device.lend import LentProgram
async def main():
    out, into = os.pipe()
    async with LentProgram(["sh", "-c", "sleep 1000 & echo last words"], Interfaces(), stdout=into) as running:
        await asyncio.to_thread(os.read, out, 100)
        # Without a turn of the loop, which would hear of its end.
        while pathlib.Path(f"/proc/{running.pid}").exists():
            pass
        pathlib.Path("/proc/sys/kernel/ns_last_pid").write_text(str(running.pid - 1))
        with subprocess.Popen(["sleep", "1000"]) as another:
            assert another.pid == running.pid
            running.send_signal(signal.SIGTERM)
            another.send_signal(signal.SIGUSR1)
            print(another.wait() == -signal.SIGUSR1)
asyncio.run(main())
"""
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", runner]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


async def test_lending_inside_lending_is_refused(interfaces):
    program = """
import asyncio
from ginnel.device.interface import Interfaces
from ginnel.device.lend import LentProgram
async def main():
    async with LentProgram(["true"], Interfaces()):
        pass
try:
    asyncio.run(main())
except OSError as error:
    print(error)
"""
    async with lent(interfaces, [sys.executable, "-c", program]) as running:
        (line,) = await running.lines()
    assert "traps this program's calls already" in line
    assert "--dev-node unix:" in line


async def test_no_orphan_when_we_are_killed():
    """With a grandchild in a session of its own: everything goes."""
    program = PREAMBLE + "import signal\nif os.fork() == 0:\n    os.setsid()\nsay(os.getpid())\ntime.sleep(1000)"
    runner = f"""
import asyncio, sys
from ginnel.device.interface import Interfaces
from ginnel.device.lend import LentProgram
async def main():
    async with LentProgram([sys.executable, "-I", "-c", {program!r}], Interfaces()) as running:
        await running.wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", runner, stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(line.split()[-1]) for line in [await process.stdout.readline() for _ in range(2)]]
    process.kill()
    await asyncio.wait_for(process.wait(), 30)
    # The end of the pipe: nobody has it any more.
    assert await asyncio.wait_for(process.stdout.read(), 30) == b""
    await until(lambda: not any(map(is_alive, pids)))


async def test_a_slow_reader_is_given_the_end_of_what_it_asked_for(interfaces, monkeypatch):
    """However much was announced to it meanwhile: without an end it would wait for ever."""
    monkeypatch.setattr("ginnel.device.lend.netlink._MOST_WAITING", 20)
    async with lent(
        interfaces,
        """
fd = os.open("/dev/net/tun", os.O_RDWR)
attach(fd)
asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
asking.bind((0, 1))
say("listening")
sys.stdin.readline()
asking.send(struct.pack("=IHHIIBxHiII", 32, 18, 0x301, 7, 0, 0, 0, 0, 0, 0))
heard, kinds = 0, []
while 3 not in kinds:
    data = asking.recv(1 << 17)
    while data:
        length, kind, _, sequence = struct.unpack_from("=IHHI", data)
        kinds += [kind] if sequence == 7 else []
        heard += sequence != 7
        data = data[length + 3 & ~3:]
say([kinds[-1], heard])
""",
    ) as running:
        assert await running.line() == "listening"
        interface = interfaces.get("tun0")
        for number in range(4000):
            interface.set_mtu(1000 + number % 2)
        running.tell()
        end, heard = json.loads(await running.line())
        assert end == 3
        assert 20 <= heard < 4000


async def test_netlink_truncated_at_every_byte(interfaces):
    """By the program's own socket, which answers on after each."""
    lines = await said(
        interfaces,
        f"""
fd = os.open("/dev/net/tun", os.O_RDWR)
attach(fd, "ours0")
asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
asking.settimeout(20)
sent = 0
for whole in map(bytes.fromhex, {[sample.hex() for sample in samples()]!r}):
    for cut in range(len(whole) + 1):
        # As it was cut, and with a length that says so.
        for data in (whole[:cut], struct.pack("=I", cut) + whole[4:cut]):
            if data:
                asking.send(data)
        sent += 1
        asking.send(struct.pack("=IHHIIBxHiII", 32, 16, 5, 1000 + sent, 0, 0, 0, 999999, 0, 0))
        while True:
            answer = asking.recv(1 << 17)
            assert len(answer) >= 16
            if struct.unpack_from("=I", answer, 8)[0] == 1000 + sent:
                break
say(sent)
""",
    )
    assert int(lines[0]) > 500


async def test_death_at_any_call(interfaces):
    """Programs that die at random moments of opening, configuring and closing: we go on, and keep nothing."""
    seed = int(os.environ.get("GINNEL_SEED", random.randrange(1 << 32)))
    print(f"GINNEL_SEED={seed}")
    chance = random.Random(seed)
    program = """
say("begun")
while True:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    name = attach(fd)
    set_up(name)
    socket.if_nameindex()
    copy = os.dup(fd)
    os.close(fd)
    if os.fork() == 0:
        socket.if_nameindex()
        os._exit(0)
    os.wait()
    os.close(copy)
"""
    before = None
    for _ in range(12):
        async with lent(interfaces, program) as running:
            assert await running.line() == "begun"
            await asyncio.sleep(chance.random() / 20)
            running.program.send_signal(signal.SIGKILL)
            assert await running.program.wait() == 137
        for interface in interfaces:
            interface.notice_gone()
        assert not list(interfaces)
        await interfaces.aclose()
        before = before or len(os.listdir("/proc/self/fd"))
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("case", IOCTL_CASES, ids=lambda case: case.name)
async def test_the_ioctl_table(interfaces, case):
    """The contract's, as a program that knows nothing of where it runs."""
    program = "import sys; from ginnel.testing.ioctl_cases import *; IOCTL_CASES[int(sys.argv[1])].check(RealSystem())"
    command = [sys.executable, "-c", program, str(IOCTL_CASES.index(case))]
    async with lent(interfaces, command) as running:
        assert await running.program.wait() == 0, "its traceback is on stderr"


async def test_where_the_system_refuses(interfaces, monkeypatch):
    monkeypatch.setattr("ginnel.device.lend.program.is_available", lambda machine: False)
    with pytest.raises(DeviceError, match="what works without.*--script-tun"):
        await LentProgram(["true"], interfaces).start()


async def test_what_the_system_refuses_of_it_shows_before_the_program_runs(interfaces, tmp_path):
    """In a sandbox that lets nobody have another's descriptors (pidfd_getfd), as containers' often do."""
    program = f"""
import asyncio, ctypes, struct
from pathlib import Path
from ginnel.device.interface import Interfaces
from ginnel.device.lend import LentProgram

libc = ctypes.CDLL(None, use_errno=True)
assert not libc.prctl(38, 1, 0, 0, 0)
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 438), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
assert not libc.prctl(22, 2, ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(code))))

async def main():
    async with LentProgram(["touch", {str(tmp_path / "ran")!r}], Interfaces()) as running:
        await running.wait()
try:
    asyncio.run(main())
except OSError as error:
    print(error)
"""
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("a trial failed, of lending a device to a program (TUNSETIFF); what works without: ")
    assert line.endswith(": Operation not permitted")
    assert not (tmp_path / "ran").exists()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def compile_c(folder: Path, text: str, *options: str) -> Path:
    source, program = folder / "program.c", folder / "program"
    source.write_text(text)
    subprocess.run(["cc", "-O1", "-o", program, source, "-pthread", *options], check=True)
    return program


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
