"""The Starlette application that asgi.py measures: it sends the files of the folder ASGI_FOLDER.

`python asgi_app.py FILE COUNT` calls it by itself, and prints the CPU time of a call in us.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

FOLDER = os.environ["ASGI_FOLDER"]


async def file(request: Request) -> FileResponse:
    return FileResponse(f"{FOLDER}/{request.path_params['name']}")


app = Starlette(routes=[Route("/{name}", file)])


async def call(file: str, count: int) -> None:
    """Call the application as a server that sends nothing would."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(_message: object) -> None:
        pass

    for _ in range(count):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "method": "GET",
            "path": f"/{file}",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
            "extensions": {"http.response.pathsend": {}},
        }
        await app(scope, receive, send)


async def main(file: str, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(64):  # connections
            group.create_task(call(file, count))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], 1))
    begin = time.process_time()
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    print((time.process_time() - begin) * 1e6 / 64 / int(sys.argv[2]))
