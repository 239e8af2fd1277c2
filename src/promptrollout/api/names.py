"""Names that stand in more than one part: group, labels, annotations, paths, ports, metric names."""

from typing import Final

GROUP: Final = "promptrollout.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

# labels of objects that the operator owns
LABEL_GATEWAY: Final = f"{GROUP}/gateway"
LABEL_ROLLOUT: Final = f"{GROUP}/rollout"
LABEL_DIGEST: Final = f"{GROUP}/digest"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "promptrollout"

# the one annotation that a person's verb travels in; the operator reads it and never removes it
ANNOTATION_COMMAND: Final = f"{GROUP}/command"
# the emergency override: one ConfigMap of this name and label in a namespace, `data: {<rollout>: stable}`; its name is
# fixed so that gateway pods may read this one ConfigMap and no other
LABEL_OVERRIDE: Final = f"{GROUP}/override"
OVERRIDES_NAME: Final = "promptrollout-overrides"
OVERRIDE_ARM: Final = "stable"

# server-side apply field managers
FIELD_MANAGER_OPERATOR: Final = "promptrollout-operator"
FIELD_MANAGER_STATUS: Final = "promptrollout-operator-status"
FIELD_MANAGER_CLI: Final = "promptrollout-cli"

# the configuration formats that a gateway of this release reads (PromptDelivery spec.formatVersion)
FORMAT_VERSION: Final = 1

# a node that has no network or mount namespaces gives a pod these two instead
ENV_BIND_ADDRESS: Final = "PROMPTROLLOUT_BIND_ADDRESS"
ENV_SERVICEACCOUNT_DIR: Final = "PROMPTROLLOUT_SERVICEACCOUNT_DIR"

# response headers of the gateway
HEADER_ROLLOUT: Final = "x-promptrollout-rollout"
HEADER_VERSION: Final = "x-promptrollout-version"
HEADER_VARIANT: Final = "x-promptrollout-variant"
HEADER_TRACE: Final = "x-promptrollout-trace-id"
HEADER_PROVIDER: Final = "x-promptrollout-provider"
HEADER_MODEL: Final = "x-promptrollout-model"
# of a request inside the gateway: the tenant of the key that it came with, for audiences; no caller can send it
HEADER_TENANT: Final = "x-promptrollout-tenant"
# of requests: the response id of the conversation's last answer
HEADER_PIN: Final = "x-promptrollout-pin"

# metric names of the gateway; every series carries rollout_uid, rollout, version, variant, model, process
METRIC_REQUESTS: Final = "promptrollout_requests_total"
METRIC_ERRORS: Final = "promptrollout_errors_total"  # also: error_type
METRIC_REFUSALS: Final = "promptrollout_refusals_total"
METRIC_TRUNCATED: Final = "promptrollout_truncated_total"
METRIC_EMPTY_ANSWERS: Final = "promptrollout_empty_answers_total"
METRIC_CONTRACT_CHECKS: Final = "promptrollout_contract_checks_total"
METRIC_CONTRACT_FAILURES: Final = "promptrollout_contract_failures_total"
METRIC_GUARDRAIL_CHECKS: Final = "promptrollout_guardrail_checks_total"
METRIC_GUARDRAIL_VIOLATIONS: Final = "promptrollout_guardrail_violations_total"
METRIC_FALLBACKS: Final = "promptrollout_fallbacks_total"
METRIC_FEEDBACK: Final = "promptrollout_feedback_total"  # also: rating, age
METRIC_TOOL_CALLS: Final = "promptrollout_tool_calls_total"
METRIC_TOOL_FAILURES: Final = "promptrollout_tool_failures_total"
METRIC_JUDGE_FAILURES: Final = "promptrollout_judge_failures_total"  # also: dimension, judge, age
METRIC_JUDGE_SCORE: Final = "promptrollout_judge_score"  # _bucket, _sum, _count; also: dimension, judge, age
METRIC_SCORE: Final = "promptrollout_score"  # _sum, _count, _sumsq; also: score, age
METRIC_COST_COUNT: Final = "promptrollout_request_cost_usd_count"
METRIC_COST_SUM: Final = "promptrollout_request_cost_usd_sum"
METRIC_COST_SUMSQ: Final = "promptrollout_request_cost_usd_sumsq"
METRIC_COST_INPUT_SUM: Final = "promptrollout_request_cost_input_usd_sum"  # as if nothing had come from the cache
METRIC_COST_SAVED_SUM: Final = "promptrollout_request_cost_saved_usd_sum"  # by the provider's cache
METRIC_ACTIONS: Final = "promptrollout_actions_total"
METRIC_ACTION_COST: Final = "promptrollout_action_cost_usd_sum"
METRIC_ACTION_CALLS: Final = "promptrollout_action_calls_total"
METRIC_ACTION_ERRORS: Final = "promptrollout_action_errors_total"
METRIC_TOKENS_COUNT: Final = "promptrollout_request_tokens_count"
METRIC_TOKENS_SUM: Final = "promptrollout_request_tokens_sum"
METRIC_TOKENS_SUMSQ: Final = "promptrollout_request_tokens_sumsq"
METRIC_INPUT_TOKENS: Final = "promptrollout_input_tokens_total"
METRIC_CACHED_INPUT_TOKENS: Final = "promptrollout_cached_input_tokens_total"  # part of the input
METRIC_OUTPUT_TOKENS: Final = "promptrollout_output_tokens_total"
METRIC_LATENCY: Final = "promptrollout_request_duration_seconds"  # _bucket, _sum, _count
METRIC_FIRST_TOKEN: Final = "promptrollout_time_to_first_token_seconds"  # _bucket, _sum, _count; also: cache
METRIC_ABANDONED: Final = "promptrollout_abandoned_requests_total"  # the caller hung up; part of the requests
METRIC_UNASSIGNED: Final = "promptrollout_unassigned_requests_total"
METRIC_CIRCUIT_OPEN: Final = "promptrollout_circuit_open"  # by rollout, variant, provider, model
METRIC_CIRCUIT_OPENED: Final = "promptrollout_circuit_opened_total"
METRIC_DIVERTED: Final = "promptrollout_diverted_requests_total"
# only sharded, while a canary is loaded: slower than `le`, an objective's edge
METRIC_SHARD_LATENCY_SLOW: Final = "promptrollout_shard_latency_slow_total"
METRIC_SHARD_FIRST_TOKEN_SLOW: Final = "promptrollout_shard_first_token_slow_total"  # also: cache
METRIC_SHARDS_WITHHELD: Final = "promptrollout_shards_withheld"  # of the pod: rollouts
LABEL_CACHE: Final = "cache"  # hit, miss

# the label of sharded counters: which of so many groups of units
LABEL_SHARD: Final = "shard"
SHARDS: Final = 32
# values of the label `age`: how old an answer was when feedback on it came, at most, in seconds
AGES: Final = {"1m": 60, "10m": 600, "1h": 3_600, "6h": 21_600, "24h": 86_400}

# eight hexadecimal characters drawn when a gateway's process starts: whose counters these are, whoever scraped them
LABEL_PROCESS: Final = "process"


def short_digest(digest: str) -> str:
    """The ten hexadecimal characters by which people and labels name a digest (`sha256:…` accepted)."""
    return digest.removeprefix("sha256:")[:10]


def shard_metric(metric: str) -> str:
    """The counter that divides `metric` by groups of units, exported while two arms are loaded."""
    prefix = "promptrollout_"
    return f"{prefix}shard_{metric.removeprefix(prefix)}"


def le_label(seconds: str | float) -> str:
    """The `le` label of a histogram edge: Prometheus 3 stores classic buckets under the float's form (`5` as `5.0`)."""
    return repr(float(seconds))
