"""The Python servers that iobatch's are compared with, each set up as its manual recommends.

`python httpd_peers.py NAME FOLDER PORT` serves a folder, with one worker and no access log.
"""
# ruff: noqa: PLC0415  # only the named server's package is imported

from __future__ import annotations

import os
import sys
from pathlib import Path

HOST = "127.0.0.1"


def aiohttp(folder: str, port: int) -> None:
    from aiohttp import web

    app = web.Application()
    app.router.add_static("/", folder)
    web.run_app(app, host=HOST, port=port, access_log=None, print=None)


def granian(folder: str, port: int) -> None:
    """Serve by granian's own static files, in Rust: the application is never called."""
    from granian import Granian
    from granian.constants import Interfaces

    Granian(
        "httpd_peers:application",
        address=HOST,
        port=port,
        interface=Interfaces.ASGINL,
        log_enabled=False,
        static_path_route=[""],
        static_path_mount=[Path(folder)],
    ).serve()


async def application(_scope: object, _receive: object, _send: object) -> None:
    raise NotImplementedError


def tornado(folder: str, port: int) -> None:
    import asyncio

    from tornado.web import Application, StaticFileHandler

    async def serve() -> None:
        handlers = [("/(.*)", StaticFileHandler, {"path": folder})]
        Application(handlers, log_function=lambda _: None).listen(port, HOST)
        await asyncio.Event().wait()

    asyncio.run(serve())


def twisted(folder: str, port: int) -> None:
    from twisted.internet import reactor
    from twisted.web.server import Site
    from twisted.web.static import File

    reactor.listenTCP(port, Site(File(folder)), interface=HOST)
    reactor.run()


def uvicorn(folder: str, port: int) -> None:
    """Serve by Starlette, on uvloop and httptools."""
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles
    from uvicorn import run

    app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))])
    run(app, host=HOST, port=port, loop="uvloop", http="httptools", access_log=False, log_level=30)


def asgi_granian(folder: str, port: int) -> None:
    """Serve the application of asgi_app.py, which is called for each request."""
    from granian import Granian
    from granian.constants import Interfaces

    os.environ["ASGI_FOLDER"] = folder
    target, interface = "asgi_app:app", Interfaces.ASGI
    Granian(target, address=HOST, port=port, interface=interface, log_enabled=False).serve()


def asgi_uvicorn(folder: str, port: int) -> None:
    """Serve the application of asgi_app.py, on uvloop and httptools."""
    from uvicorn import run

    os.environ["ASGI_FOLDER"] = folder
    application = "asgi_app:app"
    run(
        application,
        host=HOST,
        port=port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level=30,
    )


if __name__ == "__main__":
    _, name, folder, port = sys.argv
    globals()[name](folder, int(port))
