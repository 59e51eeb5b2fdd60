"""The SDK's way to a unix socket, but a connection that fails leaves no socket open. It imports the SDK, which is slow:
import it late."""

import socket
from typing import Any

from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool


class _Connection(UnixHTTPConnection):
    def connect(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self.timeout)
            made.connect(self.unix_socket)
        except OSError:
            made.close()
            raise
        self.sock = made


class _Pool(UnixHTTPConnectionPool):
    def _new_conn(self) -> Any:
        wait: Any = self.timeout
        return _Connection(self.base_url, self.socket_path, wait)


class Adapter(UnixHTTPAdapter):
    """One pool is enough: a client has one socket."""

    def get_connection(self, url: object, proxies: object = None) -> _Pool:
        with self.pools.lock:
            pool: _Pool | None = self.pools.get("one")
            if pool is None:
                pool = self.pools["one"] = _Pool("http+docker://localhost", self.socket_path, self.timeout, 10)
        return pool
