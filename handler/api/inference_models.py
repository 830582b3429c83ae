"""What Triton's clients are told of the server and its model."""

from dnc_serve.handler.api.operations import Operations
from dnc_serve.handler.api.sequences import VERSION, Sequences
from dnc_serve.proto.inference import inference_pb2 as pb

PLATFORM = "dnc-serve"
EXTENSIONS = ("sequence", "sequence(string_id)", "model_configuration", "parameters", "statistics")


def model_metadata(sequences: Sequences) -> pb.ModelMetadataResponse:
    """The model's name and tensors."""
    answer = pb.ModelMetadataResponse(name=sequences.name, versions=[VERSION], platform=PLATFORM)
    for tensors, tensor in ((answer.inputs, sequences.input), (answer.outputs, sequences.output)):
        tensors.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return answer


def model_config(sequences: Sequences, operations: Operations) -> pb.ModelConfig:
    """What load generators go by: a model of sequences, whose first axis is time and not a batch."""
    config = pb.ModelConfig(name=sequences.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=0)
    for tensors, tensor in ((config.input, sequences.input), (config.output, sequences.output)):
        tensors.add(name=tensor.name, data_type=pb.DataType.Value(f"TYPE_{tensor.datatype}"), dims=tensor.shape)
    limits = operations.engine.config
    config.sequence_batching.max_sequence_idle_microseconds = int(limits.idle_timeout_s * 1e6)
    config.sequence_batching.oldest.max_candidate_sequences = limits.max_sessions
    config.model_transaction_policy.decoupled = False
    return config


def model_statistics(sequences: Sequences, operations: Operations) -> pb.ModelStatistics:
    """What the metrics have counted, at all endpoints, since the server started."""
    count = operations.metrics.total
    statistics = pb.ModelStatistics(
        name=sequences.name,
        version=VERSION,
        inference_count=int(count("dnc_timesteps_total")),
        execution_count=int(count("dnc_tick_duration_seconds_count")),
    )
    kinds = statistics.inference_stats
    chunks = int(count("dnc_step_duration_seconds_count"))
    kinds.success.CopyFrom(_duration(chunks, count("dnc_step_duration_seconds_sum")))
    kinds.fail.count = int(count("dnc_errors_total"))
    kinds.queue.CopyFrom(_duration(chunks, count("dnc_queue_wait_seconds_sum")))
    kinds.compute_infer.CopyFrom(_duration(chunks, count("dnc_tick_duration_seconds_sum")))
    for kind in (kinds.compute_input, kinds.compute_output):  # part of the rest; load generators want the same counts
        kind.count = chunks
    return statistics


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=int(seconds * 1e9))
