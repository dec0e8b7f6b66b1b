"""What the Python origins of the garden share: one line for each request that an application sees."""
import hashlib
import os

_fd = os.open(os.environ["GARDEN_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _hex(s):
    return (s if isinstance(s, bytes) else s.encode("latin-1")).hex() or "-"


def record(method, target, body):
    os.write(_fd, ("%s %s %d %s\n" % (_hex(method), _hex(target), len(body), hashlib.sha256(body).hexdigest()[:16])).encode())
