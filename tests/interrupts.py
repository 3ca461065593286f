# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C for processes that tests start."""

import signal


def heed_interrupts() -> None:
    """`preexec_fn` of a process: a shell's background job ignores SIGINT, and so would its own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
