"""Writes a line "test outcome" for each test to the file SUITE_OUTCOMES."""

import os
import unittest

from django.test.runner import DiscoverRunner


class Outcomes(unittest.TextTestResult):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.file = open(os.environ["SUITE_OUTCOMES"], "w")
        self.outcome = None

    def startTest(self, test):
        self.outcome = None
        super().startTest(test)

    def stopTest(self, test):
        self.write(test, self.outcome or "ok")
        super().stopTest(test)

    def write(self, test, outcome):
        self.file.write(f"{test.id().replace(' ', '_')} {outcome}\n")
        self.file.flush()

    def addError(self, test, error):
        super().addError(test, error)
        self.outcome = "error"
        if not isinstance(test, unittest.TestCase):  # a setUpClass that failed: its tests are not run
            self.write(test, "error")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.outcome = "failed"

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.outcome = "failed"

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.outcome = "skipped"

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.outcome = "expected_failure"


class Runner(DiscoverRunner):
    def get_resultclass(self):
        return Outcomes
