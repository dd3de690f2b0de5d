"""When a failed call is tried again, and after how long. Pure: no clock, no channel, no sleeping.

Retried: UNAVAILABLE (the server cannot be reached, or is going down), and RESOURCE_EXHAUSTED where the server itself
says after how long (`google.rpc.RetryInfo`): without that, a limit was hit that the next attempt would hit as well.
Repeating is harmless: reads change nothing, and each write carries one request_id over all its attempts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from passerby.errors import InvalidArgumentError, PasserbyError, ResourceExhaustedError, UnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with jitter. Raises InvalidArgumentError when made of values that cannot be meant.

    attempts: calls in all, the first included; 1 turns retries off.
    initial_backoff: seconds before the second attempt; doubled before each further one.
    max_backoff: seconds that no backoff exceeds (a delay asked for by the server may).
    """

    attempts: int = 5
    initial_backoff: float = 0.2
    max_backoff: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.initial_backoff <= self.max_backoff:
            raise InvalidArgumentError(
                "a RetryPolicy needs attempts >= 1 and 0 <= initial_backoff <= max_backoff, got "
                f"attempts={self.attempts}, initial_backoff={self.initial_backoff}, max_backoff={self.max_backoff}"
            )

    def delay(self, error: PasserbyError, attempt: int) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1) failed with `error`; None to give up.

        Drawn evenly from the upper half of the backoff, so that clients that failed together do not return together.
        """
        if attempt >= self.attempts:
            return None
        backoff = min(self.initial_backoff * 2.0 ** (attempt - 1), self.max_backoff)
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        if isinstance(error, UnavailableError):
            return max(jittered, error.retry_delay or 0.0)
        if isinstance(error, ResourceExhaustedError) and error.retry_delay is not None:
            return error.retry_delay + jittered
        return None
