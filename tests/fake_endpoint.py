"""A server on this machine that speaks as OpenAI-compatible ones do: a fixture for tests."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class FakeEndpoint:
    """Answers with ``self.answer(body)``: a dict, or a status and a dict.

    ``bodies`` and ``headers`` are those of the requests so far.
    """

    def __init__(self):
        self.bodies, self.headers = [], []
        self.answer = lambda body: completion("yes")
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                fake.headers.append({"path": self.path, **self.headers})
                given = fake.answer(body)
                status, content = given if isinstance(given, tuple) else (200, given)
                text = content if isinstance(content, str) else json.dumps(content)
                self.send_response(status)
                for name, value in getattr(fake, "more_headers", {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # of a client that went away
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def completion(text, *, finish="stop", logprobs=None):
    """A chat completion; ``logprobs`` of the first token's alternatives, by token."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if logprobs is not None:
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return {"choices": [choice]}


@pytest.fixture
def endpoint():
    fake = FakeEndpoint()
    yield fake
    fake.close()
