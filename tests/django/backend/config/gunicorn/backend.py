"""gunicorn's settings. gevent is kept: the sidecar is what makes its connections cheap."""

import os

bind = os.environ.get("BIND", "0.0.0.0:8000")
worker_class = os.environ.get("WORKER_CLASS", "gevent")
workers = int(os.environ.get("WORKERS", "2"))
threads = int(os.environ.get("THREADS", "8")) if worker_class == "gthread" else 1
worker_connections = 1000
# The worker's heartbeat, and where the image is read-only.
worker_tmp_dir = "/dev/shm"
timeout = 120
graceful_timeout = 5
accesslog = None


def post_fork(server, worker):
    """psycopg2 waits in C, which stops every greenlet of the worker, unless it is told how to wait."""
    if worker_class == "gevent":
        try:
            from psycogreen.gevent import patch_psycopg
        except ImportError:
            return
        try:
            patch_psycopg()
        except ImportError:
            # psycopg 3 sees gevent by itself.
            pass
