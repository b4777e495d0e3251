"""Workers that are stopped when the test is over, and the signals of their fake encoder."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from model.worker import LoadOptions, ProcessWorker
from tests.model.worker.fakes import LOADER
from tests.model.worker.processes import Fifo

WorkerFactory = Callable[..., ProcessWorker]


def children() -> list[psutil.Process]:
    """Processes that these tests have started; what serves other tests, too, is none of them."""
    return [child for child in psutil.Process().children() if not _is_shared(child)]


def _is_shared(process: psutil.Process) -> bool:
    """Whether it is a server, or what multiprocessing starts once for all that use it."""
    try:
        command = process.cmdline()
        is_server = any(Path(argument).name == "laneway" for argument in command)
        return is_server or any("resource_tracker" in argument for argument in command)
    except psutil.ZombieProcess:
        return False


@pytest.fixture
def options(tmp_path: Path) -> LoadOptions:
    return LoadOptions(folder=str(tmp_path), source="fake")


@pytest.fixture
async def process_worker(options: LoadOptions) -> AsyncIterator[WorkerFactory]:
    """Makes workers with the fake encoder; none may leave a process behind."""
    workers: list[ProcessWorker] = []

    def make(**arguments: object) -> ProcessWorker:
        workers.append(ProcessWorker(options, **{"loader": LOADER, **arguments}))
        return workers[-1]

    yield make
    for worker in workers:
        await worker.stop()
    assert children() == []


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Callable[[str], Fifo]]:
    """Opens one of the fake encoder's signals."""
    fifos: list[Fifo] = []

    def make(name: str) -> Fifo:
        fifos.append(Fifo(tmp_path / name))
        return fifos[-1]

    yield make
    for one in fifos:
        one.close()
