"""The far ends of the DNS tests, each a process: a name server, a proxy without UDP, and clients that ask by hand."""

import json
import socket
import struct
import sys
import threading

TIMEOUT = 8
KINDS = {"A": 1, "PTR": 12, "TXT": 16, "AAAA": 28, "HTTPS": 65}
ADDRESS = "203.0.113.7"
TEXT = b"from the name server"


def wire_name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def query(name, kind, number=0x1234):
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + wire_name(name) + struct.pack(">2H", KINDS[kind], 1)


def answer(asked):
    """Answer A with one address and TXT with one text; anything else has no data."""
    kind = struct.unpack(">H", asked[-4:-2])[0]
    data = {1: socket.inet_aton(ADDRESS), 16: bytes([len(TEXT)]) + TEXT}.get(kind)
    head = asked[:2] + struct.pack(">5H", 0x8180, 1, int(data is not None), 0, 0)
    if data is None:
        return head + asked[12:]
    return head + asked[12:] + b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def read_exactly(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def read_framed(connection):
    return read_exactly(connection, struct.unpack(">H", read_exactly(connection, 2))[0])


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def serve_datagrams(host):
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.bind((host, 53))
        while True:
            asked, peer = sock.recvfrom(4096)
            sock.sendto(answer(asked), peer)


def serve_stream(connection):
    with connection:
        try:
            while True:
                reply = answer(read_framed(connection))
                connection.sendall(struct.pack(">H", len(reply)) + reply)
        except OSError:
            return


def serve_streams(host):
    with socket.create_server((host, 53)) as server:
        while True:
            threading.Thread(target=serve_stream, args=(server.accept()[0],), daemon=True).start()


def name_server(*hosts):
    for host in hosts:
        for serve in (serve_datagrams, serve_streams):
            threading.Thread(target=serve, args=(host,), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


def pump(source, sink):
    try:
        while part := source.recv(65_536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


def connect_for(client):
    """Serve one CONNECT of HTTP, and tell the authority that was asked for."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = client.recv(4096)
        if not part:
            return
        head += part
    authority = head.split()[1].decode()
    print(authority, flush=True)
    host, _, port = authority.rpartition(":")
    try:
        upstream = socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT)
    except OSError:
        client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        client.close()
        return
    upstream.settimeout(None)
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
    pump(upstream, client)


def http_proxy(host, port):
    with socket.create_server((host, int(port))) as server:
        print("ready", flush=True)
        while True:
            threading.Thread(target=connect_for, args=(server.accept()[0],), daemon=True).start()


def read_name(message, at):
    labels = []
    while size := message[at]:
        if size >= 0xC0:
            return ".".join([*labels, read_name(message, (size & 0x3F) << 8 | message[at + 1])[0]]), at + 2
        labels.append(message[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), at + 1


def read_answers(message):
    """Return the response code, and what the answers hold."""
    count = struct.unpack(">H", message[6:8])[0]
    at, found = read_name(message, 12)[1] + 4, []
    for _ in range(count):
        at = read_name(message, at)[1]
        kind, _, _, size = struct.unpack(">HHIH", message[at : at + 10])
        data, at = message[at + 10 : at + 10 + size], at + 10 + size
        if kind in (1, 28):
            found.append(socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data))
        else:
            found.append(read_name(data, 0)[0] if kind == 12 else data[1:].decode())
    return [message[3] & 0xF, *found]


def ask(server, name, kind):
    """Ask over UDP through a connected socket, which takes an answer from that server alone."""
    with socket.socket(family(server), socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((server, 53))
        for _ in range(5):
            sock.send(query(name, kind))
            try:
                return read_answers(sock.recv(4096))
            except TimeoutError:
                continue
    return None


def ask_twice(first, second, name):
    """Ask two servers from one socket, under two numbers; return who seems to have answered which."""
    with socket.socket(family(first), socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        for _ in range(5):
            sock.sendto(query(name, "A", 1), (first, 53))
            sock.sendto(query(name, "A", 2), (second, 53))
            try:
                came = [sock.recvfrom(4096) for _ in range(2)]
            except TimeoutError:
                continue
            return sorted([struct.unpack(">H", message[:2])[0], peer[0]] for message, peer in came)
    return None


def ask_stream(server, name, kind):
    try:
        with socket.create_connection((server, 53), timeout=TIMEOUT) as connection:
            asked = query(name, kind)
            connection.sendall(struct.pack(">H", len(asked)) + asked)
            return read_answers(read_framed(connection))
    except OSError as error:
        return type(error).__name__


def garbage(server):
    """Send what is no query: a header with half a question, and noise; return the code of the one answer."""
    with socket.socket(family(server), socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((server, 53))
        for _ in range(5):
            sock.send(b"\xff" * 7)
            sock.send(query("www.t2s.test", "A")[:20])
            try:
                return sock.recv(4096)[3] & 0xF
            except TimeoutError:
                continue
    return None


def resolve(name):
    """Let the system's resolver do it."""
    try:
        return sorted({entry[4][0] for entry in socket.getaddrinfo(name, None)})
    except socket.gaierror as error:
        return str(error)


def send_to_nobody(host, port):
    """Send a datagram; return the error that comes back."""
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((host, int(port)))
        for _ in range(5):
            try:
                sock.send(b"hello")
                sock.recv(10)
            except TimeoutError:
                continue
            except OSError as error:
                return type(error).__name__
    return None


def main():
    command, *arguments = sys.argv[1:]
    servers = {"name_server": name_server, "http_proxy": http_proxy}
    if command in servers:
        servers[command](*arguments)
        return
    clients = (ask, ask_twice, ask_stream, garbage, resolve, send_to_nobody)
    print(json.dumps({client.__name__: client for client in clients}[command](*arguments)))


if __name__ == "__main__":
    main()
