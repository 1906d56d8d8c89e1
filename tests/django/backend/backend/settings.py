"""The settings that the scene varies come from the environment; everything else is as small as a project can be."""

import os
import sys
from urllib.parse import parse_qsl, unquote, urlsplit

if os.environ.get("DRIVER") == "psycopg2":
    # Django takes psycopg 3 where it is there.
    sys.modules["psycopg"] = None

SECRET_KEY = os.environ.get("SECRET_KEY", "for the scene only")
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "backend.urls"
WSGI_APPLICATION = "backend.wsgi.application"
ASGI_APPLICATION = "backend.asgi.application"
INSTALLED_APPS = ["schools"]
MIDDLEWARE = ["backend.timing.TimingMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True


def database_from(url):
    """DATABASE_URL as Django wants it. A host that begins with / is the directory of a unix socket."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": os.environ.get("DATABASE_PASSWORD") or unquote(parts.password or ""),
        "HOST": options.pop("host", None) or parts.hostname or "",
        "PORT": str(options.pop("port", None) or parts.port or ""),
        "OPTIONS": options,
    }


if "DATABASE_PASSWORD_FILE" in os.environ:
    with open(os.environ["DATABASE_PASSWORD_FILE"], encoding="utf-8") as password:
        os.environ["DATABASE_PASSWORD"] = password.read().rstrip("\n")

DATABASES = {"default": database_from(os.environ.get("DATABASE_URL", "postgres://app@127.0.0.1:6432/app"))}
DATABASES["default"]["CONN_MAX_AGE"] = int(os.environ.get("CONN_MAX_AGE", "0"))
DATABASES["default"]["CONN_HEALTH_CHECKS"] = os.environ.get("CONN_HEALTH_CHECKS") == "1"
if os.environ.get("DATABASE_TIME_ZONE"):
    DATABASES["default"]["TIME_ZONE"] = os.environ["DATABASE_TIME_ZONE"]
if os.environ.get("DATABASE_POOL") == "1":
    DATABASES["default"]["OPTIONS"]["pool"] = {"min_size": 2, "max_size": 16}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
