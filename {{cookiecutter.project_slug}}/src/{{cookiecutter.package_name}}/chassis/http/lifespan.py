"""The application's own start and end, with every failure in the log and in the exit status."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..lifecycle import Lifecycle, State, exit_status
from ..logs import get_logger

EVENTS = {State.STARTING: "startup failed", State.READY: "lifespan failed", State.DRAINING: "shutdown failed"}

log = get_logger("server")


async def run_lifespan(app: ASGIApp, lifecycle: Lifecycle, scope: Scope, receive: Receive, send: Send) -> None:
    """Run *app* through ASGI's lifespan; if that fails or ends too early, stop the service, which can't go on."""
    failure: str | None = None

    async def note(message: Message) -> None:
        nonlocal failure
        if message["type"].endswith(".failed"):
            failure = message.get("message", "")
        await send(message)

    try:
        await app(scope, receive, note)
        if failure is not None or not lifecycle.draining.is_set():
            raise RuntimeError(failure or "the lifespan has ended, but nobody asked for it")
    except BaseException as error:
        # A start that was called off is cancelled at the very end.
        if (event := EVENTS.get(lifecycle.state)) is not None:
            log.critical(event, exc_info=error)
            lifecycle.stop(event, status=exit_status(error))
        raise
