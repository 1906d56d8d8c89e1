"""How long each request waits for its connection, and how long it takes: in the log, and in a header for the scene."""

import logging
import time

from django.db import connection

log = logging.getLogger("timing")


class TimingMiddleware:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        began = time.perf_counter()
        # A connection that was kept is there at once; its health check (CONN_HEALTH_CHECKS) is a query, at the first cursor.
        connection.ensure_connection()
        acquired = (time.perf_counter() - began) * 1000
        response = self.get_response(request)
        total = (time.perf_counter() - began) * 1000
        log.info("[SQL_DEBUG] 📊 连接获取耗时: %.2fms", acquired)
        log.info("[PERF] %s %s | Total: %.2fms", request.method, request.path, total)
        response["Server-Timing"] = f"acquire;dur={acquired:.3f}, total;dur={total:.3f}"
        return response
