"""What is out on one slot, and what of it has begun, as far as that can be known from here.

A runner begins passes in the order in which they came, but urgent ones before those of the main line. It
tells of nothing but ends. So what has begun is concluded: the first of the main line begins when nothing
urgent is left and the one before it has come back.
"""

from dataclasses import dataclass, field

from batching.types import Pass, Slot


@dataclass(slots=True, kw_only=True, eq=False)
class SlotLines:
    """What is out on one slot; in both lines the first one was handed out first."""

    can: Slot
    main: list[Pass] = field(default_factory=list)
    urgent: list[Pass] = field(default_factory=list)
    begun: Pass | None = None
    """The pass of the main line that has begun; an urgent one may have broken into it."""
    since_s: float = 0.0
    """When what runs now began, or had the device back."""
    documents_since_s: float = 0.0
    """Since when no query has had the device."""
    had_s: float = 0.0
    """How long the pass that has begun had the device before it was last broken into."""
    absent_since_s: float | None = None
    """When the runner was found not to be ready; ``None`` while it is. ``-inf``: it never will be."""

    @property
    def is_ready(self) -> bool:
        """Whether the runner can be handed passes."""
        return self.absent_since_s is None

    @property
    def num_out(self) -> int:
        """Passes that were handed out and have not come back."""
        return len(self.main) + len(self.urgent)

    @property
    def is_urgent_running(self) -> bool:
        """An urgent pass has the device for sure: one that breaks in may not have begun."""
        return bool(self.urgent) and self.begun is None

    @property
    def staged(self) -> list[Pass]:
        """Passes of the main line that have not begun."""
        return [out for out in self.main if out is not self.begun]

    @property
    def running(self) -> Pass | None:
        """What has the device, as far as that is known here."""
        return self.urgent[0] if self.is_urgent_running else self.begun

    @property
    def waiting(self) -> list[Pass]:
        """Everything else that is out."""
        return [out for out in (*self.urgent, *self.main) if out is not self.running]

    def can_take_urgent(self, *, may_interrupt: bool) -> bool:
        """Whether an urgent pass would find its place free, and something to overtake or to break into."""
        # So three are out at most: one that runs, one that is staged, one that is urgent and waits.
        is_free = len(self.urgent) == self.is_urgent_running
        return self.can.depth == 2 and is_free and (bool(self.staged) or may_interrupt)

    def is_interruptible(self) -> bool:
        """Whether a pass of documents runs that can make room."""
        return self.can.can_interrupt and self.begun is not None and not self.begun.has_queries

    def rest_s(self, now_s: float) -> float:
        """How much longer the pass that runs will run."""
        return max(0.0, self.end_s - now_s) if self.running is not None else 0.0

    def overdue_s(self, now_s: float) -> float:
        """How much longer the pass that runs has run than it should have."""
        return max(0.0, now_s - self.end_s) if self.running is not None else 0.0

    @property
    def end_s(self) -> float:
        """When the pass that runs is expected to end, if nothing breaks in any more."""
        running = self.running
        assert running is not None, "nothing runs"
        had_s = self.had_s if running is self.begun else 0.0
        return self.since_s + running.predicted_s - had_s

    def add(self, out: Pass, now_s: float) -> None:
        """Take note that a pass was handed out."""
        (self.urgent if out.is_urgent else self.main).append(out)
        if self.num_out == 1:
            self.documents_since_s = now_s
            self._begin(now_s)

    def remove(self, out: Pass, now_s: float) -> None:
        """Take note that a pass came back."""
        (self.urgent if out.is_urgent else self.main).remove(out)
        if out.has_queries:
            self.documents_since_s = now_s
        if out is self.begun:
            self.begun = None
        elif out.is_urgent and self.begun is not None:
            # It broke in, since what had begun has not come back: the rest of the time was the latter's.
            self.had_s += max(0.0, now_s - self.since_s - out.predicted_s)
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self.since_s = now_s
        if self.begun is None and not self.urgent and self.main:
            self.begun, self.had_s = self.main[0], 0.0
