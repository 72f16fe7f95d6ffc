"""Serve one file, compressed, over TLS: gzip, then TLS, then the socket.

A client: openssl s_client -quiet -connect 127.0.0.1:PORT | gzip -dc
"""

import argparse
import socket
import ssl
import zlib
from collections.abc import Generator
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

from iobatch import IOB_AGAIN, IOBatch, iob_write
from iobatch.filters import TLS, Filter


def answer(sock: socket.socket, context: ssl.SSLContext, path: str) -> Generator[int, int]:
    """Send the file to one client; yield the events to wait for, receive those that occurred."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = TLS(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    out = Filter(zlib.compressobj(wbits=31), Filter(tls))
    with IOBatch() as batch:
        batch.addfile(path)
        while code := iob_write(sock, batch, out) or out.finish(sock):
            if error := batch.error or out.error:
                raise error
            # The loop serves other clients between two steps, also where the socket takes more.
            ready = yield EVENT_READ | (out.wants if code == IOB_AGAIN else EVENT_WRITE)
            if ready & EVENT_READ:
                tls.receive(sock.recv(65536))  # the client's handshake; raises at end of stream


def main(cert: str, key: str, file: str, port: int) -> None:
    """Serve until interrupted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", port)) as listener, DefaultSelector() as selector:
        selector.register(listener, EVENT_READ)
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            for registered, ready in selector.select():
                if registered.data is None:
                    sock = listener.accept()[0]
                    sock.setblocking(False)
                    task = answer(sock, context, file)
                    selector.register(sock, next(task), (sock, task))
                    continue
                sock, task = registered.data
                try:
                    selector.modify(sock, task.send(ready), registered.data)
                except (StopIteration, OSError) as end:
                    print("sent" if isinstance(end, StopIteration) else end, flush=True)
                    selector.unregister(sock)
                    sock.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cert", "key", "file"):
        parser.add_argument(name, metavar=name.upper())
    parser.add_argument("port", metavar="PORT", nargs="?", type=int, default=8000)
    main(**vars(parser.parse_args()))
