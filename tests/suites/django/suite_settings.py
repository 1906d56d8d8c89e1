"""Django's tests on the PostgreSQL that the environment names, no option that a pooler would ask for."""

import os

_server = {
    "ENGINE": "django.db.backends.postgresql",
    "HOST": "127.0.0.1",
    "PORT": os.environ["SUITE_PORT"],
    "USER": os.environ["SUITE_USER"],
    "PASSWORD": os.environ["SUITE_PASSWORD"],
}
DATABASES = {
    "default": {**_server, "NAME": "suite", "TEST": {"NAME": "test_suite"}},
    "other": {**_server, "NAME": "suite_other", "TEST": {"NAME": "test_suite_other"}},
}
SECRET_KEY = "tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "suite_runner.Runner"
