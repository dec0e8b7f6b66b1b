"""An origin of the garden on Python's http.server, which leaves framing to its user: this one reads lengths and chunks."""
import http.server
import os

from record import record


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def body(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                if size == 0:
                    while self.rfile.readline().strip():
                        pass
                    return b"".join(parts)
                parts.append(self.rfile.read(size))
                if len(parts[-1]) != size or self.rfile.readline() != b"\r\n":
                    raise ConnectionError("the body ended early")
        n = int(self.headers.get("content-length") or 0)
        b = self.rfile.read(n)
        if len(b) != n:
            raise ConnectionError("the body ended early")
        return b

    def answer(self):
        try:
            b = self.body()
        except (ValueError, ConnectionError):
            self.close_connection = True
            return
        record(self.command, self.requestline.split(" ")[1], b)
        self.send_response(200)
        self.send_header("x-garden", "seen")
        self.send_header("content-length", "3")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok\n")

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


Server(("127.0.0.1", int(os.environ["GARDEN_PORT"])), Handler).serve_forever()
