"""Flags what was received while the gateway's clock was set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines.batch import Batch, Flag


class ClockStepStage:
    """The last of one source's own stages.

    A step touches the source's first batch of which `state` was asked after it: one that was stamped across the step,
    or the first one behind it. Its times, or their distance from those of the batch before, may be off by the step. Of
    each source that is one batch a step, with every part of it: those have one `received_ns`.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._received_ns: int | None = None

    def process(self, batch: Batch) -> Batch | None:
        """All rows of such a batch get Flag.GATEWAY_CLOCK_STEPPED."""
        if batch.clock.steps != self._steps:
            self._steps, self._received_ns = batch.clock.steps, batch.received_ns
        if self._received_ns is None:
            return batch
        if batch.received_ns != self._received_ns:
            self._received_ns = None
            return batch
        return replace(batch, flags=batch.flags | np.uint8(Flag.GATEWAY_CLOCK_STEPPED))
