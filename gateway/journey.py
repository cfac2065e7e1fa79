"""One call's way through its candidates: what each attempt gave, and on to the next while the client has heard nothing.

All that an attempt holds, its lease and its upstream response, belongs to one `Attempt`, entered in the frame that
took the lease, and leaving the block closes it. Closing is synchronous, so a cancelled call leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from gateway.block import TimeLimit
from gateway.call import JSON, Call, Candidate, Plan, Priority, Record, Reply, model_key
from gateway.catalog import Catalog
from gateway.config import Config, RouteConfig, Timeouts
from gateway.dialects import broken, refusal
from gateway.errors import MAX_ASKED_FOR, BadAnswer, CallTimeout, ConnectFailed, NotToldYet, Refused, UpstreamError
from gateway.instances import Lease, Pool, Ticket
from gateway.metrics import Metrics
from gateway.offload import sized
from gateway.upstream import Request, Response, Upstream
from gateway.wire import request_headers, retry_after

T = TypeVar("T")

MAX_REPLY = 64 * 2**20  # bytes of a finished answer; embeddings of many inputs are the largest
MAX_REFUSAL = 64 * 2**10  # bytes of an error body that are looked at
MAX_BACKOFF = 1.0  # seconds


class RetryBudget:
    """Keeps attempts after the first below a share of the calls, so that a failing pool is not hit harder (§1)."""

    def __init__(self, ratio: float, reserve: int) -> None:
        self._ratio = ratio
        self._most = max(float(reserve), 10 * ratio)
        self._balance = float(reserve)

    def earn(self) -> None:
        """A call came in."""
        self._balance = min(self._most, self._balance + self._ratio)

    def spend(self, error: UpstreamError) -> bool:
        """Whether one more attempt may be made after `error`. What was never sent costs an instance nothing."""
        if not error.sent:
            return True
        if self._balance < 0.999:  # five times 0.2 is a little less than one
            return False
        self._balance -= 1.0
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The configuration a call began with and keeps, with the upstream of each instance."""

    config: Config
    digest: str
    routes: Mapping[str, RouteConfig]
    upstreams: Mapping[str, Upstream]
    weights: Mapping[str, float] = field(default_factory=dict)  # of callers that have one of their own

    def timeouts(self, route: str) -> Timeouts:
        entry = self.routes.get(route)
        return self.config.timeouts if entry is None else self.config.timeouts.under(entry.timeouts)

    def priority(self, call: Call, route: str) -> Priority:
        """What the client asked for, where it may; else the route's word, else what kind of call it is."""
        entry = self.routes.get(route)
        given = call.wish.priority if entry is None or entry.priority is None else Priority[entry.priority.upper()]
        asked, rule = call.priority, self.config.line.priority_header
        if asked is None or rule == "never" or (rule == "lower" and asked < given):
            return given
        return asked

    def cacheable(self, call: Call, route: str) -> bool:
        """D11: the facade always, other dialects only where the answer is bound to be the same; a route may differ."""
        entry = self.routes.get(route)
        rule = "auto" if entry is None else entry.cache
        if call.no_store or call.wish.stream or rule == "never" or not self.config.cache.enabled:
            return False
        if call.wish.content_type != JSON:  # there is no key for it
            return False
        return rule == "always" or call.operation.dialect == "facade" or call.wish.deterministic


@dataclass(slots=True, kw_only=True)
class Means:
    """What every journey uses; built once. `setting` is swapped whole on reload."""

    setting: Setting
    pool: Pool
    catalog: Catalog
    metrics: Metrics
    budget: RetryBudget
    now: Callable[[], float]
    random: Callable[[], float]


class Attempt:
    """What one attempt holds. Leaving the block gives it back, unless it was `kept`: then whoever keeps it has to."""

    __slots__ = ("kept", "lease", "response")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.response: Response | None = None  # once the instance has begun to answer
        self.kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.kept:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        try:
            if self.response is not None:
                self.response.close()
        finally:
            self.lease.release()


class Journey:
    """One call's way through its candidates: which were tried, what each attempt gave, when to stop.

    `draw` gives its plan, or raises NotToldYet: then it waits in line until there is one.
    """

    def __init__(
        self, means: Means, call: Call, record: Record, setting: Setting, draw: Callable[[Call], Plan]
    ) -> None:
        self.means = means
        self.call = call
        self.record = record
        self.setting = setting
        self._draw = draw
        try:
            drawn = draw(call)
        except NotToldYet:
            drawn = Plan(route="", task=call.task, candidates=())
        self._go_by(drawn)
        self._since: float | None = None
        self._ticket: Ticket | None = None  # while it is in line
        self._tried: list[str] = []
        means.budget.earn()

    def _go_by(self, drawn: Plan) -> None:
        self.record.route, self.record.task = drawn.route, drawn.task
        self.limits = self.setting.timeouts(drawn.route)
        self._candidates = drawn.candidates
        self._priority = self.setting.priority(self.call, drawn.route)

    @property
    def planned(self) -> bool:
        """Whether it is known where it may go."""
        return bool(self._candidates)

    async def fetch(self) -> Reply:
        """A finished answer from whichever candidate gives one. Raises GatewayError."""
        with TimeLimit(self.limits.total, partial(CallTimeout, self.limits.total)):
            return await self.attempts(self._whole)

    async def attempts(self, work: Callable[[Attempt], Awaitable[T]]) -> T:
        """Make attempts at `work` until one succeeds or nothing is left to try. Raises GatewayError."""
        retry = self.setting.config.retry
        while True:
            while not self.planned:
                await self._told()
            with Attempt(await self._lease()) as attempt:
                self._begin(attempt.lease)
                try:
                    return await work(attempt)
                except UpstreamError as failure:
                    error = failure
                    self.failed(attempt.lease, failure)
            fresh = bool(self._untried())
            pause = 0.0 if fresh else self._pause(error)
            again = error.failover and self.record.attempts < retry.attempts
            again = again and (fresh or (error.repeatable and self._bears(error)))
            allowed = again and self.means.budget.spend(error)
            if again or self.record.attempts > 1:
                result = "tried" if allowed else "budget_denied" if again else "exhausted"
                self.means.metrics.retries(self.record.route, error.reason, result).inc()
            if not allowed:
                try:
                    raise self._final(error)
                finally:
                    del error  # it knows this frame
            if pause:
                await asyncio.sleep(pause)

    async def _told(self) -> None:
        """Wait in line until something was told of where the call may go."""
        with suppress(NotToldYet):
            await self._lease()  # nobody grants it anything: it is sent back
        with suppress(NotToldYet):
            self._go_by(self._draw(self.call))

    async def _lease(self) -> Lease:
        """A lease on a candidate, one not yet tried if there is any. Waits in line, at most `timeouts.line` in all."""
        call, record, began = self.call, self.record, self.means.now()
        self._ticket = Ticket(
            candidates=self._untried() or self._candidates,
            size=len(call.body),
            caller=call.caller,
            weight=self.setting.weights.get(call.caller, 1.0),
            priority=self._priority,
            conversation=call.conversation or call.wish.conversation,
            since=self._since,
            deadline=call.deadline,
        )
        self._since = began if self._since is None else self._since  # for a next attempt: it keeps its place
        try:
            lease = await self.means.pool.lease(self._ticket, patience=max(0.0, self.limits.line - record.waited))
            record.position, record.line_reason = lease.position or record.position, lease.why or record.line_reason
            return lease
        finally:
            self._ticket = None
            record.waited += self.means.now() - began

    def waiting(self) -> str:
        """Where the call stands in line and why, in words; "" while it is not in line."""
        outlook = self.means.pool.outlook(self._ticket) if self._ticket else None
        return str(outlook) if outlook else ""

    def _untried(self) -> tuple[Candidate, ...]:
        """The candidates that were not tried and could take a call."""
        if not self._tried:
            return self._candidates
        instances, now = self.means.pool.instances, self.means.now()
        fresh = [one for one in self._candidates if one.instance not in self._tried]
        return tuple(
            one for one in fresh if one.instance in instances and instances[one.instance].fit(now, model_key(one.model))
        )

    def _begin(self, lease: Lease) -> None:
        record, candidate = self.record, lease.candidate
        record.attempts += 1
        record.instance, record.model, record.substitution = candidate.instance, candidate.model, candidate.substitution
        self._tried.append(candidate.instance)
        if lease.last_resort:
            self.means.metrics.panics(candidate.instance).inc()

    def failed(self, lease: Lease, error: UpstreamError) -> None:
        candidate, metrics = lease.candidate, self.means.metrics
        lease.failed(error)
        if isinstance(error, Refused) and error.code == "model_not_found":
            self.means.catalog.missing(candidate.instance, candidate.model)
        metrics.upstream_errors(candidate.instance, error.cause or error.reason).inc()
        code = str(error.status) if isinstance(error, Refused) else "error"
        metrics.attempts(candidate.instance, candidate.model, code).inc()

    def _pause(self, error: UpstreamError) -> float:
        """Seconds before an instance that was tried is tried again: what it asked for, else full jitter."""
        if error.busy:
            return 0.0  # the pool gives it no call for as long as it asked
        if error.retry_after is not None:
            return error.retry_after
        most: float = min(MAX_BACKOFF, self.setting.config.retry.backoff * 2 ** (self.record.attempts - 1))
        return most * self.means.random()

    def _bears(self, error: UpstreamError) -> bool:
        """Whether the call can wait for as long as the instance asks: in line, and by its own deadline."""
        asked, deadline = error.retry_after or 0.0, self.call.deadline
        if asked > min(MAX_ASKED_FOR, self.limits.line - self.record.waited):
            return False
        return deadline is None or self.means.now() + asked < deadline

    def _final(self, error: UpstreamError) -> UpstreamError:
        """The error to tell. Where we tried several times, three attempts of a client would be nine (faults.md §1)."""
        if self.record.attempts > 1 and error.sent and not error.busy:
            error.retryable = False
        return error

    async def open(self, attempt: Attempt) -> Response:
        """Send the call and wait for the head of the answer. Raises UpstreamError; a 4xx or 5xx is Refused."""
        lease, call = attempt.lease, self.call
        candidate = lease.candidate
        first = self.limits.loading if lease.cold else self.limits.first_token
        if not call.wish.stream:
            first = self.limits.total  # a finished answer comes at once, when all of its tokens are there
        request = Request(
            method=b"POST",
            path=call.operation.path.encode(),
            headers=tuple(
                request_headers(call.request_id, call.agent, call.trace, content_type=call.wish.content_type)
            ),
            body=await sized(len(call.body), call.operation.write, call, candidate.spelt or candidate.model),
        )
        upstream = self.means.setting.upstreams.get(candidate.instance)
        if upstream is None:  # a reload came between the grant and us
            raise ConnectFailed(candidate.instance, "no longer in use")
        response = await upstream.open(request, connect=self.limits.connect, first=first, sending=lease.sent)
        attempt.response = response
        if response.status != 200:
            raise await self._refused(lease, response)
        return response

    async def _refused(self, lease: Lease, response: Response) -> UpstreamError:
        name = lease.candidate.instance
        if not 400 <= response.status <= 599:
            return BadAnswer(name, f"answered with status {response.status}")
        text, code = refusal(await response.read_all(MAX_REFUSAL))
        if response.status == 404 and not text:  # no words of Ollama's handlers: it is too old to have the path
            text, code = f"has nothing at {self.call.operation.path}", "unknown_path"
        words = text or f"status {response.status}"
        return Refused(name, response.status, words, code=code, retry_after=retry_after(response.headers))

    async def _whole(self, attempt: Attempt) -> Reply:
        lease, began = attempt.lease, self.means.now()
        response = await self.open(attempt)
        body = await response.read_all(MAX_REPLY)
        seconds = self.means.now() - self.call.arrived
        try:
            reply = await sized(len(body), self.call.operation.reply, self.call, lease.candidate.model, body, seconds)
        except ValueError as error:
            raise broken(lease.candidate.instance, str(error)) from error
        lease.finished()
        self.answered(lease, self.means.now() - began)
        self.record.usage = reply.usage
        self.record.upstream = self.means.now() - began
        self.done(lease)
        return reply

    def answered(self, lease: Lease, seconds: float) -> None:
        """The first content came, `seconds` after the call was sent on."""
        candidate = lease.candidate
        self.record.first_token = self.means.now() - self.call.arrived
        self.means.catalog.answered(candidate.instance, candidate.model)
        if lease.cold:
            self.means.metrics.loads(candidate.instance, candidate.model).inc()
            self.means.catalog.ask_anew(candidate.instance)  # what had to go for it?
        self.means.metrics.upstream_first_token(candidate.instance, candidate.model).observe(seconds)

    def done(self, lease: Lease) -> None:
        candidate, metrics = lease.candidate, self.means.metrics
        metrics.attempts(candidate.instance, candidate.model, "200").inc()
        metrics.upstream_duration(candidate.instance, candidate.model).observe(self.record.upstream)
