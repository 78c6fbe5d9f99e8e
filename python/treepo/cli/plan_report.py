"""What a plan says: text for a terminal, and one object for programs."""

import shutil
import textwrap
from dataclasses import dataclass
from typing import Any

from treepo.cli.report import counted
from treepo.config import EngineConfig, SearchConfig

_GIB = 1 << 30
_NAME_COLUMNS = 11
_UNBIASED = (
    "the mean of rewards weighted by forest.paths.weight is unbiased: every rule looks at the "
    "prefix of a fork only"
)
_BIASED = (
    "the mean of rewards is biased, and forest.paths.weight does not make up for it: a rule also "
    "looks at sampled tokens behind a fork"
)
_WHY_BOUND = (
    "a flat rollout decodes all that it returns, a tree what is shared once; empty rows and "
    "tokens computed again take from it"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """The preset that a search starts from, and `key=value` of what differs."""

    name: str
    source: str
    changed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A forecast with what it was made from.

    Attributes:
        search: The search.
        engine: Limits of the engine.
        rates: Probability that a segment ends its path, by depth; the last one repeats.
        prompt_len: Tokens of a prompt.
        num_trees: Prompts sampled at once.
        forecast: What `treepo.core.forecast` returned.
        policies: Rules that are on: name, rule and dependence of each.
        dependence: The worst of their dependences.
        preset: Where the search starts from; None for the defaults.
        bytes_per_token: Bytes of one token's keys and values; None where the model is not known.
        max_model_len: Tokens that prompt and completion may have together.
    """

    search: SearchConfig
    engine: EngineConfig
    rates: list[float]
    prompt_len: int
    num_trees: int
    forecast: dict[str, float]
    policies: list[dict[str, str]]
    dependence: str
    preset: Preset | None
    bytes_per_token: int | None
    max_model_len: int

    @property
    def peak_kv_gib(self) -> float | None:
        """Memory of the most KV blocks in use at once."""
        if self.bytes_per_token is None:
            return None
        slots = self.forecast["peak_blocks"] * self.engine.block_size
        return slots * self.bytes_per_token / _GIB

    @property
    def weights(self) -> str:
        """What the rules that are on mean for inclusion weights."""
        return _UNBIASED if self.dependence == "prefix" else _BIASED

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON knows it."""
        preset = self.preset
        return {
            "assumes": {
                "rates": self.rates,
                "prompt_len": self.prompt_len,
                "num_trees": self.num_trees,
            },
            "forecast": self.forecast,
            "peak_kv_gib": self.peak_kv_gib,
            "policies": self.policies,
            "dependence": self.dependence,
            "weights": self.weights,
            "preset": None
            if preset is None
            else {"name": preset.name, "source": preset.source, "changed": list(preset.changed)},
            "search": self.search.to_dict(),
        }


def report(plan: Plan) -> str:
    """Return a plan as lines of text, numbers as means a tree unless they say otherwise."""
    values = plan.forecast
    rows = [
        ("search", _search(plan)),
        ("assumes", _assumptions(plan)),
        *_context(plan),
        ("decodes", f"{values['decoded_tokens']:.0f}{_error(values)} tokens a tree"),
        (
            "returns",
            f"{values['returned_tokens']:.0f} tokens a tree, in {values['leaves']:.1f} leaves",
        ),
        (
            "speed-up",
            f"at most {values['speedup_bound']:.2f} over a flat rollout (returned / decoded): "
            f"{_WHY_BOUND}",
        ),
        ("forks", _kinds(values, _FORKS)),
        ("leaves", f"{_kinds(values, _LEAVES)}; {values['leaf_depth']:.1f} segments deep"),
        ("memory", _memory(plan)),
        ("time", _time(plan)),
        *(
            ("policy", f"{policy['name']} ({policy['dependence']}): {policy['rule']}")
            for policy in plan.policies
        ),
        ("weights", plan.weights),
    ]
    width = shutil.get_terminal_size((100, 24)).columns
    return "\n".join(_wrapped(name, text, width) for name, text in rows)


def _context(plan: Plan) -> list[tuple[str, str]]:
    """Return what the model's context does to completions, if it does something."""
    wanted, room = plan.search.completion_len, plan.max_model_len - plan.prompt_len
    if wanted <= room:
        return []
    text = f"holds {plan.max_model_len} tokens and cuts completions of {wanted} tokens to {room}"
    return [("context", text)]


def _wrapped(name: str, text: str, width: int) -> str:
    return textwrap.fill(
        text,
        max(width, 3 * _NAME_COLUMNS),
        initial_indent=f"{name:{_NAME_COLUMNS}}",
        subsequent_indent=" " * _NAME_COLUMNS,
        break_long_words=False,
        break_on_hyphens=False,
    )


_FORKS = {
    "initial_paths": "at the prompt",
    "branches": "by branching",
    "fallbacks": "by fallback",
}
_LEAVES = {
    "leaves_stop": "stop",
    "leaves_length": "length",
    "leaves_depth": "depth",
    "leaves_pruned": "pruned",
}


def _search(plan: Plan) -> str:
    search, preset = plan.search, plan.preset
    shape = (
        f"width {search.width}, {counted(search.max_depth, 'segment')} of "
        f"{counted(search.segment_len, 'token')}"
    )
    if preset is None:
        return f"{shape}; no preset"
    changed = f" with {', '.join(preset.changed)}" if preset.changed else ""
    return f"{shape}; preset {preset.name} ({preset.source}){changed}"


def _assumptions(plan: Plan) -> str:
    rates = ", ".join(f"{rate:g}" for rate in plan.rates)
    depths = "" if len(plan.rates) == 1 else " at depth 1, 2, .."
    return (
        f"{counted(plan.num_trees, 'prompt')} of {counted(plan.prompt_len, 'token')} at once; a "
        f"segment{depths} ends its path with probability {rates} (--rates)"
    )


def _error(values: dict[str, float]) -> str:
    """Return two standard errors; more trees make them smaller."""
    error = values["decoded_tokens_error"]
    return f" +- {2 * error:.0f}" if error > 0 else ""


def _kinds(values: dict[str, float], names: dict[str, str]) -> str:
    counts = [(values.get(key, 0.0), name) for key, name in names.items()]
    return ", ".join(f"{count:.1f} {name}" for count, name in counts if count > 0)


def _memory(plan: Plan) -> str:
    blocks = counted(round(plan.forecast["peak_blocks"]), "KV block")
    gib = plan.peak_kv_gib
    size = "; name a local --model for its GiB" if gib is None else f", {gib:.3g} GiB"
    again = plan.forecast["recomputed_tokens"]
    recomputed = f"; {again:.0f} tokens a tree computed again" if again > 0 else ""
    return f"{blocks} of {plan.engine.block_size} tokens at the peak{size}{recomputed}"


def _time(plan: Plan) -> str:
    values = plan.forecast
    return (
        f"{counted(round(values['steps']), 'step')} for all, {values['rows']:.1f} of "
        f"{plan.engine.max_num_seqs} rows filled; {100 * values['idle_rows']:.0f}% idle, "
        f"{100 * values['round_wait']:.0f}% while paths wait for their round"
    )
