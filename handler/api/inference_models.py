"""What Triton's clients are told of the server and its models, and which of these they mean."""

from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.api.sequences import Sequences, session_id_of, starts
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2
from dnc_serve.proto.inference import inference_pb2 as pb

PLATFORM = "dnc-serve"
EXTENSIONS = (
    "sequence", "sequence(string_id)", "model_configuration", "model_repository", "parameters", "statistics",
)  # fmt: skip


class InferenceModels:
    """The models by the names that requests have."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._sequences: dict[Operations, Sequences] = {}

    @property
    def all(self) -> list[Sequences]:
        """Those of every version that is served."""
        self._sequences = {one: self._of(one) for one in self.models.all}
        return list(self._sequences.values())

    def _of(self, operations: Operations) -> Sequences:
        if operations not in self._sequences:
            self._sequences[operations] = Sequences(operations)
        return self._sequences[operations]

    def named(self, name: str, version: str) -> Sequences:
        """The sequences of a model, of the version that new ones are of if none is named. Raises MODEL_NOT_FOUND."""
        try:
            if name:
                return self._of(self.models.named(name, version))
        except ServeError:
            pass
        shown = f"{name!r}" + (f", version {version!r}," if version else "")
        names = ", ".join(map(repr, self.models.names))
        versions = ", ".join(repr(one.version) for one in self.models.versions(name or self.models.default.name))
        raise ServeError(
            "MODEL_NOT_FOUND",
            f"Request for unknown model: {shown} is not found; expected {names}"
            + (f", version {versions}" if versions and version else ""),
            expected=", ".join(self.models.names),
            got=name,
        )

    async def of_request(self, request: pb.ModelInferRequest, caller: Caller) -> Sequences:
        """The sequences that a request is of: of several versions of the model, that which has its sequence, and for a
        start the one that new sessions are of. Raises MODEL_NOT_FOUND, and as `session_id_of`."""
        named = self.named(request.model_name, request.model_version)
        if request.model_version or len(self.models.all) == 1:
            return named
        session_id = session_id_of(request)
        present = await self.models.living(session_id)
        if present is not None and present.name == named.name and (not starts(request) or request.id):
            return self._of(present)  # a start with an id may be one that comes again
        if not starts(request):
            return named
        wanted = self.models.for_new(named.name, "", session_id)
        if present is not None and present.name == named.name and present is not wanted:
            await present.delete_session(dnc_pb2.DeleteSessionRequest(session_id=session_id), caller)
        return self._of(wanted)

    def index(self) -> pb.RepositoryIndexResponse:
        """What there is."""
        state = "UNAVAILABLE" if self.models.draining else "READY"
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[index(name=one.name, version=one.version, state=state) for one in self.all]
        )

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Those of a model, or of all. Raises as `named`."""
        asked = [self.named(name, version)] if name else self.all
        return pb.ModelStatisticsResponse(model_stats=[_statistics(one) for one in asked])


def model_metadata(sequences: Sequences) -> pb.ModelMetadataResponse:
    """The model's name and tensors."""
    answer = pb.ModelMetadataResponse(name=sequences.name, versions=[sequences.version], platform=PLATFORM)
    for tensors, tensor in ((answer.inputs, sequences.input), (answer.outputs, sequences.output)):
        tensors.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return answer


def model_config(sequences: Sequences) -> pb.ModelConfig:
    """What load generators go by: a model of sequences, whose first axis is time and not a batch."""
    config = pb.ModelConfig(name=sequences.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=0)
    for tensors, tensor in ((config.input, sequences.input), (config.output, sequences.output)):
        tensors.add(name=tensor.name, data_type=pb.DataType.Value(f"TYPE_{tensor.datatype}"), dims=tensor.shape)
    limits = sequences.operations.engine.config
    config.sequence_batching.max_sequence_idle_microseconds = int(limits.idle_timeout_s * 1e6)
    config.sequence_batching.oldest.max_candidate_sequences = limits.max_sessions
    config.model_transaction_policy.decoupled = False
    return config


def _statistics(sequences: Sequences) -> pb.ModelStatistics:
    """What the metrics have counted, at all endpoints, since the server started; refusals are those of all models."""
    metrics = sequences.operations.metrics
    counts = metrics.of(sequences.name, sequences.version)
    statistics = pb.ModelStatistics(
        name=sequences.name, version=sequences.version, inference_count=counts.timesteps, execution_count=counts.ticks
    )
    kinds = statistics.inference_stats
    kinds.success.CopyFrom(_duration(counts.chunks, counts.step_s))
    kinds.fail.count = int(metrics.total("dnc_errors_total"))
    kinds.queue.CopyFrom(_duration(counts.chunks, counts.queue_s))
    kinds.compute_infer.CopyFrom(_duration(counts.chunks, counts.tick_s))
    for kind in (kinds.compute_input, kinds.compute_output):  # part of the rest; load generators want the same counts
        kind.count = counts.chunks
    return statistics


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=int(seconds * 1e9))
