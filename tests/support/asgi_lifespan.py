"""An ASGI application with a lifespan, for tests of asgi_server.py.

ASGI_LIFESPAN chooses what goes wrong: nothing, "startup.failed", "shutdown.failed", or
"shutdown.hangs".
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.asgi_raw import Message, Receive, Send


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    state = scope["state"]
    state["count"] += 1  # of this request alone
    state["shared"].append(scope["path"])
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": json.dumps(state).encode()})


async def lifespan(scope: Message, receive: Receive, send: Send) -> None:
    scope["state"].update(count=0, shared=[])
    for phase in ("startup", "shutdown"):
        assert await receive() == {"type": f"lifespan.{phase}"}
        print(phase, flush=True)
        if os.environ["ASGI_LIFESPAN"] == f"{phase}.hangs":
            await asyncio.Event().wait()
        failed = os.environ["ASGI_LIFESPAN"] == f"{phase}.failed"
        message = {"message": "no database"} if failed else {}
        await send({"type": f"lifespan.{phase}.{'failed' if failed else 'complete'}", **message})
        if failed:
            raise RuntimeError("no database")
