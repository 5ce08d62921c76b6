"""The socket that ``lake serve`` listens at, and its address."""

import socket as sockets

from schemas.errors import UsageError


def listening(host: str, port: int) -> sockets.socket:
    """A socket that listens.

    Raises
    ------
    UsageError
        If the address is not this machine's, or the port is taken.
    """
    if port > 65535:
        raise UsageError(f"--port is {port}; it must be at most 65535")
    opened = None
    try:
        family, kind, protocol, _, address = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0]
        opened = sockets.socket(family, kind, protocol)
        opened.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()  # who comes by the address that is printed waits until it is answered
    except OSError as error:
        if opened is not None:
            opened.close()
        raise UsageError(
            f"nothing can listen at {host} port {port} ({error.strerror or error}); --port 0 takes a port that is free"
        ) from error
    return opened


def address_of(host: str, socket: sockets.socket) -> str:
    """URL that leads to a socket: where it listens to every address, by this machine's name."""
    name = sockets.gethostname() if host in ("0.0.0.0", "::", "") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{socket.getsockname()[1]}/"
