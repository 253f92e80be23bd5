"""http2.py - HTTP/2 by hand, for what no honest client sends."""
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(
        ">I", stream) + payload


def _integer(value, prefix_bits, first=0):
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def literal(name, value, indexed=False):
    """A header field as a literal with a literal name; `indexed`: it enters the table."""
    name, value = name.encode(), value if isinstance(value, bytes) else value.encode()
    return (bytes([0x40 if indexed else 0]) + _integer(len(name), 7) + name +
            _integer(len(value), 7) + value)


def request_headers(path, *more, scheme="http", te="trailers"):
    fields = [(":method", "POST"), (":scheme", scheme), (":path", path), (":authority", "x"),
              ("te", te), ("content-type", "application/grpc"), *more]
    return b"".join(literal(name, value) for name, value in fields)


def message(data, compressed=False):
    """A gRPC message as it stands in DATA frames."""
    return bytes([compressed]) + struct.pack(">I", len(data)) + data


class Connection:
    """A TCP connection that has said hello in HTTP/2, unless told otherwise."""

    def __init__(self, address, hello=True, timeout=20):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout)
        if hello:
            self.send(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def read_until_closed(self):
        """Everything until the other side closes; TimeoutError if it does not."""
        out = b""
        try:
            while chunk := self.socket.recv(65536):
                out += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
        return out
