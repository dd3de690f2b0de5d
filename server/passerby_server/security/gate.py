"""Between a call and its service: who calls, whether that one may, and the record of it.

    token or certificate --Access--> Caller --policy.RULES--> Permit --service--> record, durable --> answer

- Calls that name no known caller are refused with UNAUTHENTICATED before any message is looked at; the others where
  role or gallery do not allow them with PERMISSION_DENIED, decided by names alone: the answer is the same whether the
  gallery exists or not.
- A call that succeeds is answered once its record is on the disk. Failures, of which the caller gains nothing, do not
  wait for theirs.
- Refusals of unknown callers are counted by address: a flood of them writes one record a minute, not the disk full.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain, islice
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message
from passerby.errors import InternalError, PasserbyError, PermissionDeniedError

from passerby_server.config import ServerConfig, is_loopback, split_address
from passerby_server.logs import event
from passerby_server.security import policy
from passerby_server.security.access import Access, Caller, certificate_names
from passerby_server.security.audit import AuditLog
from passerby_server.security.permit import OPEN, Permit
from passerby_server.security.policy import Rule

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

API_PREFIX = "/passerby.v1."
HEALTH_PREFIX = "/grpc.health."
MAX_NAMES = 100
"""Names of people or tracklets in one record; how many more there were is said."""
MAX_NOTED = 5_000
"""Names of one message that are told apart; those beyond are counted, each as often as it comes."""
REFUSALS_SECONDS = 60.0
MAX_ADDRESSES = 1000
"""Addresses whose refusals are counted apart."""


class Gate:
    """Of a server that knows no callers: lets everyone in."""

    async def enter(self, method: str, context: Context, request_id: str) -> Permit:
        """The permit of a call of our API. Raises UnauthenticatedError, PermissionDeniedError, UnavailableError."""
        return OPEN

    def foreign(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any] | None
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method that is not of our API, for those who may call it."""
        return handler

    def close(self) -> None:
        """Writes what waits; no calls may be running."""


def gate_of(config: ServerConfig) -> Gate:
    """What the configuration asks for. Raises FailedPreconditionError when its files cannot be used."""
    host_, _ = split_address(config.address)
    for what, setting in (("TLS", config.tls.certificate), ("authentication", config.access.file)):
        if setting is None and not is_loopback(host_):
            event(log, logging.WARNING, f"listening beyond this machine without {what}, as insecure_listen allows")
    if config.access.file is None:
        return Gate()
    access = Access(config.access.file)
    folder = config.audit.folder
    if folder is None:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = config.data / "audit"
    audit = AuditLog(folder, config.audit.key, keep_days=config.audit.keep_days)
    try:
        return GuardedGate(access, audit, certificates=config.tls.client_ca is not None)
    except BaseException:
        audit.close()
        raise


class GuardedGate(Gate):
    """Lets in whom `access` knows, and records it. `certificates`: whether clients show one."""

    def __init__(self, access: Access, log: AuditLog, *, certificates: bool) -> None:
        self._access = access
        self._log = log
        self._certificates = certificates
        self._refusals = _Refusals(log)
        log.append("ServerStarted").result()

    async def enter(self, method: str, context: Context, request_id: str) -> Permit:
        rule = policy.RULES.get(method.removeprefix(API_PREFIX))
        if rule is None:
            raise InternalError(f"no rule says who may call {method}", reason="RULE_MISSING")
        identify = self._identification(context)
        try:
            caller = identify()
        except PasserbyError as error:
            self._refusals.note(host(context.peer()), method.rpartition("/")[2], error.reason)
            raise
        permit = CallPermit(self._log, method, rule, caller, identify, host(context.peer()), request_id)
        try:
            caller.check_role(rule.roles)
        except PermissionDeniedError as error:
            permit.failed(error)
            raise
        if rule.audited:
            await self._log.ready()
        return permit

    def foreign(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any] | None
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        # Probes have no token. What the API is called is public, yet nobody else is to learn anything here.
        if method.startswith(HEALTH_PREFIX):
            return handler
        if handler is None or not handler.stream_stream:
            return None
        behaviour: Any = handler.stream_stream

        async def call(requests: Any, context: Context) -> Any:
            try:
                self._identification(context)()
            except PasserbyError as error:
                self._refusals.note(host(context.peer()), method.rpartition("/")[2], error.reason)
                await context.abort(error.code, error.message)
            async for answer in behaviour(requests, context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def close(self) -> None:
        try:
            self._refusals.flush()
        finally:
            self._log.close()

    def _identification(self, context: Context) -> Callable[[], Caller]:
        """Who makes the call, each time anew: tokens are revoked while streams run."""
        shown = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        # Several would be several callers.
        authorization = None if not shown else shown[0] if len(shown) == 1 and isinstance(shown[0], str) else ""

        def names() -> list[str]:
            return certificate_names(context.auth_context()) if self._certificates else []

        return lambda: self._access.identify(authorization, names)


class CallPermit(Permit):
    """Of one call by a known caller."""

    def __init__(
        self,
        log: AuditLog,
        method: str,
        rule: Rule,
        caller: Caller,
        identify: Callable[[], Caller],
        peer: str,
        request_id: str,
    ) -> None:
        self._log = log
        self._method = method.rpartition("/")[2]
        self._rule = rule
        self._caller = caller
        self._identify = identify
        self._about: dict[str, object] = {"peer": peer, "request_id": request_id}
        self._gallery = ""
        self._names: dict[tuple[str, str, str], None] = {}  # kind, gallery and name, in order, each once
        self._unnoted = 0
        self._told = -1  # how many of them the records of answers have
        self._details: dict[str, object] = {}
        self._items: Counter[str] = Counter()
        self._denied = 0

    @property
    def client(self) -> str:
        return self._caller.name

    @property
    def galleries(self) -> frozenset[str] | None:
        return self._caller.galleries

    def admit(self, request: Message) -> None:
        if self._rule.gallery:
            self._gallery = policy.gallery_of(self._rule, request)
            self._caller.check_gallery(self._gallery)
        self.note(request)

    def check_gallery(self, gallery_id: str, role: str = "") -> None:
        self.check_again(gallery_id, role)
        self._items[gallery_id] += 1

    def check_again(self, gallery_id: str, role: str = "") -> None:
        try:
            self._caller = self._identify()
            self._caller.check_role(self._rule.roles)
            if role:
                self._caller.check_role({role, "admin"})
            self._caller.check_gallery(gallery_id)
        except PasserbyError as error:
            self._denied += 1
            if self._denied == 1:  # the others are counted in the record of the stream's end
                self._record(error.code.name, {"reason": error.reason}, gallery=gallery_id)
            raise

    async def begin(self) -> None:
        await asyncio.wrap_future(self._record("STARTED"))

    async def answering(self) -> None:
        told, self._told = self._told, len(self._names)
        if self._rule.identities and told != len(self._names):
            await asyncio.wrap_future(self._record("ANSWERED", self._content(max(told, 0))))

    async def done(self, answer: Message | None = None) -> None:
        if self._rule.audited:
            if answer is not None:
                self.note(answer)
            await asyncio.wrap_future(self._record("OK", self._content()))

    def failed(self, error: PasserbyError) -> None:
        if self._rule.audited or isinstance(error, PermissionDeniedError):
            self._record(error.code.name, {"reason": error.reason} | self._content())

    def gone(self) -> None:
        if self._rule.audited:
            self._record("CANCELLED", self._content())

    def note(self, message: Message) -> None:
        """Takes up whom and what a request or an answer is about."""
        if not self._rule.audited:
            return
        # As they are: only the few that a record names are worth their pseudonyms. And not all: this is before any limit.
        identities = (("identity", "", name) for name in policy.identities(self._rule, message))
        tracklets = (("tracklet", *name) for name in policy.tracklets(self._rule, message, self._gallery))
        names = chain(identities, tracklets)
        self._names.update(dict.fromkeys(islice(names, MAX_NOTED)))
        self._unnoted += sum(1 for _ in names)
        self._details |= policy.details(self._rule, message)

    def _content(self, first: int = 0) -> dict[str, object]:
        """What a record says besides who and how it ended; of the names, those from number `first` on."""
        content = dict(self._details)
        if names := list(islice(self._names, first, first + MAX_NAMES)):
            content["about"] = [self._log.key.pseudonym(*name) for name in names]
            if more := len(self._names) - first - len(names) + self._unnoted:
                content["about_more"] = more
        if self._items:
            content["items"] = dict(self._items)
        if self._denied:
            content["denied"] = self._denied
        return content

    def _record(self, code: str, content: Mapping[str, object] | None = None, *, gallery: str = "") -> Any:
        of = {"gallery": found} if (found := gallery or self._gallery or "".join(list(self._items)[:1])) else {}
        return self._log.append(
            self._method,
            code=code,
            caller=self._caller.name,
            credential=self._caller.credential,
            **of,
            **(content or {}),
            **self._about,
        )


class _Refusals:
    """Of callers that nobody knows: the first of each address and reason is recorded at once, then their number."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._counts: dict[tuple[str, str], int] = {}
        self._counting = threading.Lock()  # the gate is closed in another thread than it is used in

    def note(self, peer: str, method: str, reason: str) -> None:
        key = (peer, reason)
        with self._counting:
            if key not in self._counts and len(self._counts) >= MAX_ADDRESSES:
                key = ("others", reason)
            if key in self._counts:
                self._counts[key] += 1
                return
            self._counts[key] = 0
        self._log.append("Refused", code="REFUSED", reason=reason, method=method, peer=key[0])
        asyncio.get_running_loop().call_later(REFUSALS_SECONDS, self._period_over, key)

    def _period_over(self, key: tuple[str, str]) -> None:
        with self._counting:
            count = self._counts.pop(key, 0)
            if count:
                self._counts[key] = 0
        if count:
            self._report(key, count)
            asyncio.get_running_loop().call_later(REFUSALS_SECONDS, self._period_over, key)

    def flush(self) -> None:
        with self._counting:
            counts, self._counts = self._counts, {}
        for key, count in counts.items():
            if count:
                self._report(key, count)

    def _report(self, key: tuple[str, str], count: int) -> None:
        self._log.append("Refused", code="REFUSED", reason=key[1], peer=key[0], repeated=count)


def host(peer: str) -> str:
    """The address in gRPC's `peer`, without its port: `ipv4:10.0.0.1:50412` is 10.0.0.1."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer
