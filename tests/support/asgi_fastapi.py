"""A FastAPI application, for tests of asgi_server.py."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel

app = FastAPI()


class Item(BaseModel):
    name: str
    price: float


@app.post("/items/{number}")
async def create(number: int, item: Item) -> dict[str, object]:
    return {"number": number, "name": item.name, "price": item.price}


@app.put("/upload")
async def upload(request: Request) -> int:
    return len(await request.body())


@app.get("/self")
def this_file() -> FileResponse:
    return FileResponse(__file__)
