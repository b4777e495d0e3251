"""What the driver tells, what it refuses, and what happens while it thinks. The driver is a fake of NVML."""

import asyncio
import logging
import threading
from dataclasses import replace
from typing import Any

import pynvml
import pytest

from app import gpus as gpus_module
from app.gpus import RETRY_AFTER_S, STALE_AFTER_S, Gpus, Nvml, load_nvml, read_gpus
from app.metrics import Metrics
from tests.app.fake_nvml import H200, FakeNvml, gpus_of
from tests.app.fakes import Gateway

FIELDS = {
    "nvmlDeviceGetUtilizationRates": {"utilization_ratio"},
    "nvmlDeviceGetMemoryInfo": {"memory_used_bytes", "memory_total_bytes"},
    "nvmlDeviceGetPowerUsage": {"power_watts"},
    "nvmlDeviceGetTemperature": {"temperature_celsius"},
}
"""What each question is for."""
GPU_METRICS = {
    "utilization_ratio",
    "memory_used_bytes",
    "memory_total_bytes",
    "power_watts",
    "temperature_celsius",
}


# Reading ---------------------------------------------------------------------------------------------------


async def test_every_card_is_read_in_base_units():
    cards = [H200, replace(H200, index=1, uuid="GPU-1", utilization_ratio=0.0)]
    gpus, _ = gpus_of(FakeNvml(cards=cards))
    assert await gpus.refresh() == tuple(cards)


@pytest.mark.parametrize(
    "refusal", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_UNKNOWN]
)
@pytest.mark.parametrize("function", FIELDS)
async def test_what_the_driver_refuses_is_unknown_and_the_rest_is_told(function: str, refusal: int):
    """Under MIG there is no utilisation, and a container with a slice may not ask for the card."""
    gpus, _ = gpus_of(FakeNvml(refusals={function: refusal}))
    assert await gpus.refresh() == (replace(H200, **dict.fromkeys(FIELDS[function])),)


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName"])
async def test_a_card_that_may_not_be_named_is_left_out(function: str):
    gpus, _ = gpus_of(FakeNvml(refusals={function: pynvml.NVML_ERROR_NO_PERMISSION}))
    assert await gpus.refresh() == ()


async def test_a_lost_card_does_not_hide_its_neighbour():
    class HalfLost(FakeNvml):
        def nvmlDeviceGetUUID(self, handle: Any) -> str:
            if handle == 0:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return super().nvmlDeviceGetUUID(handle)

    neighbour = replace(H200, index=1, uuid="GPU-1")
    gpus, _ = gpus_of(HalfLost(cards=[H200, neighbour]))
    assert await gpus.refresh() == (neighbour,)


# No driver -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
async def test_without_a_driver_there_are_no_gpus_and_one_line_says_why(
    error: int, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="app.gpus")
    gpus, clock = gpus_of(FakeNvml(refusals={"nvmlInit": error}))
    for _ in range(3):
        assert await gpus.refresh() == ()
        clock.now_s += RETRY_AFTER_S
    assert caplog.messages == [f"no metrics of GPUs: {pynvml.NVMLError(error)}"]


async def test_a_driver_that_is_loaded_later_is_found_after_a_minute():
    nvml = FakeNvml(refusals={"nvmlInit": pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
    gpus, clock = gpus_of(nvml)
    await gpus.refresh()
    nvml.refusals.clear()
    clock.now_s += RETRY_AFTER_S - 1
    assert await gpus.refresh() == ()
    clock.now_s += 1
    assert await gpus.refresh() == (H200,)


async def test_a_driver_that_goes_takes_its_readings_along_and_is_connected_to_anew():
    """A driver is replaced under a running program when the machine's packages are updated."""
    nvml = FakeNvml()
    gpus, clock = gpus_of(nvml)
    assert await gpus.refresh() == (H200,)
    nvml.refusals["nvmlDeviceGetCount"] = pynvml.NVML_ERROR_UNINITIALIZED
    clock.now_s += 1
    assert await gpus.refresh() == ()
    assert nvml.num_connected == 0
    nvml.refusals.clear()
    clock.now_s += RETRY_AFTER_S
    assert await gpus.refresh() == (H200,)
    assert nvml.num_connected == 1


async def test_the_real_library_has_all_that_is_asked_of_it():
    """On a machine without a card it says so; on one with a card it is read."""
    real = load_nvml()
    wanted = [name for name in (*vars(Nvml), *Nvml.__annotations__) if name.startswith(("nvml", "NVML"))]
    assert len(wanted) == 12
    assert [name for name in wanted if not hasattr(real, name)] == []
    try:
        real.nvmlInit()
    except pynvml.NVMLError:
        assert await Gpus().refresh() == ()
    else:
        assert list(read_gpus(real)) != []


async def test_an_error_of_the_binding_is_told_once_and_tried_again_after_a_minute(
    caplog: pytest.LogCaptureFixture,
):
    """It decodes names itself, and raises what decoding raises."""
    caplog.set_level(logging.INFO, logger="app.gpus")

    class Garbled(FakeNvml):
        def nvmlDeviceGetName(self, handle: Any) -> str:
            return b"NVIDIA \xff".decode()

    nvml = Garbled()
    gpus, clock = gpus_of(nvml)
    for _ in range(3):
        assert await gpus.refresh() == ()
        clock.now_s += RETRY_AFTER_S - 1
        assert await gpus.refresh() == ()
        clock.now_s += 1
    assert nvml.num_readings == 3
    (message,) = caplog.messages
    assert message.startswith("no metrics of GPUs: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff")


# Asking again ----------------------------------------------------------------------------------------------


async def test_the_driver_is_asked_once_a_second_however_many_ask():
    nvml = FakeNvml()
    gpus, clock = gpus_of(nvml)
    await asyncio.gather(*(gpus.refresh() for _ in range(10)))
    clock.now_s += 0.9
    await gpus.refresh()
    assert nvml.num_readings == 1
    clock.now_s += 0.1
    await gpus.refresh()
    assert nvml.num_readings == 2


async def test_a_driver_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch):
    """A card that has fallen off the bus blocks every question for seconds or for ever."""
    monkeypatch.setattr(gpus_module, "MAX_WAIT_S", 0.01)
    nvml = FakeNvml()
    gpus, clock = gpus_of(nvml)
    await gpus.refresh()
    answered = threading.Event()
    nvml.on_read = answered.wait
    nvml.cards = [replace(H200, temperature_celsius=70.0)]
    clock.now_s += 1
    assert [await gpus.refresh(), await gpus.refresh()] == [(H200,), (H200,)]
    clock.now_s += STALE_AFTER_S
    assert await gpus.refresh() == ()
    answered.set()
    monkeypatch.setattr(gpus_module, "MAX_WAIT_S", 10)
    assert await gpus.refresh() == (replace(H200, temperature_celsius=70.0),)
    assert nvml.num_readings == 2


async def test_the_driver_is_asked_in_another_thread():
    nvml = FakeNvml()
    threads: list[threading.Thread] = []
    nvml.on_read = lambda: threads.append(threading.current_thread())
    gpus, _ = gpus_of(nvml)
    await gpus.refresh()
    assert threads
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


# As metrics ------------------------------------------------------------------------------------------------


async def test_cards_are_told_by_number_and_name():
    gpus, _ = gpus_of(FakeNvml(cards=[H200, replace(H200, index=1, uuid="GPU-1")]))
    gateway = Gateway(metrics=Metrics(gpus=gpus))
    await gateway.get("/metrics")
    first, second = {"gpu": "0", "uuid": H200.uuid}, {"gpu": "1", "uuid": "GPU-1"}
    assert gateway.sample("laneway_gpu_info", **first, name="NVIDIA H200") == 1
    assert gateway.sample("laneway_gpu_utilization_ratio", **first) == 0.75
    assert gateway.sample("laneway_gpu_memory_used_bytes", **first) == 30_000_000_000
    assert gateway.sample("laneway_gpu_memory_total_bytes", **second) == 150_000_000_000
    assert gateway.sample("laneway_gpu_power_watts", **second) == 412.5
    assert gateway.sample("laneway_gpu_temperature_celsius", **second) == 61


@pytest.mark.parametrize("function", FIELDS)
async def test_a_field_that_is_refused_is_absent_and_not_0(function: str):
    """A 0 would be averaged, and would say that the card is idle."""
    gpus, _ = gpus_of(FakeNvml(refusals={function: pynvml.NVML_ERROR_NOT_SUPPORTED}))
    gateway = Gateway(metrics=Metrics(gpus=gpus))
    text = (await gateway.get("/metrics")).body.decode()
    told = {name for name in GPU_METRICS if f"laneway_gpu_{name}" in text}
    assert told == GPU_METRICS - FIELDS[function]
    assert "laneway_gpu_info{" in text


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount"])
async def test_without_a_driver_no_metric_of_a_gpu_is_named(function: str):
    gpus, _ = gpus_of(FakeNvml(refusals={function: pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}))
    gateway = Gateway(metrics=Metrics(gpus=gpus))
    answer = await gateway.get("/metrics")
    assert answer.status == 200
    assert b"laneway_model_ready" in answer.body
    assert b"laneway_gpu" not in answer.body
