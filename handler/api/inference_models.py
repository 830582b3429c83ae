"""What Triton's clients are told of the server and its models, and which of these they mean."""

from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.sequences import VERSION, Sequences
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.inference import inference_pb2 as pb

PLATFORM = "dnc-serve"
EXTENSIONS = (
    "sequence", "sequence(string_id)", "model_configuration", "model_repository", "parameters", "statistics",
)  # fmt: skip


class InferenceModels:
    """The models by the names that requests have."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.all = {one.name: Sequences(one) for one in models.all}
        self.default = self.all[models.default.name]

    def named(self, name: str, version: str) -> Sequences:
        """The sequences of a model. Raises MODEL_NOT_FOUND for a name, or a version, that there isn't."""
        found = self.all.get(name)
        if found is None or version not in ("", VERSION):
            shown = f"{name!r}" + (f", version {version!r}," if version else "")
            names = ", ".join(map(repr, self.all))
            raise ServeError(
                "MODEL_NOT_FOUND",
                f"Request for unknown model: {shown} is not found; expected {names}, version {VERSION!r}",
                expected=", ".join(self.all),
                got=name,
            )
        return found

    def index(self) -> pb.RepositoryIndexResponse:
        """What there is."""
        state = "UNAVAILABLE" if self.models.draining else "READY"
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(models=[index(name=name, version=VERSION, state=state) for name in self.all])

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Those of a model, or of all. Raises as `named`."""
        asked = [self.named(name, version)] if name else self.all.values()
        return pb.ModelStatisticsResponse(model_stats=[_statistics(one) for one in asked])


def model_metadata(sequences: Sequences) -> pb.ModelMetadataResponse:
    """The model's name and tensors."""
    answer = pb.ModelMetadataResponse(name=sequences.name, versions=[VERSION], platform=PLATFORM)
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
    counts = metrics.of(sequences.name)
    statistics = pb.ModelStatistics(
        name=sequences.name, version=VERSION, inference_count=counts.timesteps, execution_count=counts.ticks
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
