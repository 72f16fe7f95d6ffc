"""Send a file to each client that connects. The clients send nothing.

If they do, read before the close: see "Closing a connection" in iobatch(7).
"""

import argparse
import socket
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

from iobatch import IOBatch, iob_send


def main(path: str, port: int) -> None:
    """Serve until interrupted."""
    selector = DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port))
    selector.register(listener, EVENT_READ)
    print(f"listening on {listener.getsockname()}", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                sock, _ = listener.accept()
                sock.setblocking(False)
                batch = IOBatch()
                batch.adds(f"Here is {path}:\n")
                try:
                    batch.addfile(path)
                except (OSError, ValueError) as exc:  # no such file; a pipe, whose end is unknown
                    batch.adds(f"{exc}\n")
                selector.register(sock, EVENT_WRITE, (sock, batch))
            else:
                sock, batch = key.data
                iob_send(sock, batch)
                if not batch or batch.error:
                    selector.unregister(sock)
                    batch.reset()
                    sock.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", metavar="FILE")
    parser.add_argument("port", metavar="PORT", nargs="?", type=int, default=8000)
    main(**vars(parser.parse_args()))
