"""A Starlette application, for tests of asgi_server.py: the files of the folder ASGI_FOLDER."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

FOLDER = Path(os.environ["ASGI_FOLDER"])


async def file(request: Request) -> Response:
    return FileResponse(FOLDER / request.path_params["name"])


async def stream(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(int(request.query_params["count"])):
            yield b"%d\n" % number

    return StreamingResponse(parts())


async def upload(request: Request) -> Response:
    sizes = [len(part) async for part in request.stream()]
    client = request.client
    assert client is not None
    return JSONResponse({"size": sum(sizes), "host": client.host, "url": str(request.url)})


async def later(_request: Request) -> Response:
    """Answer, and never end."""
    return JSONResponse("answered", background=BackgroundTask(asyncio.Event().wait))


app = Starlette(
    routes=[
        Route("/file/{name}", file),
        Route("/stream", stream),
        Route("/upload", upload, methods=["PUT"]),
        Route("/later", later),
        Mount("/", StaticFiles(directory=FOLDER)),
    ]
)
