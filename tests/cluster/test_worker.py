"""What a worker answers: plain values, whatever happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from streamconv.cluster import worker
from streamconv.cluster.kinds import KINDS, open_work
from streamconv.cluster.worker import Worker
from streamconv.engine.budget import default_limit
from streamconv.errors import InternalError
from support.clusters import check_plain

SHARE = {"limit": 1 << 30, "workers": 1}


class Work:
    def __init__(self, arguments: Any) -> None:
        self.arguments, self.begun = arguments, threading.Event()

    def run(self, task: Any, progress: Any, is_stopped: Any) -> dict[str, Any]:
        if task == {"fail": True}:
            raise KeyError("x")
        progress(5, 7, "a file")
        self.begun.set()
        while task == {"wait": True}:
            progress(6, 8, "another file")
        return {"limit": self.arguments["memory_limit"]}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, list[Work]]:
    works: list[Work] = []
    monkeypatch.setattr(worker, "open_work", lambda kind, arguments: works.append(Work(arguments)) or works[-1])
    found = Worker()
    assert found.open("any", {}, SHARE) == {"value": None}
    return found, works


def test_a_result_comes_with_the_memory_that_it_took(opened: Any) -> None:
    answer = opened[0].work({})
    check_plain(answer)
    assert answer["value"]["result"] == {"limit": 1 << 30}
    status = answer["value"]["status"]
    assert (status["done"], status["read"], status["file"]) == (5, 7, "a file")
    assert 0 < status["resident"] <= status["peak"] + (1 << 20)


def test_without_a_limit_the_default_is_shared(opened: Any) -> None:
    opened[0].open("any", {}, {"limit": None, "workers": 4})
    assert opened[0].work({})["value"]["result"]["limit"] <= default_limit() // 4 + (1 << 24)


def test_it_answers_while_it_works_and_stops_when_it_is_told(opened: Any) -> None:
    found, works = opened
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(found.work({"wait": True})))
    thread.start()
    assert works[0].begun.wait(10)
    assert found.status()["value"]["done"] in (5, 6)
    assert found.stop() == {"value": None}
    thread.join(10)
    assert answers == [{"value": {"stopped": True}}]
    assert found.work({}) == {"value": {"stopped": True}}
    found.open("any", {}, SHARE)
    assert "result" in found.work({})["value"]


def test_an_exception_is_an_answer(opened: Any) -> None:
    answer = opened[0].work({"fail": True})
    check_plain(answer)
    assert answer["error"]["message"] == "KeyError: 'x'"


def test_no_job_is_open() -> None:
    assert Worker().work({})["error"]["class"] == "InternalError"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_loaded(kind: str) -> None:
    module, name = KINDS[kind]
    found = getattr(__import__(f"streamconv.cluster.{module}", fromlist=[name]), name)
    assert callable(found.run)


def test_an_unknown_kind() -> None:
    with pytest.raises(InternalError, match="unknown kind of job: cook"):
        open_work("cook", {})
