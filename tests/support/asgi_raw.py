"""An ASGI application without a framework, for tests of asgi_server.py.

/script  sends the messages in the query, a list in JSON; "raise", "cancel" and "exit" do that, and
         "give up" cancels the sending of a part
/digest  sends the SHA-256 of the request's body; it often cancels receive()
/echo    sends the parts of the request's body back, as they come
/scope   sends what is in its scope
/listen  answers while it receives, and prints what it receives then
/wait    prints each message that it receives, until the client has left
/many    sends PARTS parts
/count   sends how many parts the last call of /many has sent
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from tests.support.batches import data

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

PART = 65_000
PARTS = 1000  # far more than the buffers of a connection's two sockets hold
progress = {"sent": 0}


def part(number: int) -> bytes:
    """Return a part of the response of /many."""
    return data(PART, seed=number)


def start(status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status}


def body(content: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def script(scope: Message, _receive: Receive, send: Send) -> None:
    with Path(os.environ["ASGI_FILE"]).open("rb") as file:  # noqa: ASYNC230 # it is small
        file.read(10)  # now the position of the object is not that of the descriptor
        for step in json.loads(unquote_to_bytes(scope["query_string"])):
            if step == "raise":
                raise ZeroDivisionError("as scripted")
            if step == "cancel":
                raise asyncio.CancelledError
            if step == "exit":
                sys.exit("as scripted")
            if step == "give up":
                sending = asyncio.create_task(send(body(bytes(8_000_000), more=True)))
                await asyncio.sleep(0)
                sending.cancel()
                await asyncio.wait([sending])
                continue
            if "headers" in step:
                step["headers"] = [[each.encode() for each in pair] for pair in step["headers"]]
            if isinstance(step.get("body"), str):
                step["body"] = step["body"].encode()
            if "file" in step:
                step["file"] = file
            await send(step)


async def digest(_scope: Message, receive: Receive, send: Send) -> None:
    received, more = hashlib.sha256(), True
    while more:
        receiving = asyncio.create_task(receive())
        await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
        if not receiving.cancelled():
            message = receiving.result()
            received.update(message["body"])
            more = message["more_body"]
    await send(start())
    await send(body(received.digest()))


async def echo(_scope: Message, receive: Receive, send: Send) -> None:
    more = True
    message = await receive()
    await send(start())
    while more:
        more = message.get("more_body", False)
        await send(body(message["body"], more=more))
        if more:
            message = await receive()


async def scope(scope: Message, _receive: Receive, send: Send) -> None:
    await send(start())
    await send(body(repr(scope).encode()))


async def listen(_scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    listening = asyncio.create_task(receive())
    await asyncio.sleep(0)
    await send(start())
    await send(body(b"hello"))
    print((await listening)["type"], flush=True)


async def wait(_scope: Message, receive: Receive, send: Send) -> None:
    message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
        print(message["type"], flush=True)
    message = await receive()
    print(message["type"], flush=True)
    try:
        await send(start())
        for _ in range(PARTS):
            await send(body(bytes(PART), more=True))
    except OSError:
        print("OSError", flush=True)
        raise


async def many(_scope: Message, _receive: Receive, send: Send) -> None:
    progress["sent"] = 0
    await send({**start(), "headers": [(b"content-length", b"%d" % (PART * PARTS))]})
    for number in range(PARTS):
        await send(body(part(number), more=number + 1 < PARTS))
        progress["sent"] += 1


async def count(_scope: Message, _receive: Receive, send: Send) -> None:
    await send(start())
    await send(body(str(progress["sent"]).encode()))


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await CALLS[scope["path"]](scope, receive, send)


CALLS = {
    f"/{call.__name__}": call for call in (script, digest, echo, scope, listen, wait, many, count)
}
