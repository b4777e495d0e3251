"""Asks a running server whether it is ready.

Standard library only: containers run it every few seconds.
"""

import http.client
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What the server answered, or why it did not."""

    is_ready: bool
    line: str
    """For people: one line."""


def ask_readiness(host: str, port: int, *, timeout_s: float) -> Readiness:
    """GET ``/health/ready``.

    Args:
        host: As configured; the addresses that mean "all of them" are asked on the loopback.
        port: As configured; 0 names no port that could be asked.
        timeout_s: How long the server may take.
    """
    if port == 0:
        return Readiness(is_ready=False, line="not ready: port 0 was chosen by the system; give --port")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        body = response.read(64 * 1024)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        return Readiness(is_ready=False, line=f"not ready: {host} port {port}: {reason}")
    finally:
        connection.close()
    if response.status == http.HTTPStatus.OK:
        return Readiness(is_ready=True, line="ready")
    return Readiness(is_ready=False, line=f"not ready: {_stage_of(body) or f'status {response.status}'}")


def _stage_of(body: bytes) -> str | None:
    try:
        content = json.loads(body)
    except ValueError:
        return None
    stage = content.get("stage") if isinstance(content, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - JSON
    return stage if isinstance(stage, str) else None
