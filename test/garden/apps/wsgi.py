"""An origin of the garden for gunicorn."""
from record import record


def application(environ, start_response):
    body = environ["wsgi.input"].read()
    if len(body) < int(environ.get("CONTENT_LENGTH") or 0):
        raise ConnectionError("the body ended early")  # which gunicorn leaves to its application to find out
    record(environ["REQUEST_METHOD"], environ["RAW_URI"], body)
    start_response("200 OK", [("x-garden", "seen"), ("content-length", "3")])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"ok\n"]
