"""What is commonly shipped: FastAPI on uvicorn, with its access log."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/hello/{name}")
async def hello(name: str) -> dict[str, str]:
    return {"text": "Hello, " + name}
