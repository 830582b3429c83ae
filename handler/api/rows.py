"""A batch of calls at TorchServe's own endpoint, each answered for itself."""

import asyncio
import logging
import time
from collections.abc import Sequence

from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.administration import Administration
from dnc_serve.handler.api.copies import Copies
from dnc_serve.handler.api.dumps import whole_dump
from dnc_serve.handler.api.logs import log_answer
from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.refusals import refusal_for
from dnc_serve.handler.api.status import status_of
from dnc_serve.handler.errors import ServeError, StoreUnavailable
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

logger = logging.getLogger(__name__)


async def answer_calls(
    models: Models,
    administration: Administration,
    access: Access,
    calls: Sequence[pb.Call | ServeError],
    timeout_s: float,
) -> list[pb.CallResult]:
    """One result for each row, in order; no row's failure touches another."""
    deadline = time.monotonic() + timeout_s
    return list(await asyncio.gather(*(_answer(models, administration, access, call, deadline) for call in calls)))


async def _answer(
    models: Models, administration: Administration, access: Access, call: pb.Call | ServeError, deadline: float
) -> pb.CallResult:
    started_at = time.perf_counter()
    request = None if isinstance(call, ServeError) else getattr(call, call.WhichOneof("call") or "", None)
    caller = Caller(endpoint="torchserve", deadline=deadline)
    try:
        if isinstance(call, ServeError):
            raise call
        caller.grant = access.grant_of_token(call.token)
        if (rest := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        async with asyncio.timeout(rest):
            result = await dispatch(models, administration, call, caller)
        log_answer(request, caller.owner, caller.endpoint, started_at)
        return result
    except Exception as error:
        told = _too_late(caller) if isinstance(error, TimeoutError) else error
        refused = refusal_for(told, request, models.metrics)
    return pb.CallResult(status=status_of(refused))


def _too_late(caller: Caller) -> ServeError:
    """What a call is told that could not be answered in time."""
    if caller.may_have_changed():
        return StoreUnavailable("the store has not answered in time: whether this was applied is not known, ask again")
    return ServeError("DEADLINE_EXCEEDED", "the server did not come to an answer in time; nothing was applied")


async def dispatch(models: Models, administration: Administration, call: pb.Call, caller: Caller) -> pb.CallResult:
    """The result of a call. Raises what it is refused for."""
    match call.WhichOneof("call"):
        case "create_session":
            return pb.CallResult(create_session=await models.create_session(call.create_session, caller))
        case "get_session":
            operations = await models.of(call.get_session.session_id)
            return pb.CallResult(get_session=await operations.get_session(call.get_session, caller))
        case "list_sessions":
            return pb.CallResult(list_sessions=await models.list_sessions(call.list_sessions, caller))
        case "delete_session":
            operations = await models.of(call.delete_session.session_id)
            return pb.CallResult(delete_session=await operations.delete_session(call.delete_session, caller))
        case "step":
            operations = await models.of(call.step.chunk.session_id)
            return pb.CallResult(step=await operations.step(call.step, caller))
        case "step_with_state":
            operations = models.of_state(call.step_with_state.model, "", call.step_with_state.state)
            return pb.CallResult(step_with_state=await operations.step_with_state(call.step_with_state, caller))
        case "reset_session":
            operations = await models.of(call.reset_session.reset.session_id)
            return pb.CallResult(reset_session=await operations.reset_session(call.reset_session, caller))
        case "fork_session":
            copies = Copies(await models.of(call.fork_session.session_id))
            return pb.CallResult(fork_session=await copies.fork(call.fork_session, caller))
        case "dump_memory":
            operations = await models.of(call.dump_memory.dump.session_id)
            seen, arrays = await operations.dump(call.dump_memory.dump, caller)
            return pb.CallResult(dump_memory=whole_dump(call.dump_memory.dump, seen, arrays))
        case "export_session":
            copies = Copies(await models.of(call.export_session.session_id))
            blob = await copies.export_blob(call.export_session, caller)
            return pb.CallResult(export_session=pb.ExportSessionResponse(total_bytes=len(blob), data=blob))
        case "import_session":
            request = call.import_session
            copies = Copies(models.of_blob(request.data))
            return pb.CallResult(import_session=await copies.import_blob(request.session_id, request.data, caller))
        case "get_model":
            return pb.CallResult(
                get_model=models.named(call.get_model.model, call.get_model.version).descriptions.model()
            )
        case "list_models":
            return pb.CallResult(list_models=models.list_models())
        case "load_model":
            return pb.CallResult(load_model=await administration.load(call.load_model, caller))
        case "unload_model":
            return pb.CallResult(unload_model=await administration.unload(call.unload_model, caller))
        case "migrate_session":
            return pb.CallResult(migrate_session=await administration.migrate(call.migrate_session, caller))
        case _:
            names = ", ".join(field.name for field in pb.Call.DESCRIPTOR.oneofs_by_name["call"].fields)
            raise ServeError("BAD_REQUEST", f"a call holds one of {names}; got none", expected=names)
