"""The traffic port: uvicorn's server with a drain, limits to what a client may send, and what every request gets."""
