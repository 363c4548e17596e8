import os

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

LIMIT = int(os.environ.get("BOOKS_LIMIT", "3"))


async def books(request):
    print("asked for books")
    if request.headers.get("authorization") != os.environ["BOOKS_PASSWORD"]:
        return JSONResponse({}, 401)
    return JSONResponse({"limit": LIMIT})


app = Starlette(routes=[Route("/books", books), Route("/health", lambda _: JSONResponse({}))])

if __name__ == "__main__":
    uvicorn.run(app, port=9000)
