"""Settings that hold for all tests.

Property tests repeat the same examples and write no files. Tests marked ``slow`` run with ``--slow`` only.
"""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow(reason): runs with --slow only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if mark := item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason=f"needs --slow: {mark.kwargs.get('reason', 'slow')}"))
