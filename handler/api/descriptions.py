"""What clients are told of the model, of a session, and of a chunk that was applied."""

import json
from contextlib import suppress

from dnc_serve import __version__
from dnc_serve.handler.addresses import host_port, split_address
from dnc_serve.handler.api.arrays import data_type, encode_array, wire_type
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.requests import Applied
from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.place import Place
from dnc_serve.handler.store.contract import Head
from dnc_serve.model.artifact import Artifact
from dnc_serve.model.rows import TensorSpec
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

_TIERS = {"slot": pb.TIER_SLOT, "host": pb.TIER_HOST, "store": pb.TIER_STORE}


class Descriptions:
    """In the messages of the contract."""

    def __init__(
        self,
        engine: Engine,
        artifact: Artifact,
        server_epoch: str,
        place: Place | None = None,
        name: str = "",
        version: str = "1",
    ) -> None:
        self._place = place
        self._engine = engine
        self._artifact = artifact
        self._server_epoch = server_epoch
        self.name, self.version = name or engine.config.models[0].name, version

    def model(self) -> pb.GetModelResponse:
        """The model, the code that steps it, and the limits of a chunk."""
        engine, artifact, config = self._engine, self._artifact, self._engine.config
        return pb.GetModelResponse(
            name=self.name,
            task=artifact.task,
            inputs=_spec(artifact.inputs),
            outputs=_spec(artifact.outputs),
            state=[_field(artifact, name) for name in artifact.layout.names],
            derived=artifact.derived,
            debug_bytes=artifact.debug_bytes,
            config_json="" if artifact.config is None else json.dumps(artifact.config.to_dict()),
            model_digest=engine.digest,
            artifact=engine.runner.kind,
            artifact_note=engine.runner.note,
            fingerprint=engine.runner.fingerprint,
            device=str(engine.runner.device),
            state_bytes=engine.row_bytes,
            server_epoch=self._server_epoch,
            server_version=__version__,
            durability=config.durability,
            max_chunk_timesteps=config.max_chunk_timesteps,
            max_in_flight_chunks=min(config.reply_window_chunks, config.max_queued_chunks),
            tile_rows=engine.runner.row_counts,
            version=self.version,
            workers=None if self._place is None else _workers(self._place, config),
        )

    def summary(self, share: float | None) -> pb.ModelSummary:
        """The model in a list."""
        sessions = len(self._engine.table)
        return pb.ModelSummary(
            name=self.name, model_digest=self._engine.digest, version=self.version, sessions=sessions, share=share
        )

    async def session(self, session: Session) -> pb.Session:
        """The session as it stands, with how far back its journal reaches; one that is being made, once it is as
        durable as promised. Raises what it could not be made for."""
        await self._engine.lifecycle.begun(session)
        description = self.brief(session)
        description.earliest_position = await self._earliest_position(session)
        return description

    async def elsewhere(self, head: Head) -> pb.Session:
        """A session of a shared store that this server doesn't have, as it stands."""
        description = self.of_head(head)
        description.earliest_position = await self._earliest_position(head)
        return description

    async def _earliest_position(self, session: Session | Head) -> int:
        earliest = None
        if not self._engine.journal.volatile and session.position:
            with suppress(StoreUnavailable):  # while the store is gone, only the present can be had
                earliest = await self._engine.recovery.earliest_position(session.session_id, session.incarnation)
        return session.position if earliest is None else earliest

    def brief(self, session: Session) -> pb.Session:
        """The same without how far back its journal reaches, which the store would have to be asked for."""
        description = self._described(session)
        description.durable_position = session.durable_position
        description.tier = _TIERS[session.tier.value]
        description.replayed_elsewhere = session.replayed_elsewhere
        description.fingerprint = session.fingerprint
        return description

    def of_head(self, head: Head) -> pb.Session:
        """The same of a session of a shared store that this server doesn't have: all that was answered is synced."""
        description = self._described(head)
        description.durable_position = head.position
        description.tier = pb.TIER_STORE
        return description

    def _described(self, session: Session | Head) -> pb.Session:
        description = pb.Session(
            session_id=session.session_id,
            incarnation=session.incarnation,
            position=session.position,
            experience=session.experience,
            model_digest=session.digest,
            model=self.name,
            model_version=self.version,
            state_bytes=self._engine.row_bytes,
        )
        description.created.FromNanoseconds(int(CLOCK.shown(session.created_at) * 1e9))
        description.last_used.FromNanoseconds(int(CLOCK.shown(session.last_used_at) * 1e9))
        return description


def _spec(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(shape=spec.shape, data_type=data_type(spec))


def _workers(place: Place, config: ServeConfig) -> pb.Workers:
    """Where each worker listens alone; `advertise` names the host, or else that is the one that was asked."""
    host = split_address(config.advertise)[0] if config.advertise else ""
    ports = [address.rpartition(":")[2] for address in place.addresses()]
    addresses = [(host_port(host, int(port)) if host else f":{port}") if port else "" for port in ports]
    return pb.Workers(machine=place.machine, number=place.worker, addresses=addresses)


def _field(artifact: Artifact, name: str) -> pb.StateField:
    parts, begins = [field for field in artifact.layout.fields if field.name == name], artifact.layout.experience_offset
    return pb.StateField(
        name=name,
        shape=parts[0].shape,
        dtype=parts[0].dtype,
        parts=len(parts),
        experience=begins is not None and parts[0].offset >= begins,
    )


def chunk_result(session_id: str, request_id: int, applied: Applied) -> pb.ChunkResult:
    """The answer to a chunk."""
    outputs = applied.outputs
    result = pb.ChunkResult(
        session_id=session_id,
        incarnation=applied.incarnation,
        position=applied.position,
        durable_position=applied.durable_position,
        experience=applied.experience,
        outputs=pb.Array(shape=outputs.shape, data=outputs.tobytes(), dtype=wire_type(outputs)),
        replayed=applied.replayed,
        request_id=request_id,
    )
    for name, array in (applied.debug or {}).items():
        result.debug[name].CopyFrom(encode_array(array))
    return result
