"""Real processes that decode, hang, crash and die; every image ends in pixels or an error."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import uvloop

import model
from model.errors import (
    DecodeFailedError,
    DecoderUnavailableError,
    ImageAspectError,
    ImageError,
    ImageMemoryError,
    ImageScansError,
    ImageTimeoutError,
    ImageTooLargeError,
    InvalidImageError,
)
from model.images import DecodedImage, ImageDecoder, ImageLimits, ImageSpec, ResizeRule, frames
from tests.model.images import corpus
from tests.model.images.conftest import GME, TIMEOUT_S, becomes, decode_here, decode_processes
from tests.model.worker.processes import is_gone

ROOT = Path(model.__file__).parents[1]
MAX_GROWTH_BYTES = 300_000_000

RED = corpus.red_png()
LASTING = corpus.flat_webp(4160, 4160, (*corpus.RED, 255))
"""Takes a good half second."""

REFUSALS = (InvalidImageError, ImageTooLargeError, ImageAspectError, ImageScansError)

Factory = Callable[..., ImageDecoder]


async def assert_decodes(decoder: ImageDecoder) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        decoded = await decoder.decode(RED, is_query=True)
    assert (decoded.pixels == corpus.RED).all()


def start_decode(
    decoder: ImageDecoder, data: bytes = RED, *, is_query: bool = False
) -> asyncio.Task[DecodedImage]:
    return asyncio.create_task(decoder.decode(data, is_query=is_query))


async def stopped_over_an_image(decoder: ImageDecoder, pid: int) -> asyncio.Task[DecodedImage]:
    """Have a process hang with a document's image in its hands."""
    before = decoder.statistics().num_decoding
    os.kill(pid, signal.SIGSTOP)
    task = start_decode(decoder)
    await becomes(lambda: decoder.statistics().num_decoding == before + 1)
    return task


# Decoding


async def test_an_image_comes_back_as_it_would_be_decoded_here(decoder: Factory):
    pool = decoder(num_processes=2)
    await pool.start()
    for size in ((100, 60), (1300, 900), (3, 590)):
        data = corpus.save(corpus.noise(*size), "PNG", compress_level=1)
        here, there = decode_here(data), await pool.decode(data, is_query=False)
        assert (there.pixels == here.pixels).all()
        assert there.num_tokens == here.num_tokens


async def test_many_images_at_once_come_back_each_to_its_caller(decoder: Factory):
    pool = decoder(num_processes=2)
    await pool.start()
    greys = range(0, 250, 5)
    files = [corpus.save(corpus.solid("L", grey), "PNG") for grey in greys]
    images = await asyncio.gather(
        *(pool.decode(data, is_query=number % 3 == 0) for number, data in enumerate(files))
    )
    assert [int(image.pixels.max()) for image in images] == list(greys)
    assert pool.statistics().num_decoded == len(files)


async def test_every_kind_of_file_is_decoded_where_no_file_can_be_opened(decoder: Factory):
    """A library that imports something when it first needs it would find nothing there (confinement.py)."""
    pool = decoder()
    await pool.start()
    for name, (data, _) in corpus.good_files().items():
        there = await pool.decode(data, is_query=False)
        assert (there.pixels == decode_here(data).pixels).all(), name


async def test_refusals_come_back_with_their_numbers_and_take_less_memory_than_an_image(decoder: Factory):
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    idle = memory_bytes(pid, "VmRSS")
    for name, data in {
        **corpus.bombs(),
        **corpus.bad_files(),
        "3 x 601": corpus.red_png(size=(3, 601)),
        "33 scans": corpus.jpeg_of_scans(33),
    }.items():
        with pytest.raises(ImageError) as there:
            await pool.decode(data, is_query=False)
        with pytest.raises(ImageError) as here:
            decode_here(data)
        assert type(there.value) is type(here.value), name
        assert type(there.value) in REFUSALS
        assert (str(there.value), vars(there.value)) == (str(here.value), vars(here.value)), name
    assert memory_bytes(pid, "VmHWM") - idle < 50_000_000
    assert pool.statistics().num_restarts == 0


async def test_the_largest_images_take_less_than_300_mb(decoder: Factory):
    """One process decodes all that the defaults allow; its peak is the kernel's own count (proc(5))."""
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    idle = memory_bytes(pid, "VmRSS")
    peaks: dict[str, int] = {}
    for name, data in corpus.largest_files().items():
        forget_peak(pid)
        await pool.decode(data, is_query=False)
        peaks[name] = memory_bytes(pid, "VmHWM") - idle
    assert max(peaks.values()) < MAX_GROWTH_BYTES, peaks
    assert min(peaks.values()) > 100_000_000, peaks  # else nothing large was decoded
    assert memory_bytes(pid, "VmRSS") - idle < 20_000_000


def forget_peak(pid: int) -> None:
    Path("/proc", str(pid), "clear_refs").write_text("5")


def memory_bytes(pid: int, field: str) -> int:
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


async def test_a_decode_that_wants_more_memory_than_it_is_given_is_refused(decoder: Factory):
    rule = ResizeRule(min_tokens=500_000, max_tokens=600_000, clamps_aspect=True)
    pool = decoder(spec=ImageSpec(patch_size=14, merge_size=2, resizes=(rule,)))
    await pool.start()
    for _ in range(2):
        with pytest.raises(ImageMemoryError, match="decoding the image takes more than 290 MB of memory"):
            await pool.decode(RED, is_query=False)
    assert pool.statistics().num_restarts == 0


# Who comes first


async def test_a_query_overtakes_all_waiting_documents(decoder: Factory):
    """With one process it waits for the image that is being decoded, and for no other."""
    pool = decoder()
    await pool.start()
    finished: list[str] = []

    async def decode(name: str, *, is_query: bool) -> None:
        await pool.decode(RED, is_query=is_query)
        finished.append(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(51):
            group.create_task(decode("document", is_query=False))
        await becomes(lambda: pool.statistics().num_decoding == 1)
        group.create_task(decode("query", is_query=True))
    assert finished.index("query") <= 2
    assert len(finished) == 52


async def test_one_process_takes_no_documents(decoder: Factory):
    """However long documents take, a query's image is decoded at once."""
    pool = decoder(num_processes=2)
    await pool.start()
    _, for_documents = pool.statistics().pids
    first = await stopped_over_an_image(pool, for_documents)
    second = start_decode(pool)
    for _ in range(3):
        await assert_decodes(pool)
    assert not first.done()
    assert pool.statistics().num_waiting_documents == 1
    os.kill(for_documents, signal.SIGCONT)
    await asyncio.gather(first, second)


async def test_all_processes_take_queries(decoder: Factory):
    pool = decoder(num_processes=2)
    await pool.start()
    for pid in pool.statistics().pids:
        os.kill(pid, signal.SIGSTOP)
    queries = [start_decode(pool, is_query=True) for _ in range(2)]
    await becomes(lambda: pool.statistics().num_decoding == 2)
    for pid in pool.statistics().pids:
        os.kill(pid, signal.SIGCONT)
    await asyncio.gather(*queries)


async def test_a_caller_that_goes_away_gives_its_place_up(decoder: Factory):
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    running = await stopped_over_an_image(pool, pid)
    waiting = [start_decode(pool, is_query=number < 5) for number in range(10)]
    await becomes(lambda: pool.statistics().num_waiting_documents == 5)
    for task in waiting[2:9]:
        task.cancel()
    await becomes(lambda: pool.statistics().num_waiting_documents == 1)
    assert pool.statistics().num_waiting_queries == 2
    os.kill(pid, signal.SIGCONT)
    await asyncio.gather(running, *waiting[:2], waiting[9])
    assert pool.statistics().num_decoded == 4


async def test_a_caller_that_goes_away_during_its_decode_costs_nobody_the_process(decoder: Factory):
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    running = await stopped_over_an_image(pool, pid)
    running.cancel()
    os.kill(pid, signal.SIGCONT)
    await assert_decodes(pool)
    assert pool.statistics().pids == (pid,)


async def test_a_caller_that_has_gone_does_not_keep_a_process_for_long(decoder: Factory, monkeypatch, caplog):
    """Else requests that nobody waits for could own the one process for queries, ten seconds each."""
    monkeypatch.setattr("model.images.pool._ABANDONED_GRACE_S", 0.05)
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    running = await stopped_over_an_image(pool, pid)
    running.cancel()
    await assert_decodes(pool)
    assert not psutil.pid_exists(pid)
    now = pool.statistics()
    assert (now.num_abandoned, now.num_timeouts, now.num_crashes) == (1, 0, 0)
    assert (
        f"(pid {pid}) was decoding an image of {len(RED)} bytes that nobody waits for any more and was killed"
    ) in caplog.text


async def test_an_image_whose_process_dies_is_not_tried_again_for_nobody(decoder: Factory):
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    running = await stopped_over_an_image(pool, pid)
    running.cancel()
    os.kill(pid, signal.SIGKILL)
    await assert_decodes(pool)
    assert pool.statistics().num_decoded == 1


async def test_requests_take_turns(decoder: Factory):
    """However many images a request brings, the next one waits for one of them and not for all."""
    pool = decoder()
    await pool.start()
    finished: list[str] = []

    async def decode(request: str) -> None:
        await pool.decode(RED, is_query=False, group=request)
        finished.append(request)

    (pid,) = pool.statistics().pids
    running = await stopped_over_an_image(pool, pid)
    async with asyncio.TaskGroup() as group:
        for request in ("large",) * 20 + ("small",) * 2:
            group.create_task(decode(request))
        await becomes(lambda: pool.statistics().num_waiting_documents == 22)
        os.kill(pid, signal.SIGCONT)
    await running
    assert finished == ["large", "small"] * 2 + ["large"] * 18


# Hanging, crashing, dying


async def test_a_decode_that_hangs_is_killed_and_its_process_replaced(decoder: Factory, caplog):
    pool = decoder(num_processes=2, limits=ImageLimits(decode_timeout_s=0.5))
    await pool.start()
    for_queries, for_documents = pool.statistics().pids
    hanging = await stopped_over_an_image(pool, for_documents)
    await assert_decodes(pool)
    with pytest.raises(ImageTimeoutError, match=r"decoding the image takes more than 0\.5 s"):
        await hanging
    await becomes(lambda: pool.statistics().num_restarts == 1)
    assert not psutil.pid_exists(for_documents)
    assert pool.statistics().pids[0] == for_queries
    assert (await pool.decode(RED, is_query=False)).num_tokens == 280
    assert pool.statistics().num_timeouts == 1
    assert (
        f"the decode process (pid {for_documents}) had not decoded an image of {len(RED)} bytes after 0.5 s "
        f"and was killed by SIGKILL; starting another"
    ) in caplog.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_an_image_whose_process_dies_is_decoded_by_another(decoder: Factory, number: signal.Signals):
    """The kernel's memory killer takes whom it likes."""
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    running = await stopped_over_an_image(pool, pid)
    behind = start_decode(pool)
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    for image in await asyncio.gather(running, behind):
        assert (image.pixels == corpus.RED).all()
    now = pool.statistics()
    assert now.pids != (pid,)
    assert (now.num_crashes, now.num_restarts, now.num_decoded) == (1, 1, 2)


async def test_an_image_that_two_processes_die_over_is_refused(decoder: Factory):
    """It goes no further, and the next image is decoded."""
    pool = decoder()
    await pool.start()
    running = start_decode(pool, LASTING)
    dead: set[int] = set()
    for _ in range(2):
        await becomes(lambda: pool.statistics().num_decoding == 1 and dead.isdisjoint(pool.statistics().pids))
        (pid,) = pool.statistics().pids
        os.kill(pid, signal.SIGKILL)
        dead.add(pid)
    with pytest.raises(DecodeFailedError, match="the image could not be decoded in 2 attempts"):
        await running
    await assert_decodes(pool)
    assert pool.statistics().num_crashes == 2


async def test_a_process_that_dies_while_it_is_idle_is_replaced(decoder: Factory, caplog):
    pool = decoder(num_processes=2)
    await pool.start()
    before = pool.statistics().pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await becomes(lambda: pool.statistics().num_restarts == 2)
    await assert_decodes(pool)
    assert set(before).isdisjoint(pool.statistics().pids)
    assert pool.statistics().num_crashes == 0
    assert f"(pid {before[0]}) was idle and was killed by SIGKILL; starting another" in caplog.text


async def test_a_process_that_talks_nonsense_is_replaced(decoder: Factory, monkeypatch):
    """Whoever has taken a decode process over gets no further."""
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    monkeypatch.setattr(frames, "_REFUSALS", {})
    with pytest.raises(DecodeFailedError):
        await pool.decode(b"no image", is_query=False)
    await assert_decodes(pool)
    assert pool.statistics().pids != (pid,)
    assert pool.statistics().num_crashes == 2


async def test_a_process_is_replaced_after_its_share_of_images(decoder: Factory, caplog):
    """What libraries leak stays bounded, and nobody notices."""
    pool = decoder(decodes_per_process=3)
    await pool.start()
    pids: set[int] = set()
    for _ in range(7):
        await assert_decodes(pool)
        pids.update(pool.statistics().pids)
    await becomes(lambda: pool.statistics().num_restarts == 2)
    assert len(pids) == 3
    assert pool.statistics().num_crashes == 0
    assert caplog.text == ""


async def test_a_mistake_of_ours_fails_the_image_and_not_the_process(decoder: Factory, monkeypatch, caplog):
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids

    def failed(_: object) -> frames.Failed:
        return frames.Failed(description="KeyError in decode:7")

    with monkeypatch.context() as patch:
        patch.setattr(frames, "unpack_for_gateway", failed)
        with pytest.raises(DecodeFailedError, match=r"the image could not be decoded$"):
            await pool.decode(b"no image", is_query=False)
    assert "a decode went wrong by a mistake of ours: KeyError in decode:7" in caplog.text
    await assert_decodes(pool)
    assert pool.statistics().pids == (pid,)


# Starting and ending


async def test_a_decoder_that_is_not_open_says_so(decoder: Factory):
    pool = decoder()
    with pytest.raises(DecoderUnavailableError, match="the image decoder is not open"):
        await pool.decode(RED, is_query=True)
    await pool.start()
    await pool.close()
    with pytest.raises(DecoderUnavailableError, match="the image decoder is not open"):
        await pool.decode(RED, is_query=True)


async def test_a_decoder_that_is_closed_at_once_leaves_no_process(decoder: Factory):
    """Before any of its tasks has run a step."""
    pool = decoder(num_processes=2)
    await pool.start()
    await pool.close()
    assert decode_processes() == []


async def test_closing_fails_whoever_waits_and_leaves_no_process(decoder: Factory):
    pool = decoder(num_processes=2)
    await pool.start()
    running = await stopped_over_an_image(pool, pool.statistics().pids[1])
    waiting = start_decode(pool)
    await becomes(lambda: pool.statistics().num_waiting_documents == 1)
    await pool.close()
    assert decode_processes() == []
    for task in (running, waiting):
        with pytest.raises(DecoderUnavailableError, match="the image decoder was closed"):
            await task


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("/bin/false", r"a decode process \(pid \d+\) exited with code 1 when it was started"),
        ("/no/such/file", "cannot start a decode process: .*No such file"),
    ],
)
async def test_a_decoder_that_cannot_start_says_why_and_leaves_nothing(
    decoder: Factory, monkeypatch, program: str, complaint: str
):
    pool = decoder(num_processes=2)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", program)
        with pytest.raises(DecoderUnavailableError, match=complaint):
            await pool.start()
    assert decode_processes() == []


async def test_a_process_that_does_not_get_ready_is_killed(decoder: Factory, tmp_path, monkeypatch):
    program = tmp_path / "sleeper"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    pool = decoder(start_timeout_s=0.2)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(
        DecoderUnavailableError, match=r"a decode process \(pid \d+\) was not ready after 0.2 s"
    ):
        await pool.start()
    assert [one for one in psutil.Process().children() if "sleep" in one.name()] == []


async def test_a_decoder_without_processes_fails_its_jobs_and_tries_again_later_and_later(
    decoder: Factory, monkeypatch
):
    delays_s: list[float] = []
    may_go_on = asyncio.Event()

    async def sleep(delay_s: float) -> None:
        delays_s.append(delay_s)
        if len(delays_s) == 3:
            await may_go_on.wait()

    pool = decoder(sleep=sleep)
    await pool.start()
    (pid,) = pool.statistics().pids
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/file")
        running = await stopped_over_an_image(pool, pid)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DecoderUnavailableError, match="cannot start a decode process"):
            await running
        await becomes(lambda: len(delays_s) == 3)
    may_go_on.set()
    await assert_decodes(pool)
    assert delays_s == [0.1, 0.2, 0.4]


async def test_a_decoder_tells_its_state(decoder: Factory):
    pool = decoder(num_processes=2)
    await pool.start()
    running = await stopped_over_an_image(pool, pool.statistics().pids[1])
    waiting = start_decode(pool)
    await becomes(lambda: pool.statistics().num_waiting_documents == 1)
    assert repr(pool) == ("<ImageDecoder: 2 of 2 processes, 1 decoding, 0 queries and 1 documents waiting>")
    os.kill(pool.statistics().pids[1], signal.SIGCONT)
    await asyncio.gather(running, waiting)


# What a process is


async def test_a_process_holds_no_secret_no_file_and_no_library_that_it_does_not_need(
    decoder: Factory, monkeypatch
):
    monkeypatch.setenv("LANEWAY_API_KEYS", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    pool = decoder()
    await pool.start()
    await assert_decodes(pool)
    (pid,) = pool.statistics().pids
    process = Path("/proc", str(pid))
    assert b"secret" not in process.joinpath("environ").read_bytes()
    assert len(list(process.joinpath("fd").iterdir())) == 4  # input, output, errors and the gateway's socket
    maps = process.joinpath("maps").read_text()
    assert "numpy" in maps
    for library in ("torch", "tokenizers", "_asyncio", "uvloop", "_ssl"):
        assert library not in maps, library


async def test_ctrl_c_and_the_service_managers_signal_are_left_to_the_gateway(decoder: Factory):
    pool = decoder()
    await pool.start()
    (pid,) = pool.statistics().pids
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    await assert_decodes(pool)
    assert pool.statistics().pids == (pid,)


@pytest.mark.parametrize("is_decoding", [False, True])
def test_no_process_outlives_its_gateway(is_decoding: bool):
    """Not even in the middle of an image, and not if the gateway is killed."""
    script = f"""
import asyncio, json
from tests.model.images.conftest import GME, LIMITS
from tests.model.images.test_pool import LASTING
from model.images import ImageDecoder
async def main():
    decoder = ImageDecoder(GME, LIMITS, num_processes=2)
    await decoder.start()
    tasks = [asyncio.create_task(decoder.decode(LASTING, is_query=True)) for _ in range(2 * {is_decoding})]
    while decoder.statistics().num_decoding < len(tasks):
        await asyncio.sleep(0.001)
    print(json.dumps(decoder.statistics().pids), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        pidfds = [os.pidfd_open(pid) for pid in json.loads(gateway.stdout.readline())]
        gateway.kill()
    assert len(pidfds) == 2
    assert all(is_gone(pidfd) for pidfd in pidfds)


def test_all_of_it_works_on_uvloop():
    """The loop that the server runs on has its own socket calls."""

    async def main() -> None:
        pool = ImageDecoder(GME, ImageLimits(decode_timeout_s=0.7), num_processes=2)
        await pool.start()
        try:
            await uvloop_story(pool)
        finally:
            await pool.close()
        assert decode_processes() == []

    uvloop.run(main())


async def uvloop_story(pool: ImageDecoder) -> None:
    data = corpus.save(corpus.noise(400, 300), "PNG", compress_level=1)  # more than a socket's buffer takes
    assert ((await pool.decode(data, is_query=False)).pixels == decode_here(data).pixels).all()
    with pytest.raises(InvalidImageError):
        await pool.decode(b"no image", is_query=False)
    for_queries, for_documents = pool.statistics().pids
    killed = await stopped_over_an_image(pool, for_documents)
    os.kill(for_documents, signal.SIGKILL)
    assert (await killed).num_tokens == 280
    (for_documents,) = set(pool.statistics().pids) - {for_queries}
    hanging = await stopped_over_an_image(pool, for_documents)
    with pytest.raises(ImageTimeoutError):
        await hanging
    os.kill(for_queries, signal.SIGKILL)
    await becomes(lambda: pool.statistics().num_restarts == 3)
    await assert_decodes(pool)
