"""Answers requests over HTTP on the port that PORT names."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def answer(path):
    """What is answered to a request for a path."""
    return f"Hello from {{name}}, you asked for {path}\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = answer(self.path).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    print(f"listening on port {port}")
    ThreadingHTTPServer(("", port), Handler).serve_forever()
