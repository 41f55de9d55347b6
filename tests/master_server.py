"""The server of the simulated master: run as a program, it reads its data from stdin and prints its port."""

from __future__ import annotations

import gzip
import json
import secrets
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import archives
import master_v0
from master_v1 import Master, Refusal

CODES = {
    400: (3, "InvalidArgument"),
    401: (16, "Unauthenticated"),
    403: (7, "PermissionDenied"),
    404: (5, "NotFound"),
    501: (12, "Unimplemented"),
    500: (13, "Internal"),
}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    master: Master
    prefix: str
    kind = "application/json"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(self.prefix) if parts.path.startswith(self.prefix) else "/elsewhere"
        if path.startswith("/_control/"):
            self._send(200, json.dumps(self.master.control(path.rpartition("/")[2], json.loads(body))).encode())
            return
        query = parse_qs(parts.query, keep_blank_values=True)
        seen = {"method": self.command, "path": path, "query": query, "headers": dict(self.headers)}
        with self.master.lock:
            self.master.asked.append(seen | {"body": body.decode("utf-8", "replace")})
            fault = self.master.script.pop(0) if self.master.script else "ok"
        if fault.startswith("slow:"):
            time.sleep(float(fault.partition(":")[2]))
            fault = "ok"
        word, _, rest = fault.partition(":")
        if word == "type":
            self.kind, fault = "text/plain", "ok"
        is_archive = path.startswith("/checkpoints/") and self.master.version >= (0, 13)
        if is_archive and (fault in ("ok", "cut") or word == "drip"):
            drip = float(rest) if word == "drip" else None
            self._send_files(path.rpartition("/")[2], cut=fault == "cut", drip=drip)
        elif fault in ("ok", "cut") or word in ("drip", "drip-head"):
            status, answer = self._ask(path, query, body)
            drip = float(rest) if word.startswith("drip") else None
            self._send(status, json.dumps(answer).encode(), cut=fault == "cut", drip=drip, head=word == "drip-head")
        else:
            self._fail(fault)

    def _ask(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if path == "/info":
            info = {"version": self.master.data["version"], "master_id": "m", "cluster_id": "c", "telemetry": {}}
            return 200, info
        if self.master.version < (0, 13):
            return master_v0.answer(self.master, self.command, path, query, body, self.headers.get("Authorization"))
        if not path.startswith("/api/v1/"):
            return 404, {"message": "Not Found"}
        try:
            return 200, self._api(path.removeprefix("/api/v1/"), query, body)
        except Refusal as refusal:
            code, reason = CODES[refusal.status]
            return refusal.status, {"error": {"code": code, "reason": reason, "error": str(refusal)}}

    def _api(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        master = self.master
        if (self.command, path) == ("POST", "auth/login"):
            return master.login(json.loads(body))
        if (self.command, path) == ("GET", "master"):
            return {"version": master.data["version"], "masterId": "m", "clusterId": "c", "clusterName": ""}
        header = self.headers.get("Authorization") or self._task_header()
        user = master.whoever(header)
        kind, _, rest = path.partition("/")
        id, _, more = rest.partition("/")
        if self.command == "POST":
            if path == "auth/logout":
                return master.log_out(header)
            if kind == "checkpoints" and more == "metadata":
                return master.set_metadata(id, json.loads(body))
            raise Refusal(501, "Not Implemented")
        lists = {
            ("experiments", "checkpoints"): master.experiment_checkpoints,
            ("experiments", "trials"): master.experiment_trials,
            ("trials", "checkpoints"): master.trial_checkpoints,
        }
        things = {"experiments": master.experiment, "trials": master.trial, "checkpoints": master.checkpoint}
        if path == "me":
            return {"user": master.user(user)}
        if path == "experiments":
            return master.list_experiments(query)
        if (kind, more) in lists:
            return lists[kind, more](id, query)
        if kind in things and not more:
            return things[kind](id)
        raise Refusal(501, "Not Implemented")

    def _task_header(self) -> str:
        return self.headers.get("Grpc-Metadata-x-allocation-token") or self._cookie()

    def _cookie(self) -> str:
        cookie = self.headers.get("Cookie") or ""
        return f"Bearer {cookie.removeprefix('auth=')}" if cookie.startswith("auth=") else ""

    def _send_files(self, uuid: str, *, cut: bool, drip: float | None) -> None:
        """Send a checkpoint's `folder` as the archive that `Accept` names as a whole."""
        accept = self.headers.get("Accept", "")
        found = [one for one in self.master.data["checkpoints"] if one["uuid"] == uuid]
        kind = archives.TYPES[0] if accept in ("", "*/*", "application/*") else accept
        if not self.master.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer ")):
            self._send(401, b'{"message": "Unauthorized"}')
        elif kind not in archives.TYPES or (found and kind not in found[0].get("kinds", archives.TYPES)):
            text = f"unsupported media type to download a checkpoint: '{accept}'"
            self._send(415, json.dumps({"message": text}).encode())
        elif not found:
            self._send(404, json.dumps({"message": f"checkpoint '{uuid}' not found"}).encode())
        elif not Path(found[0].get("folder", "/nowhere")).is_dir():
            text = f"unable to download checkpoint {uuid}: checkpoint archive failed, please verify that file system"
            self._send(500, json.dumps({"message": text}).encode())
        else:
            body = archives.archive(archives.files_of(Path(found[0]["folder"])), kind)
            self._send_archive(body, kind, cut=cut, drip=drip)

    def _send_archive(self, body: bytes, kind: str, *, cut: bool, drip: float | None) -> None:
        """A tar with its length, the others in chunks, as the master does."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        whole = kind == archives.TYPES[0]
        self.send_header(*(("Content-Length", str(len(body))) if whole else ("Transfer-Encoding", "chunked")))
        self.end_headers()
        if drip is not None:
            self._drip(body if whole else b"%x\r\n%s\r\n" % (len(body), body), drip)
        sent = body[: len(body) // 2] if cut else body
        for at in range(0, len(sent), 50_000):
            block = sent[at : at + 50_000]
            self.wfile.write(block if whole else b"%x\r\n%s\r\n" % (len(block), block))
        if not whole and not cut:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = cut

    def _fail(self, fault: str) -> None:
        if fault.startswith("redirect:"):
            self.send_response(302)
            self.send_header("Location", fault.partition(":")[2])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "html":
            self._send(200, b"<html><body>Please log in to the proxy</body></html>", kind="text/html")
        elif fault == "html-401":
            self._send(401, b"<html>no</html>", kind="text/html")
        elif fault == "garbage":
            self._send(200, secrets.token_bytes(10 << 20))
        elif fault == "empty":
            self._send(200, b"")
        elif fault == "deep":
            self._send(200, b"[" * 200_000 + b"]" * 200_000)
        elif fault == "echo":  # an error that quotes the request
            self._send(400, json.dumps({"message": f"bad header {self.headers.get('Authorization')}\nagain"}).encode())
        elif fault == "close":
            self.close_connection = True
            self.connection.close()
        elif fault.startswith("json:"):
            self._send(200, fault.partition(":")[2].encode())
        else:
            code, reason = CODES.get(int(fault), (14, "Unavailable"))
            body = {"error": {"code": code, "reason": reason, "error": f"scripted {fault}"}}
            self._send(int(fault), json.dumps(body).encode())

    def _send(
        self,
        status: int,
        body: bytes,
        *,
        kind: str | None = None,
        cut: bool = False,
        drip: float | None = None,
        head: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or self.kind)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        if head and drip is not None:
            self.flush_headers()
            self._drip(b"X-Filler: " + b"x" * 10_000, drip)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if drip is not None:
            self._drip(body, drip)
            return
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def _drip(self, data: bytes, seconds: float) -> None:
        for at in range(len(data)):
            self.wfile.write(data[at : at + 1])
            self.wfile.flush()
            time.sleep(seconds)


def main(certificate: str, prefix: str) -> None:
    """Serve until killed, or until stdin ends."""
    Handler.master = Master(json.loads(sys.stdin.readline()))
    Handler.prefix = prefix
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
