"""What a schema cannot refuse in a prompt: templates that do not parse, output schemas that are none. Never renders.

The operator (condition `InvalidSpec`), `promptrollout lint` and the gateway (when it loads a configuration) compile
with the same environment and validator, so what one of them takes, all of them take.
"""

import json
from collections.abc import Iterable
from typing import Any, Final

import jsonschema_rs
from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.lexer import TOKEN_DATA, TOKEN_WHITESPACE
from jinja2.sandbox import ImmutableSandboxedEnvironment

from promptrollout.api.digest import canonical_bytes
from promptrollout.api.meta import Json
from promptrollout.api.prompt import MAX_SPEC_BYTES, PromptSpec
from promptrollout.api.schema_limits import CompileBudget

Problem = tuple[str, str]
"""Path below the prompt (`messages[0].content`; empty for the prompt as a whole); reason and fix."""

# fields of a provider's request that have a place of their own in the prompt, or belong to the caller
_HOME_OF_EXTRA = {
    "model": "model",
    "messages": "messages",
    "tools": "tools",
    "temperature": "parameters.temperature",
    "top_p": "parameters.topP",
    "max_tokens": "parameters.maxTokens",
    "seed": "parameters.seed",
    "presence_penalty": "parameters.presencePenalty",
    "frequency_penalty": "parameters.frequencyPenalty",
    "stop": "parameters.stop",
    "stream": "the caller's request",
    "stream_options": "the caller's request",
}

# What templates may use. Everything else is refused, because templates are rendered where all rollouts of a gateway are
# served: one that takes seconds, or all memory, would stop the others. The gateway knows a bound for each of these.
FILTERS: Final = frozenset(
    {"abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "join"}
    | {"last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round"}
    | {"safe", "select", "selectattr", "sort", "string", "striptags", "title", "tojson", "trim", "truncate", "unique"}
    | {"upper", "urlencode"}
)
TESTS: Final = frozenset(
    {"!=", "<", "<=", "==", ">", ">=", "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float"}
    | {"ge", "greaterthan", "gt", "in", "integer", "iterable", "le", "lessthan", "lower", "lt", "mapping", "ne", "none"}
    | {"number", "odd", "sameas", "sequence", "string", "true", "undefined", "upper"}
)
GLOBALS: Final = frozenset({"range"})
METHODS: Final[dict[type, frozenset[str]]] = {
    dict: frozenset({"get", "items", "keys", "values"}),
    str: frozenset(
        {"capitalize", "endswith", "lower", "lstrip", "rstrip", "split", "startswith", "strip", "title", "upper"}
    ),
}
LOOP_METHODS: Final = frozenset({"changed", "cycle"})
_METHODS: Final = LOOP_METHODS.union(*METHODS.values())
_MAX_LOOP_LEVELS: Final = 20
"""More cannot be compiled to Python, and to find that out takes time by their square."""
_NO_TOKENS: Final = (TOKEN_DATA, TOKEN_WHITESPACE)
_MAX_NUMBER: Final = 2**64
MAX_NODES: Final = 10_000
"""Of a template's syntax tree. What is new is bounded by MAX_TOKENS; this holds for what is served already."""
MAX_TOKENS: Final = 2_500
"""In the braces of all of a prompt's templates; `{{ name }}` has three. The operator checks one in 20 µs, a gateway
compiles it in 60 µs."""

_STATEMENTS: Final = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.With)
_EXPRESSIONS: Final = (
    *(nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Slice),
    *(nodes.Getattr, nodes.Getitem, nodes.Filter, nodes.Test, nodes.Call, nodes.CondExpr, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Concat),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod),
)
_REFUSED: Final[dict[type[nodes.Node], str]] = {
    nodes.Include: "include is not supported: write the text here",
    nodes.Import: "import is not supported: write the text here",
    nodes.FromImport: "import is not supported: write the text here",
    nodes.Extends: "extends is not supported: write the text here",
    nodes.Block: "block is not supported: write the text here",
    nodes.Macro: "macro is not supported: write the text where it is needed",
    nodes.CallBlock: "call is not supported: write the text where it is needed",
    nodes.FilterBlock: "filter blocks are not supported: filter the expressions",
    nodes.AssignBlock: "set blocks are not supported: set a value with {% set name = … %}",
    nodes.NSRef: "namespaces are not supported",
    nodes.Pow: "the operator ** is not supported in prompts",
}


class UnfoldedGenerator(CodeGenerator):
    """Evaluates nothing while it compiles: `{{ "a" * 10**10 }}` would take all memory while a template is only checked.

    `optimized=False` alone does not prevent that for what is printed.
    """

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> str:
        if isinstance(node, nodes.TemplateData):
            return super()._output_child_to_const(node, frame, finalize)
        raise nodes.Impossible()


class PromptEnvironment(ImmutableSandboxedEnvironment):
    """The Jinja2 environment of prompts: sandboxed, text kept as written, a missing variable is an error."""

    code_generator_class = UnfoldedGenerator

    def __init__(self, undefined: type[Undefined] = StrictUndefined) -> None:
        super().__init__(undefined=undefined, autoescape=False, keep_trailing_newline=True, optimized=False)
        self.filters = {name: self.filters[name] for name in FILTERS}
        self.tests = {name: self.tests[name] for name in TESTS}
        self.globals = {name: self.globals[name] for name in GLOBALS}


def environment() -> ImmutableSandboxedEnvironment:
    """The environment that templates are checked with; the gateway's adds limits on size and time."""
    return PromptEnvironment()


_ENVIRONMENT = environment()


def _parsed(text: str) -> nodes.Template:
    """The syntax tree. Raises ValueError with the line, the reason and the fix."""
    try:
        tree = _ENVIRONMENT.parse(text)
        for count, node in enumerate(tree.find_all(nodes.Node)):
            if (reason := _not_allowed(node)) is not None:
                raise ValueError(f"line {node.lineno}: {reason}")
            if count == MAX_NODES:
                raise ValueError(f"more than {MAX_NODES} statements and expressions: simplify the template")
        if _loop_levels(tree) > _MAX_LOOP_LEVELS:
            raise ValueError(f"more than {_MAX_LOOP_LEVELS} nested loops: simplify the template")
        _ENVIRONMENT.compile(tree)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"line {error.lineno}: {error.message}; if braces are meant as text, write {{% raw %}}…{{% endraw %}}"
        ) from error
    except (RecursionError, MemoryError, SyntaxError) as error:  # of Python's own compiler, on deep nesting
        raise ValueError("nested too deeply: simplify the template") from error
    return tree


def _loop_levels(tree: nodes.Template) -> int:
    deepest = 0
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while waiting:
        node, level = waiting.pop()
        level += isinstance(node, nodes.For)
        deepest = max(deepest, level)
        waiting += ((child, level) for child in node.iter_child_nodes())
    return deepest


def _not_allowed(node: nodes.Node) -> str | None:
    """Why a template may not have this, with what it may have; None if it may. What a value does is seen later."""
    kind = type(node)
    if kind not in _STATEMENTS and kind not in _EXPRESSIONS:
        return _REFUSED.get(kind, f"{kind.__name__} is not supported in prompts")
    if isinstance(node, nodes.Filter):
        return _filter_not_allowed(node)
    if isinstance(node, nodes.Test) and node.name not in TESTS:
        return _unknown("test", node.name, TESTS)
    if isinstance(node, nodes.For) and node.recursive:
        return "recursive loops are not supported"
    if isinstance(node, nodes.Call):
        called = node.node
        if isinstance(called, nodes.Name) and called.name not in GLOBALS:
            return _unknown("function", called.name, GLOBALS)
        if isinstance(called, nodes.Getattr) and called.attr not in _METHODS:
            return _unknown("method", called.attr, _METHODS)
        if not isinstance(called, nodes.Name | nodes.Getattr):
            return "only methods can be called, by their names"
    if isinstance(node, nodes.Const) and isinstance(node.value, int) and node.value > _MAX_NUMBER:
        return "the number is too large"
    if isinstance(node, nodes.Mod) and _is_text(node.left):
        return "the operator % is for numbers in prompts: join texts with ~"
    if isinstance(node, nodes.Mul) and any(
        _is_text(side) or isinstance(side, nodes.List | nodes.Tuple) for side in (node.left, node.right)
    ):
        return "the operator * is for numbers in prompts"
    return None


def _filter_not_allowed(node: nodes.Filter) -> str | None:
    if node.name not in FILTERS:
        return _unknown("filter", node.name, FILTERS)
    if node.name == "tojson" and (node.args or node.kwargs):
        return "tojson takes no arguments in prompts"
    first = node.args[0] if node.args else None
    if isinstance(first, nodes.Const):
        if node.name == "map" and first.value not in FILTERS:
            return _unknown("filter", first.value, FILTERS)
        if node.name in ("select", "reject") and first.value not in TESTS:
            return _unknown("test", first.value, TESTS)
    return None


def _is_text(node: nodes.Expr) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def _unknown(kind: str, name: object, known: Iterable[str]) -> str:
    there_are = ", ".join(sorted(word for word in known if word[0].isalpha()))
    return f"the {kind} {str(name)[:60]!r} does not exist in prompts; there are: {there_are}"


def compile_template(text: str) -> Template:
    """The template, ready to render. Raises ValueError with the line, the reason and the fix."""
    _parsed(text)
    return _ENVIRONMENT.from_string(text)


def variables_of(text: str) -> set[str]:
    """Names that a request must bring in `prompt_variables`. Raises ValueError as `compile_template` does."""
    return meta.find_undeclared_variables(_parsed(text))


def answer_validator(schema: Json) -> jsonschema_rs.Validator:
    """A validator of answers. Raises ValueError naming the place in the schema.

    Offline: a `$ref` to a URL would let whoever writes a prompt send requests from the operator's network.
    """
    try:
        return jsonschema_rs.validator_for(schema, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        path = "/".join(str(part) for part in getattr(error, "instance_path", ()))
        reason = getattr(error, "message", None) or str(error)
        raise ValueError(f"not a JSON Schema{f' at {path}' if path else ''}: {_shortened(reason)}") from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a JSON Schema: {_shortened(str(error))}") from error


def _tokens(text: str, at_most: int) -> int:
    """Of a template's expressions and statements; counting ends soon after `at_most`."""
    if "{" not in text:
        return 0
    count = 0
    try:
        for _, kind, _ in _ENVIRONMENT.lexer.tokeniter(text, None):
            count += kind not in _NO_TOKENS
            if count > at_most:
                break
    except TemplateSyntaxError:
        pass  # said where it is parsed
    return count


def _message_problems(spec: PromptSpec) -> list[Problem]:
    texts = [(f"messages[{n}].content", each.content) for n, each in enumerate(spec.messages) if each.content]
    left = MAX_TOKENS
    for path, text in texts:
        left -= _tokens(text, left)
        if left < 0:
            return [(path, f"the templates of this prompt have more than {MAX_TOKENS} tokens in braces: simplify them")]
    found: list[Problem] = []
    for path, text in texts:
        try:
            _parsed(text)
        except ValueError as error:
            found.append((path, str(error)))
    return found


def template_problems(spec: PromptSpec) -> list[Problem]:
    """Templates that do not parse, an output schema or a tool that no provider and no validator understands. What
    would cost too much to compile is counted first, and not compiled: the operator has one thread for all rollouts."""
    found = _message_problems(spec)
    budget = CompileBudget()
    if spec.output_schema is not None:
        try:
            budget.take(spec.output_schema)
            answer_validator(spec.output_schema)
        except ValueError as error:
            found.append(("outputSchema", str(error)))
    for index, tool in enumerate(spec.tools or ()):
        found.extend((f"tools[{index}]{path}", reason) for path, reason in _tool_problems(tool, budget))
    return found


def prompt_problems(spec: PromptSpec) -> list[Problem]:
    """Everything that is wrong with a prompt and that the CRD's schema and rules let through; empty if it is sound."""
    try:
        size = len(canonical_bytes(spec))
    except ValueError as error:
        return [("", f"{error}; write such numbers as strings")]
    if size > MAX_SPEC_BYTES:
        return [("", f"the prompt has {size} bytes, at most {MAX_SPEC_BYTES} are served: shorten it")]
    found = template_problems(spec)
    for key in sorted((spec.parameters and spec.parameters.extra) or ()):
        if key in _HOME_OF_EXTRA:
            found.append((f"parameters.extra.{key}", f"{key} belongs in {_HOME_OF_EXTRA[key]}: move it there"))
    known = {(spec.provider_ref.name, spec.model)}
    for index, fallback in enumerate(spec.fallbacks or ()):
        place = fallback.provider_ref.name, fallback.model
        if place in known:
            found.append((f"fallbacks[{index}]", "this provider and model are already asked before: remove it"))
        known.add(place)
    return found


def _tool_problems(tool: Json, budget: CompileBudget) -> list[Problem]:
    kind = tool.get("type")
    if not isinstance(kind, str):
        return [("", 'a tool needs a type: {"type": "function", "function": {…}}')]
    if kind != "function":
        return []
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return [(".function", "a tool of type function needs function.name")]
    parameters: Any = function.get("parameters")
    if parameters is None:
        return []
    if not isinstance(parameters, dict):
        return [(".function.parameters", f"must be a JSON Schema object, not {json.dumps(parameters)[:80]}")]
    try:
        budget.take(parameters)
        answer_validator(parameters)
    except ValueError as error:
        return [(".function.parameters", str(error))]
    return []


def _shortened(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
