# SPDX-License-Identifier: Apache-2.0
"""The server that the tests of routes and of the dashboard share."""

from collections.abc import Iterator

import pytest

from tests.server.guarded_server import GuardedServer


@pytest.fixture(scope="session")
def guarded_server() -> Iterator[GuardedServer]:
    with GuardedServer() as running:
        yield running
