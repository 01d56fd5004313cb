"""What the browser is pointed at: the page with a recorded incident behind it, a proxy that knows who somebody is, a page of somebody else."""

import http.client
import http.server
import os
import pathlib
import socket
import subprocess
import threading

from phone import TARGET

EXAMPLE = pathlib.Path(os.environ.get("PAGE") or TARGET / "x86_64-unknown-linux-gnu/debug/examples/page")
SECRET = "a-secret-of-the-proxy"


class Served:
    """The agent's own server in a process of its own; `words` are the example's, such as `case` and `pace`."""

    def __init__(self, **words):
        arguments = [f"{key}={value}" for key, value in {"listen": "127.0.0.1:0", "door": "password", **words}.items()]
        self.process = subprocess.Popen([EXAMPLE, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.says = self.process.stdout.readline().strip()
        assert self.says.startswith("http://"), self.says
        self.link = self.says.split(" ")[0]
        self.at = "/".join(self.link.split("/")[:3])
        self.port = int(self.at.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def host(self, word):
        """`silent` or `speaks`."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def stop(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


class Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


class Listening:
    """A small HTTP server on a port of its own."""

    def __init__(self, handler):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Proxy(Listening):
    """An ingress: asks the identity provider, names the person, shows its secret. With `provider` down it lets nobody pass.
    With "asks" it sends everybody there to sign in. As `fallback` it asks nobody, and takes away whatever claims to come from an ingress."""

    def __init__(self, port, fallback=False):
        self.provider = True
        proxy = self

        class Handler(Quiet):
            def pass_on(self):
                if not fallback and proxy.provider == "asks":
                    self.send_response(302)
                    self.send_header("location", "http://localhost:9/sign-in")
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return None
                if not fallback and not proxy.provider:
                    return self.answer(503, "text/plain", b"The identity provider does not answer.\n")
                ours = {"x-forwarded-user", "x-breakglass-proxy", "connection"}
                headers = {name: value for name, value in self.headers.items() if name.lower() not in ours}
                if not fallback:
                    headers |= {"x-forwarded-user": "anna", "x-breakglass-proxy": SECRET}
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                upstream = http.client.HTTPConnection("127.0.0.1", port)
                try:
                    upstream.request(self.command, self.path, body or None, headers)
                    got = upstream.getresponse()
                    self.send_response(got.status)
                    for name, value in got.getheaders():
                        if name.lower() not in ("transfer-encoding", "connection", "date"):
                            self.send_header(name, value)
                    self.send_header("connection", "close")
                    self.end_headers()
                    while piece := got.read1(65536):
                        self.wfile.write(piece)
                        self.wfile.flush()
                except (OSError, http.client.HTTPException):
                    pass  # the browser has gone
                finally:
                    upstream.close()
                    self.close_connection = True

            do_GET = do_POST = pass_on

        super().__init__(Handler)
        self.at = f"http://127.0.0.1:{self.port}"


class Relay:
    """The way of the bytes between a phone and the server. `sleep` is what a phone's sleep or a change of network is: what is connected
    stays so for both sides and carries nothing any more; what connects later is carried."""

    def __init__(self, port):
        self.port, self.generation = port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.at = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.carried = []
        threading.Thread(target=self.take, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        for one in self.carried:
            one.close()

    def sleep(self):
        self.generation += 1

    def take(self):
        while True:
            try:
                phone, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                return
            self.carried += [phone, server]
            for pair in ((phone, server), (server, phone)):
                threading.Thread(target=self.carry, args=(*pair, self.generation), daemon=True).start()

    def carry(self, here, there, generation):
        try:
            while piece := here.recv(65536):
                if generation != self.generation:
                    return  # and both stay open
                there.sendall(piece)
            if generation == self.generation:
                there.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Elsewhere(Listening):
    """A page of another site, under another name of this machine; it remembers what came to it."""

    def __init__(self, body):
        asked = self.asked = []

        class Handler(Quiet):
            def do_GET(self):
                asked.append(self.path)
                self.answer(200, "text/html; charset=utf-8", body.encode())

            do_POST = do_GET

        super().__init__(Handler)
        self.at = f"http://localhost:{self.port}"
