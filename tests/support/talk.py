"""A TCP server that does what its client's first line says, and the clients that use it.

echo            give everything back, and end when the client ends
count DELAY     read to the client's end, wait, then answer with how many bytes came
first N         send N bytes and end; read on to the client's end
told N          say how many bytes the last `first N` has read, or null
source N        send N bytes, then end
ask N           answer each byte with N bytes, until the client ends
hold            read to the end and say nothing
"""

import asyncio
import contextlib
import hashlib
import json
import select
import socket
import struct
import sys
import threading
import time

WAIT_S = 30
BLOCK = bytes(range(256)) * 256
CROWD_S = 90


async def answer(reader, writer, seen):
    """Serve one connection."""
    word, *numbers = (await reader.readline()).decode().split() or [""]
    if word == "echo":
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    elif word == "count":
        size = len(await reader.read(-1))
        await asyncio.sleep(float(numbers[0]))
        writer.write(str(size).encode())
    elif word == "first":
        seen.pop(numbers[0], None)
        await send(writer, int(numbers[0]))
        writer.write_eof()
        seen[numbers[0]] = len(await reader.read(-1))
    elif word == "told":
        writer.write(json.dumps(seen.get(numbers[0])).encode())
    elif word == "source":
        await send(writer, int(numbers[0]))
    elif word == "ask":
        while await reader.read(1):
            await send(writer, int(numbers[0]))
    elif word == "hold":
        await reader.read(-1)


async def send(writer, size):
    while size > 0:
        part = BLOCK[: min(size, len(BLOCK))]
        writer.write(part)
        await writer.drain()
        size -= len(part)


def talk(port, *hosts):
    """Serve until the process ends."""

    async def main():
        seen = {}

        async def handle(reader, writer):
            with contextlib.suppress(OSError):
                await answer(reader, writer, seen)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        for host in hosts:
            await asyncio.start_server(handle, host, int(port), backlog=4_096)
        print("ready", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


def opened(host, port, line, receive_buffer=None):
    """Connect and say the first line."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(WAIT_S)
    sock.connect((host, int(port)))
    sock.sendall(line.encode() + b"\n")
    return sock


def rest(sock):
    """Read to the end."""
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


def client_ends_first(host, port, size, delay):
    """Send, end, and hear the answer that comes so much later."""
    with opened(host, port, f"count {delay}") as sock:
        sock.sendall(b"x" * int(size))
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(WAIT_S + float(delay))
        print(rest(sock).decode())


def server_ends_first(host, port, size, delay):
    """Read to the end, wait, and send all the same; the server tells what came."""
    with opened(host, port, f"first {size}") as sock:
        got = len(rest(sock))
        time.sleep(float(delay))
        sock.sendall(b"y" * int(size))
    came = None
    for _ in range(100):
        with opened(host, port, f"told {size}") as sock:
            came = json.loads(rest(sock))
        if came is not None:
            break
        time.sleep(0.05)
    print(json.dumps([got, came]))


def zero_window(host, port, size, delay):
    """Ask for bytes, read none for so long, then all of them."""
    with opened(host, port, f"source {size}", 16_384) as sock:
        time.sleep(float(delay))
        got, left = hashlib.sha256(), int(size)
        while left and (data := sock.recv(1 << 20)):
            got.update(data)
            left -= len(data)
    print(json.dumps([left, got.hexdigest()]))


def digest(size):
    got = hashlib.sha256()
    for start in range(0, size, len(BLOCK)):
        got.update(BLOCK[: min(size - start, len(BLOCK))])
    return got.hexdigest()


def reset(host, port):
    """Break a download off with RST."""
    with opened(host, port, "source 100000000") as sock:
        sock.recv(100_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    print("null")


def hold(host, port, *sources):
    """Keep a connection; with a size, one that downloads it and reads nothing. Says so and waits to be ended."""
    socks = [opened(host, port, f"source {size}", 16_384) for size in sources] or [opened(host, port, "hold")]
    print("holding", flush=True)
    threading.Event().wait()
    return socks


def sink(host, port):
    """Connect and read to whatever end comes; print how much came, and which end it was."""
    got = 0
    try:
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as sock:
            while data := sock.recv(65_536):
                got += len(data)
        print(json.dumps([got, "end"]))
    except OSError as error:
        print(json.dumps([got, type(error).__name__]))


def push(host, port):
    """Send until nothing goes for two seconds, then break off; print how much went."""
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.settimeout(2)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += sock.send(BLOCK)
        print(sent, flush=True)
        sys.stdin.read()


def row(host, port, count):
    """Open idle connections one after the other; say so, then print the number of the first that ends."""
    socks = [opened(host, port, "hold") for _ in range(int(count))]
    print("holding", flush=True)
    ended, _, _ = select.select(socks, [], [], WAIT_S)
    print(json.dumps([socks.index(sock) for sock in ended]), flush=True)
    threading.Event().wait()


def sessions(host, port, count):
    """Send a datagram from each of many sockets, which stay open; print how many were answered."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(count))]
    right = 0
    for sock in socks:
        sock.settimeout(0.5)
        sock.connect((host, int(port)))
        for _ in range(6):
            sock.send(b"x")
            with contextlib.suppress(TimeoutError):
                right += sock.recv(10) == b"x"
                break
    print(right)


def flood(source, host, port, count):
    """Send so many SYNs from as many ports; nobody answers what comes back but the kernel, with RST."""
    ends = socket.inet_aton(source) + socket.inet_aton(host)
    ip = b"\x45\x00\x00\x28" + bytes(4) + b"\x40\x06\x00\x00" + ends
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for number in range(int(count)):
            tcp = struct.pack("!HHIIBBHHH", 10_000 + number, int(port), number, 0, 0x50, 2, 65_535, 0, 0)
            words = struct.unpack("!16H", ends + tcp + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)))
            total = sum(words)
            total = (total & 0xFFFF) + (total >> 16)
            total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            sock.sendto(ip + tcp[:16] + total.to_bytes(2, "big") + tcp[18:], (host, 0))
    print(count)


def crowd(host, port, count):
    """Open connections, all at once, each with an echo of its own, then end them; print how many had it right."""

    async def one(number, gate):
        data = f"{number} ".encode() * 100
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"echo\n" + data)
        right = await reader.readexactly(len(data)) == data
        gate["open"] += 1
        if gate["open"] == int(count):
            gate["all"].set()
        await gate["all"].wait()
        writer.write_eof()
        right = right and await reader.read() == b""
        writer.close()
        return right

    async def main():
        gate = {"open": 0, "all": asyncio.Event()}
        async with asyncio.timeout(CROWD_S):
            return sum(await asyncio.gather(*(one(number, gate) for number in range(int(count)))))

    print(asyncio.run(main()))


def churn(host, port, total, parallel):
    """Connect, exchange a word and close, so many times; print how many went well."""
    counts = [len(range(start, int(total), int(parallel))) for start in range(int(parallel))]

    async def one(count):
        right = 0
        for _ in range(count):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"echo\nhi")
            writer.write_eof()
            right += await reader.read() == b"hi"
            writer.close()
        return right

    async def main():
        async with asyncio.timeout(CROWD_S):
            return sum(await asyncio.gather(*map(one, counts)))

    print(asyncio.run(main()))


def mice(host, port, count, rounds, size):
    """Let so many connections ask and be answered in turn; print how many had every answer, and the slowest one."""

    async def one(slowest):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"ask {size}\n".encode())
        for _ in range(int(rounds)):
            asked = time.monotonic()
            writer.write(b"?")
            await reader.readexactly(int(size))
            slowest.append(time.monotonic() - asked)
        writer.close()
        return True

    async def main():
        slowest = []
        async with asyncio.timeout(CROWD_S):
            served = sum(await asyncio.gather(*(one(slowest) for _ in range(int(count)))))
        return [served, max(slowest)]

    print(json.dumps(asyncio.run(main())))


OWN = [
    talk,
    client_ends_first,
    server_ends_first,
    zero_window,
    reset,
    hold,
    sink,
    push,
    row,
    sessions,
    flood,
    crowd,
    churn,
    mice,
]
COMMANDS = {function.__name__: function for function in OWN}
