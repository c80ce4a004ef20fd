"""What clients may ask for, with bounds on all of it. Fields that are not known are passed over, as clients expect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mixwell.serve.vectors import Pooling

MOST_ANSWERS, MOST_STOPS, LONGEST_STOP, MOST_PROMPTS, MOST_MESSAGES = 16, 16, 256, 128, 4096
MOST_CHOICES, MOST_TOOLS = 1024, 128
MOST_TEXTS = 2048  # whose vectors are asked for at once
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Ids = list[Annotated[int, Field(ge=0, strict=True)]]


class Fault(BaseModel):
    """What is wrong, in one line."""

    message: str
    type: str
    param: str | None = None
    code: int


class Refusal(BaseModel):
    """The body of every answer that is none."""

    error: Fault


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False


class NamedSchema(BaseModel):
    """A JSON schema with a name."""

    name: Annotated[str, Field(max_length=64)] | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    strict: bool | None = None  # an answer always follows the schema
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None


class ResponseFormat(BaseModel):
    """Text, freely written; any JSON object; or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class Structured(BaseModel):
    """The form of an answer, one of these."""

    model_config = ConfigDict(extra="forbid")

    json_: Annotated[dict[str, Any] | bool | None, Field(alias="json")] = None  # a schema
    regex: str | None = None
    choice: Annotated[list[Stop], Field(min_length=1, max_length=MOST_CHOICES)] | None = None
    grammar: str | None = None  # in Lark's language


class Sampling(BaseModel):
    """What all requests for text may say."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: Annotated[str, Field(max_length=512)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_experts: bool | None = None  # which experts each token came from, layer by layer
    label: Annotated[str, Field(max_length=64)] | None = None  # under which the load of experts is counted
    response_format: ResponseFormat | None = None
    structured_outputs: Structured | None = None


class Function(BaseModel):
    """What may be called."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Annotated[str, Field(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema
    strict: bool | None = None  # arguments always follow their schema


class ToolEntry(BaseModel):
    """A tool, of which functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """A function by its name."""

    name: Annotated[str, Field(max_length=64)]


class NamedTool(BaseModel):
    """The tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolEntry], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: Literal[True] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=32)] | None = None


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str] | Ids | list[Ids], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(max_length=512)] | None = None
    input: str | Annotated[list[str] | Ids | list[Ids], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    pooling: Pooling = "mean"  # of the states behind all tokens the mean, or the last one's


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, or a conversation as its template writes it."""

    model: Annotated[str, Field(max_length=512)] | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(max_length=MOST_MESSAGES)] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=512)] | None = None
    tokens: Annotated[Ids, Field(max_length=1 << 20)]
