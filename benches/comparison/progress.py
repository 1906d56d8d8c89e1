"""One line on a terminal that says how far it is; a line per step where nobody watches."""

import shutil
import sys
import time

WIDTH = 24


class Progress:
    def __init__(self, steps, stream=sys.stderr):
        self.steps, self.done, self.stream = max(1, steps), 0, stream
        self.began, self.watched = time.monotonic(), stream.isatty()

    def step(self, what):
        """`what` begins; whatever began before is done."""
        share = min(1.0, self.done / self.steps)
        took = time.monotonic() - self.began
        left = f", {took / share * (1 - share) / 60:.0f} min left" if share > 0.02 else ""
        bar = ("#" * round(share * WIDTH)).ljust(WIDTH, ".")
        line = f"[{bar}] {share * 100:3.0f} %{left}  {what}"
        if self.watched:
            columns = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r{line[:columns]:{columns}}")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()
        self.done += 1

    def end(self):
        if self.watched:
            self.stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self.stream.flush()
