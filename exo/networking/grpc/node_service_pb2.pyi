from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("call_id", "is_reply", "hello", "frame", "step_result", "token_delivery", "submit", "cancel", "open_plan", "plan_opened", "close_plan", "request_failed", "failure", "done", "heartbeat", "step_failed", "absolve", "give_way", "shrink_lease", "grow_lease", "lease", "exactness_found", "prompt_progress", "find_model", "model_found", "find_blocks", "blocks_found", "read_range", "range_data", "download_news", "list_models", "models_listed", "find_record", "record_found", "change_record", "record_changed")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    IS_REPLY_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    STEP_RESULT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_DELIVERY_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    OPEN_PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_OPENED_FIELD_NUMBER: _ClassVar[int]
    CLOSE_PLAN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    STEP_FAILED_FIELD_NUMBER: _ClassVar[int]
    ABSOLVE_FIELD_NUMBER: _ClassVar[int]
    GIVE_WAY_FIELD_NUMBER: _ClassVar[int]
    SHRINK_LEASE_FIELD_NUMBER: _ClassVar[int]
    GROW_LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    EXACTNESS_FOUND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FIND_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FOUND_FIELD_NUMBER: _ClassVar[int]
    FIND_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FOUND_FIELD_NUMBER: _ClassVar[int]
    READ_RANGE_FIELD_NUMBER: _ClassVar[int]
    RANGE_DATA_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_NEWS_FIELD_NUMBER: _ClassVar[int]
    LIST_MODELS_FIELD_NUMBER: _ClassVar[int]
    MODELS_LISTED_FIELD_NUMBER: _ClassVar[int]
    FIND_RECORD_FIELD_NUMBER: _ClassVar[int]
    RECORD_FOUND_FIELD_NUMBER: _ClassVar[int]
    CHANGE_RECORD_FIELD_NUMBER: _ClassVar[int]
    RECORD_CHANGED_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    is_reply: bool
    hello: Hello
    frame: bytes
    step_result: bytes
    token_delivery: TokenDelivery
    submit: Submit
    cancel: Cancel
    open_plan: OpenPlan
    plan_opened: PlanOpened
    close_plan: ClosePlan
    request_failed: RequestFailed
    failure: Failure
    done: Done
    heartbeat: Heartbeat
    step_failed: StepFailed
    absolve: Absolve
    give_way: GiveWay
    shrink_lease: ShrinkLease
    grow_lease: GrowLease
    lease: Lease
    exactness_found: ExactnessFound
    prompt_progress: PromptProgress
    find_model: FindModel
    model_found: ModelFound
    find_blocks: FindBlocks
    blocks_found: BlocksFound
    read_range: ReadRange
    range_data: RangeData
    download_news: DownloadNews
    list_models: ListModels
    models_listed: ModelsListed
    find_record: FindRecord
    record_found: RecordFound
    change_record: ChangeRecord
    record_changed: RecordChanged
    def __init__(self, call_id: _Optional[int] = ..., is_reply: _Optional[bool] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[bytes] = ..., step_result: _Optional[bytes] = ..., token_delivery: _Optional[_Union[TokenDelivery, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., open_plan: _Optional[_Union[OpenPlan, _Mapping]] = ..., plan_opened: _Optional[_Union[PlanOpened, _Mapping]] = ..., close_plan: _Optional[_Union[ClosePlan, _Mapping]] = ..., request_failed: _Optional[_Union[RequestFailed, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., step_failed: _Optional[_Union[StepFailed, _Mapping]] = ..., absolve: _Optional[_Union[Absolve, _Mapping]] = ..., give_way: _Optional[_Union[GiveWay, _Mapping]] = ..., shrink_lease: _Optional[_Union[ShrinkLease, _Mapping]] = ..., grow_lease: _Optional[_Union[GrowLease, _Mapping]] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ..., exactness_found: _Optional[_Union[ExactnessFound, _Mapping]] = ..., prompt_progress: _Optional[_Union[PromptProgress, _Mapping]] = ..., find_model: _Optional[_Union[FindModel, _Mapping]] = ..., model_found: _Optional[_Union[ModelFound, _Mapping]] = ..., find_blocks: _Optional[_Union[FindBlocks, _Mapping]] = ..., blocks_found: _Optional[_Union[BlocksFound, _Mapping]] = ..., read_range: _Optional[_Union[ReadRange, _Mapping]] = ..., range_data: _Optional[_Union[RangeData, _Mapping]] = ..., download_news: _Optional[_Union[DownloadNews, _Mapping]] = ..., list_models: _Optional[_Union[ListModels, _Mapping]] = ..., models_listed: _Optional[_Union[ModelsListed, _Mapping]] = ..., find_record: _Optional[_Union[FindRecord, _Mapping]] = ..., record_found: _Optional[_Union[RecordFound, _Mapping]] = ..., change_record: _Optional[_Union[ChangeRecord, _Mapping]] = ..., record_changed: _Optional[_Union[RecordChanged, _Mapping]] = ...) -> None: ...

class DeviceCapabilities(_message.Message):
    __slots__ = ("model", "chip", "memory", "fp32", "fp16", "int8")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHIP_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    FP32_FIELD_NUMBER: _ClassVar[int]
    FP16_FIELD_NUMBER: _ClassVar[int]
    INT8_FIELD_NUMBER: _ClassVar[int]
    model: str
    chip: str
    memory: int
    fp32: float
    fp16: float
    int8: float
    def __init__(self, model: _Optional[str] = ..., chip: _Optional[str] = ..., memory: _Optional[int] = ..., fp32: _Optional[float] = ..., fp16: _Optional[float] = ..., int8: _Optional[float] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node_id", "incarnation", "stream", "port", "capabilities", "version", "local_models", "protocol", "workers", "name")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOCAL_MODELS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    incarnation: int
    stream: str
    port: int
    capabilities: DeviceCapabilities
    version: str
    local_models: _containers.RepeatedScalarFieldContainer[str]
    protocol: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerOffer]
    name: str
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., stream: _Optional[str] = ..., port: _Optional[int] = ..., capabilities: _Optional[_Union[DeviceCapabilities, _Mapping]] = ..., version: _Optional[str] = ..., local_models: _Optional[_Iterable[str]] = ..., protocol: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerOffer, _Mapping]]] = ..., name: _Optional[str] = ...) -> None: ...

class WorkerOffer(_message.Message):
    __slots__ = ("name", "engines", "memory_mb")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    name: str
    engines: bytes
    memory_mb: int
    def __init__(self, name: _Optional[str] = ..., engines: _Optional[bytes] = ..., memory_mb: _Optional[int] = ...) -> None: ...

class WorkerBeat(_message.Message):
    __slots__ = ("name", "usable_mb", "used_mb", "loaded", "problem", "news", "pinned", "loading", "memory")
    class Pinned(_message.Message):
        __slots__ = ("model_id", "mb")
        MODEL_ID_FIELD_NUMBER: _ClassVar[int]
        MB_FIELD_NUMBER: _ClassVar[int]
        model_id: str
        mb: int
        def __init__(self, model_id: _Optional[str] = ..., mb: _Optional[int] = ...) -> None: ...
    class Loading(_message.Message):
        __slots__ = ("model_id", "done")
        MODEL_ID_FIELD_NUMBER: _ClassVar[int]
        DONE_FIELD_NUMBER: _ClassVar[int]
        model_id: str
        done: float
        def __init__(self, model_id: _Optional[str] = ..., done: _Optional[float] = ...) -> None: ...
    class Memory(_message.Message):
        __slots__ = ("planned_loading_mb", "planned_held_mb", "loading_mb", "held_mb", "engine")
        PLANNED_LOADING_MB_FIELD_NUMBER: _ClassVar[int]
        PLANNED_HELD_MB_FIELD_NUMBER: _ClassVar[int]
        LOADING_MB_FIELD_NUMBER: _ClassVar[int]
        HELD_MB_FIELD_NUMBER: _ClassVar[int]
        ENGINE_FIELD_NUMBER: _ClassVar[int]
        planned_loading_mb: int
        planned_held_mb: int
        loading_mb: int
        held_mb: int
        engine: str
        def __init__(self, planned_loading_mb: _Optional[int] = ..., planned_held_mb: _Optional[int] = ..., loading_mb: _Optional[int] = ..., held_mb: _Optional[int] = ..., engine: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    USABLE_MB_FIELD_NUMBER: _ClassVar[int]
    USED_MB_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    usable_mb: int
    used_mb: int
    loaded: _containers.RepeatedCompositeFieldContainer[Shard]
    problem: str
    news: bytes
    pinned: _containers.RepeatedCompositeFieldContainer[WorkerBeat.Pinned]
    loading: _containers.RepeatedCompositeFieldContainer[WorkerBeat.Loading]
    memory: _containers.RepeatedCompositeFieldContainer[WorkerBeat.Memory]
    def __init__(self, name: _Optional[str] = ..., usable_mb: _Optional[int] = ..., used_mb: _Optional[int] = ..., loaded: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ..., problem: _Optional[str] = ..., news: _Optional[bytes] = ..., pinned: _Optional[_Iterable[_Union[WorkerBeat.Pinned, _Mapping]]] = ..., loading: _Optional[_Iterable[_Union[WorkerBeat.Loading, _Mapping]]] = ..., memory: _Optional[_Iterable[_Union[WorkerBeat.Memory, _Mapping]]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("number", "is_answer", "active", "leaving", "rumours", "workers", "load", "frames", "links", "cpu_s", "rss_mb", "paces", "data_bytes", "data_read_bytes", "link_keys", "ailments", "rooms", "retired", "temperature_c", "power_w")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    IS_ANSWER_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    RUMOURS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    RSS_MB_FIELD_NUMBER: _ClassVar[int]
    PACES_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINK_KEYS_FIELD_NUMBER: _ClassVar[int]
    AILMENTS_FIELD_NUMBER: _ClassVar[int]
    ROOMS_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    number: int
    is_answer: bool
    active: bool
    leaving: bool
    rumours: _containers.RepeatedCompositeFieldContainer[Rumour]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerBeat]
    load: float
    frames: int
    links: _containers.RepeatedCompositeFieldContainer[PeerLink]
    cpu_s: float
    rss_mb: int
    paces: _containers.RepeatedCompositeFieldContainer[PlanPace]
    data_bytes: int
    data_read_bytes: int
    link_keys: _containers.RepeatedScalarFieldContainer[str]
    ailments: _containers.RepeatedCompositeFieldContainer[Ailment]
    rooms: _containers.RepeatedCompositeFieldContainer[PlanRoom]
    retired: bool
    temperature_c: float
    power_w: float
    def __init__(self, number: _Optional[int] = ..., is_answer: _Optional[bool] = ..., active: _Optional[bool] = ..., leaving: _Optional[bool] = ..., rumours: _Optional[_Iterable[_Union[Rumour, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerBeat, _Mapping]]] = ..., load: _Optional[float] = ..., frames: _Optional[int] = ..., links: _Optional[_Iterable[_Union[PeerLink, _Mapping]]] = ..., cpu_s: _Optional[float] = ..., rss_mb: _Optional[int] = ..., paces: _Optional[_Iterable[_Union[PlanPace, _Mapping]]] = ..., data_bytes: _Optional[int] = ..., data_read_bytes: _Optional[int] = ..., link_keys: _Optional[_Iterable[str]] = ..., ailments: _Optional[_Iterable[_Union[Ailment, _Mapping]]] = ..., rooms: _Optional[_Iterable[_Union[PlanRoom, _Mapping]]] = ..., retired: _Optional[bool] = ..., temperature_c: _Optional[float] = ..., power_w: _Optional[float] = ...) -> None: ...

class PlanRoom(_message.Message):
    __slots__ = ("plan_id", "model_id", "context", "parallel", "max_sequences", "max_context", "max_kv_tokens", "kept")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    model_id: str
    context: int
    parallel: int
    max_sequences: int
    max_context: int
    max_kv_tokens: int
    kept: bool
    def __init__(self, plan_id: _Optional[str] = ..., model_id: _Optional[str] = ..., context: _Optional[int] = ..., parallel: _Optional[int] = ..., max_sequences: _Optional[int] = ..., max_context: _Optional[int] = ..., max_kv_tokens: _Optional[int] = ..., kept: _Optional[bool] = ...) -> None: ...

class Ailment(_message.Message):
    __slots__ = ("model_id", "fingerprint", "reason", "worker")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    fingerprint: str
    reason: str
    worker: str
    def __init__(self, model_id: _Optional[str] = ..., fingerprint: _Optional[str] = ..., reason: _Optional[str] = ..., worker: _Optional[str] = ...) -> None: ...

class GiveWay(_message.Message):
    __slots__ = ("plan_id", "wanted_by")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    WANTED_BY_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    wanted_by: str
    def __init__(self, plan_id: _Optional[str] = ..., wanted_by: _Optional[str] = ...) -> None: ...

class ShrinkLease(_message.Message):
    __slots__ = ("plan_id", "tokens", "wanted_by")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WANTED_BY_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    tokens: int
    wanted_by: str
    def __init__(self, plan_id: _Optional[str] = ..., tokens: _Optional[int] = ..., wanted_by: _Optional[str] = ...) -> None: ...

class GrowLease(_message.Message):
    __slots__ = ("plan_id", "stage", "tokens", "spare")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPARE_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    stage: int
    tokens: int
    spare: bool
    def __init__(self, plan_id: _Optional[str] = ..., stage: _Optional[int] = ..., tokens: _Optional[int] = ..., spare: _Optional[bool] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("plan_id", "tokens", "step", "most")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    tokens: int
    step: int
    most: int
    def __init__(self, plan_id: _Optional[str] = ..., tokens: _Optional[int] = ..., step: _Optional[int] = ..., most: _Optional[int] = ...) -> None: ...

class Absolve(_message.Message):
    __slots__ = ("model_id", "fingerprint")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    fingerprint: str
    def __init__(self, model_id: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Rumour(_message.Message):
    __slots__ = ("node_id", "incarnation", "beat", "address")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    incarnation: int
    beat: int
    address: str
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., beat: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class PeerLink(_message.Message):
    __slots__ = ("node_id", "rtt_ms", "interface", "bytes_per_s")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    rtt_ms: float
    interface: str
    bytes_per_s: float
    def __init__(self, node_id: _Optional[str] = ..., rtt_ms: _Optional[float] = ..., interface: _Optional[str] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class PlanPace(_message.Message):
    __slots__ = ("plan_id", "lap_ms", "compute_ms", "wait_ms", "hop_ms", "hop_p99_ms", "transport_ms", "laps", "drafted", "accepted", "wasted")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    LAP_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    HOP_MS_FIELD_NUMBER: _ClassVar[int]
    HOP_P99_MS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_MS_FIELD_NUMBER: _ClassVar[int]
    LAPS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    WASTED_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    lap_ms: float
    compute_ms: _containers.RepeatedScalarFieldContainer[float]
    wait_ms: _containers.RepeatedScalarFieldContainer[float]
    hop_ms: float
    hop_p99_ms: float
    transport_ms: float
    laps: int
    drafted: int
    accepted: int
    wasted: float
    def __init__(self, plan_id: _Optional[str] = ..., lap_ms: _Optional[float] = ..., compute_ms: _Optional[_Iterable[float]] = ..., wait_ms: _Optional[_Iterable[float]] = ..., hop_ms: _Optional[float] = ..., hop_p99_ms: _Optional[float] = ..., transport_ms: _Optional[float] = ..., laps: _Optional[int] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ..., wasted: _Optional[float] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "message", "details_json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    details_json: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., details_json: _Optional[str] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Shard(_message.Message):
    __slots__ = ("model_id", "start_layer", "end_layer", "n_layers")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    START_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    start_layer: int
    end_layer: int
    n_layers: int
    def __init__(self, model_id: _Optional[str] = ..., start_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., n_layers: _Optional[int] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("node_id", "shard", "address", "worker", "loading_bytes", "held_bytes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LOADING_BYTES_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    shard: Shard
    address: str
    worker: str
    loading_bytes: int
    held_bytes: int
    def __init__(self, node_id: _Optional[str] = ..., shard: _Optional[_Union[Shard, _Mapping]] = ..., address: _Optional[str] = ..., worker: _Optional[str] = ..., loading_bytes: _Optional[int] = ..., held_bytes: _Optional[int] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("model_id", "epoch", "stages", "file", "context", "parallel")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    epoch: str
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    file: ModelFile
    context: int
    parallel: int
    def __init__(self, model_id: _Optional[str] = ..., epoch: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., file: _Optional[_Union[ModelFile, _Mapping]] = ..., context: _Optional[int] = ..., parallel: _Optional[int] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("headers", "hashes", "sample", "source", "revision", "name", "size", "shape")
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    headers: str
    hashes: str
    sample: str
    source: str
    revision: str
    name: str
    size: int
    shape: str
    def __init__(self, headers: _Optional[str] = ..., hashes: _Optional[str] = ..., sample: _Optional[str] = ..., source: _Optional[str] = ..., revision: _Optional[str] = ..., name: _Optional[str] = ..., size: _Optional[int] = ..., shape: _Optional[str] = ...) -> None: ...

class OpenPlan(_message.Message):
    __slots__ = ("plan", "beside", "stage", "room_s")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ROOM_S_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    beside: bool
    stage: int
    room_s: float
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ..., beside: _Optional[bool] = ..., stage: _Optional[int] = ..., room_s: _Optional[float] = ...) -> None: ...

class PlanOpened(_message.Message):
    __slots__ = ("plan_id", "max_kv_tokens", "max_sequences", "max_context", "max_drafting", "lease_tokens", "exactness", "indivisible")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFTING_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXACTNESS_FIELD_NUMBER: _ClassVar[int]
    INDIVISIBLE_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    max_kv_tokens: int
    max_sequences: int
    max_context: int
    max_drafting: int
    lease_tokens: int
    exactness: Exactness
    indivisible: bool
    def __init__(self, plan_id: _Optional[str] = ..., max_kv_tokens: _Optional[int] = ..., max_sequences: _Optional[int] = ..., max_context: _Optional[int] = ..., max_drafting: _Optional[int] = ..., lease_tokens: _Optional[int] = ..., exactness: _Optional[_Union[Exactness, _Mapping]] = ..., indivisible: _Optional[bool] = ...) -> None: ...

class Exactness(_message.Message):
    __slots__ = ("decode_rows", "prompt_multiple", "joined", "draft_rows", "as_prompt")
    DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    DRAFT_ROWS_FIELD_NUMBER: _ClassVar[int]
    AS_PROMPT_FIELD_NUMBER: _ClassVar[int]
    decode_rows: int
    prompt_multiple: int
    joined: bool
    draft_rows: int
    as_prompt: bool
    def __init__(self, decode_rows: _Optional[int] = ..., prompt_multiple: _Optional[int] = ..., joined: _Optional[bool] = ..., draft_rows: _Optional[int] = ..., as_prompt: _Optional[bool] = ...) -> None: ...

class ExactnessFound(_message.Message):
    __slots__ = ("plan_id", "stage", "exactness")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    EXACTNESS_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    stage: int
    exactness: Exactness
    def __init__(self, plan_id: _Optional[str] = ..., stage: _Optional[int] = ..., exactness: _Optional[_Union[Exactness, _Mapping]] = ...) -> None: ...

class ClosePlan(_message.Message):
    __slots__ = ("plan_id", "reason")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    reason: Failure
    def __init__(self, plan_id: _Optional[str] = ..., reason: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed", "logit_bias", "top_logprobs", "typical_p", "xtc_probability", "xtc_threshold", "mirostat", "mirostat_tau", "mirostat_eta", "penalty_last_n", "grammar", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_last_n", "dry_breakers")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_P_FIELD_NUMBER: _ClassVar[int]
    XTC_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    XTC_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MIROSTAT_FIELD_NUMBER: _ClassVar[int]
    MIROSTAT_TAU_FIELD_NUMBER: _ClassVar[int]
    MIROSTAT_ETA_FIELD_NUMBER: _ClassVar[int]
    PENALTY_LAST_N_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    DRY_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    DRY_BASE_FIELD_NUMBER: _ClassVar[int]
    DRY_ALLOWED_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DRY_LAST_N_FIELD_NUMBER: _ClassVar[int]
    DRY_BREAKERS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    seed: int
    logit_bias: _containers.ScalarMap[int, float]
    top_logprobs: int
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    penalty_last_n: int
    grammar: str
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_last_n: int
    dry_breakers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., top_logprobs: _Optional[int] = ..., typical_p: _Optional[float] = ..., xtc_probability: _Optional[float] = ..., xtc_threshold: _Optional[float] = ..., mirostat: _Optional[int] = ..., mirostat_tau: _Optional[float] = ..., mirostat_eta: _Optional[float] = ..., penalty_last_n: _Optional[int] = ..., grammar: _Optional[str] = ..., dry_multiplier: _Optional[float] = ..., dry_base: _Optional[float] = ..., dry_allowed_length: _Optional[int] = ..., dry_last_n: _Optional[int] = ..., dry_breakers: _Optional[_Iterable[int]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("request_id", "entry_node", "choice", "prompt_ids", "max_tokens", "eos_ids", "sampling", "prompt_logprobs", "replay_ids", "replay_wide", "embed", "share", "cache_salt", "exact", "mu", "progress")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_NODE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EOS_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REPLAY_IDS_FIELD_NUMBER: _ClassVar[int]
    REPLAY_WIDE_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    MU_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    entry_node: str
    choice: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    eos_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    prompt_logprobs: int
    replay_ids: _containers.RepeatedScalarFieldContainer[int]
    replay_wide: _containers.RepeatedScalarFieldContainer[int]
    embed: bool
    share: str
    cache_salt: str
    exact: bool
    mu: float
    progress: bool
    def __init__(self, request_id: _Optional[str] = ..., entry_node: _Optional[str] = ..., choice: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., eos_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., prompt_logprobs: _Optional[int] = ..., replay_ids: _Optional[_Iterable[int]] = ..., replay_wide: _Optional[_Iterable[int]] = ..., embed: _Optional[bool] = ..., share: _Optional[str] = ..., cache_salt: _Optional[str] = ..., exact: _Optional[bool] = ..., mu: _Optional[float] = ..., progress: _Optional[bool] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("open", "request")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    open: OpenPlan
    request: Request
    def __init__(self, open: _Optional[_Union[OpenPlan, _Mapping]] = ..., request: _Optional[_Union[Request, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id", "plan_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    plan_id: str
    def __init__(self, request_id: _Optional[str] = ..., plan_id: _Optional[str] = ...) -> None: ...

class RequestFailed(_message.Message):
    __slots__ = ("request_id", "failure", "plan_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    failure: Failure
    plan_id: str
    def __init__(self, request_id: _Optional[str] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., plan_id: _Optional[str] = ...) -> None: ...

class PromptProgress(_message.Message):
    __slots__ = ("plan_id", "request_id", "place", "total", "cached", "processed")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    PROCESSED_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    request_id: str
    place: int
    total: int
    cached: int
    processed: int
    def __init__(self, plan_id: _Optional[str] = ..., request_id: _Optional[str] = ..., place: _Optional[int] = ..., total: _Optional[int] = ..., cached: _Optional[int] = ..., processed: _Optional[int] = ...) -> None: ...

class SequenceOpen(_message.Message):
    __slots__ = ("sequence", "request", "prompt_tokens", "source", "reused")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request: Request
    prompt_tokens: int
    source: int
    reused: int
    def __init__(self, sequence: _Optional[int] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., source: _Optional[int] = ..., reused: _Optional[int] = ...) -> None: ...

class CacheChanges(_message.Message):
    __slots__ = ("opens", "drops", "ends", "truncates", "refused", "failed", "copies")
    OPENS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    opens: _containers.RepeatedCompositeFieldContainer[SequenceOpen]
    drops: _containers.RepeatedScalarFieldContainer[int]
    ends: _containers.RepeatedScalarFieldContainer[int]
    truncates: _containers.RepeatedScalarFieldContainer[int]
    refused: _containers.RepeatedScalarFieldContainer[int]
    failed: _containers.RepeatedCompositeFieldContainer[SequenceFailure]
    copies: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, opens: _Optional[_Iterable[_Union[SequenceOpen, _Mapping]]] = ..., drops: _Optional[_Iterable[int]] = ..., ends: _Optional[_Iterable[int]] = ..., truncates: _Optional[_Iterable[int]] = ..., refused: _Optional[_Iterable[int]] = ..., failed: _Optional[_Iterable[_Union[SequenceFailure, _Mapping]]] = ..., copies: _Optional[_Iterable[int]] = ...) -> None: ...

class SequenceFailure(_message.Message):
    __slots__ = ("sequence", "failure")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    failure: Failure
    def __init__(self, sequence: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class StepFailed(_message.Message):
    __slots__ = ("plan_id", "step", "failure")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    step: int
    failure: Failure
    def __init__(self, plan_id: _Optional[str] = ..., step: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class LogprobEntry(_message.Message):
    __slots__ = ("token_id", "logprob", "top_ids", "top_logprobs", "mu")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MU_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    mu: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ..., mu: _Optional[float] = ...) -> None: ...

class TokenDelivery(_message.Message):
    __slots__ = ("plan_id", "request_id", "choice", "index", "tokens", "finish_reason", "prompt_logprobs", "width", "cached_tokens", "embedding")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    request_id: str
    choice: int
    index: int
    tokens: _containers.RepeatedCompositeFieldContainer[LogprobEntry]
    finish_reason: str
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[LogprobEntry]
    width: int
    cached_tokens: int
    embedding: bytes
    def __init__(self, plan_id: _Optional[str] = ..., request_id: _Optional[str] = ..., choice: _Optional[int] = ..., index: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[LogprobEntry, _Mapping]]] = ..., finish_reason: _Optional[str] = ..., prompt_logprobs: _Optional[_Iterable[_Union[LogprobEntry, _Mapping]]] = ..., width: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., embedding: _Optional[bytes] = ...) -> None: ...

class FindModel(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class ModelFound(_message.Message):
    __slots__ = ("manifest_json",)
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    manifest_json: str
    def __init__(self, manifest_json: _Optional[str] = ...) -> None: ...

class ListModels(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class ModelsListed(_message.Message):
    __slots__ = ("models_json",)
    MODELS_JSON_FIELD_NUMBER: _ClassVar[int]
    models_json: str
    def __init__(self, models_json: _Optional[str] = ...) -> None: ...

class FindBlocks(_message.Message):
    __slots__ = ("model_id", "files")
    class File(_message.Message):
        __slots__ = ("name", "identity")
        NAME_FIELD_NUMBER: _ClassVar[int]
        IDENTITY_FIELD_NUMBER: _ClassVar[int]
        name: str
        identity: str
        def __init__(self, name: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    files: _containers.RepeatedCompositeFieldContainer[FindBlocks.File]
    def __init__(self, model_id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FindBlocks.File, _Mapping]]] = ...) -> None: ...

class BlocksFound(_message.Message):
    __slots__ = ("files",)
    class File(_message.Message):
        __slots__ = ("name", "edges")
        NAME_FIELD_NUMBER: _ClassVar[int]
        EDGES_FIELD_NUMBER: _ClassVar[int]
        name: str
        edges: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, name: _Optional[str] = ..., edges: _Optional[_Iterable[int]] = ...) -> None: ...
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[BlocksFound.File]
    def __init__(self, files: _Optional[_Iterable[_Union[BlocksFound.File, _Mapping]]] = ...) -> None: ...

class ReadRange(_message.Message):
    __slots__ = ("model_id", "name", "identity", "start", "end")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    name: str
    identity: str
    start: int
    end: int
    def __init__(self, model_id: _Optional[str] = ..., name: _Optional[str] = ..., identity: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class RangeData(_message.Message):
    __slots__ = ("data", "digests")
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    digests: bytes
    def __init__(self, data: _Optional[bytes] = ..., digests: _Optional[bytes] = ...) -> None: ...

class DownloadNews(_message.Message):
    __slots__ = ("model_id", "downloaded_bytes", "total_bytes", "done", "bytes_per_s", "from_peers_bytes", "from_hub_bytes", "error", "status")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    FROM_PEERS_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROM_HUB_BYTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    downloaded_bytes: int
    total_bytes: int
    done: bool
    bytes_per_s: float
    from_peers_bytes: int
    from_hub_bytes: int
    error: str
    status: str
    def __init__(self, model_id: _Optional[str] = ..., downloaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., done: _Optional[bool] = ..., bytes_per_s: _Optional[float] = ..., from_peers_bytes: _Optional[int] = ..., from_hub_bytes: _Optional[int] = ..., error: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class FindRecord(_message.Message):
    __slots__ = ("record_id", "proof")
    RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    record_id: str
    proof: str
    def __init__(self, record_id: _Optional[str] = ..., proof: _Optional[str] = ...) -> None: ...

class RecordFound(_message.Message):
    __slots__ = ("sealed",)
    SEALED_FIELD_NUMBER: _ClassVar[int]
    sealed: bytes
    def __init__(self, sealed: _Optional[bytes] = ...) -> None: ...

class ChangeRecord(_message.Message):
    __slots__ = ("record_id", "proof", "sealed")
    RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    record_id: str
    proof: str
    sealed: bytes
    def __init__(self, record_id: _Optional[str] = ..., proof: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class RecordChanged(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    def __init__(self, outcome: _Optional[str] = ...) -> None: ...
