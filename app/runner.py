"""A worker as the batcher knows it: where the batching and the model room meet for each pass."""

from collections.abc import Sequence

from app.calibration import shape_of
from batching import CostModel, RunnerLostError, RunnerMemoryError, RunResult
from model import Features, NonFiniteRowError, PassNotBegunError, PassOutOfMemoryError, WorkerDiedError
from model.worker import Worker

_MIN_PASS_TIMEOUT_S = 10.0
_TIMEOUT_FACTOR = 50


class WorkerRunner:
    """A worker as the batcher knows it: payloads are features, results are rows or errors."""

    def __init__(self, worker: Worker, cost: CostModel) -> None:
        self._worker = worker
        self._cost = cost

    @property
    def is_ready(self) -> bool:
        """Whether a pass may be run now."""
        return self._worker.is_ready

    async def wait_ready(self) -> None:
        """Return when a pass may be run."""
        await self._worker.wait_ready()

    @property
    def depth(self) -> int:
        """A pass may wait at the worker for the one before it: the device never waits for the gateway."""
        return 2

    @property
    def can_interrupt(self) -> bool:
        """Whether queries may run between two layers of a pass of documents."""
        return self._worker.can_interrupt

    async def run(self, payloads: Sequence[object], *, is_urgent: bool, may_interrupt: bool) -> RunResult:
        """Run one pass; a row that is not finite is that entry's error."""
        features = [_as_features(payload) for payload in payloads]
        predicted_s = self._cost.predict_s(shape_of(features))
        try:
            result = await self._worker.run(
                features,
                timeout_s=pass_timeout_s(predicted_s),
                is_urgent=is_urgent,
                may_interrupt=may_interrupt,
            )
        except WorkerDiedError as error:
            has_begun = not isinstance(error, PassNotBegunError)
            raise RunnerLostError(str(error), has_begun=has_begun) from error
        except PassOutOfMemoryError as error:
            raise RunnerMemoryError(str(error)) from error
        bad_rows = frozenset(result.nonfinite_rows)
        results = [NonFiniteRowError() if index in bad_rows else row for index, row in enumerate(result.rows)]
        return RunResult(
            results=results, device_s=result.device_s, num_padding_tokens=result.num_padding_tokens
        )


def pass_timeout_s(predicted_s: float) -> float:
    """When a worker that has not answered a pass is taken to hang.

    Far above any noise: a machine that is busy otherwise makes a pass ten times as long. A query behind a
    stopped worker waits this long, so it must not be minutes.
    """
    return max(_MIN_PASS_TIMEOUT_S, _TIMEOUT_FACTOR * predicted_s)


def _as_features(payload: object) -> Features:
    assert isinstance(payload, Features)
    return payload
