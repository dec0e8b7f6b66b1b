"""An origin of the garden for uvicorn."""
from record import record


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        m = await receive()
        if m["type"] == "http.disconnect":
            return
        body += m.get("body", b"")
        if not m.get("more_body"):
            break
    target = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    record(scope["method"], target, body)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-garden", b"seen"), (b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})
