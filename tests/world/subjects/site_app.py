"""The same small site for a WSGI and for an ASGI server."""

TEXT = b"some text that a server sends\n"


def wsgi(environment, start_response):
    found = environment["PATH_INFO"] == "/text.txt"
    start_response("200 OK" if found else "404 Not Found", [("Content-Type", "text/plain")])
    return [TEXT if found else b""]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    found = scope["path"] == "/text.txt"
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
    await send({"type": "http.response.body", "body": TEXT if found else b""})
