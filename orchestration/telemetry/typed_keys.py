"""Parses the keys of metric families: their environment, their k, their percent.

| class         | family                                                            | example                         |
|---------------|-------------------------------------------------------------------|---------------------------------|
| `EvalKey`     | `eval/{env}/pass@{k}`, `eval/{env}/pass@{k}/T={temperature}`      | `EvalKey("countdown", 16, 0.3)` |
| `QuantileKey` | `ratio/q{percent}`, `gap/q{percent}`                              | `QuantileKey("gap", 99.9)`      |
| `TermKey`     | `term/{term}`, `term/{term}/{env}`                                | `TermKey("verdict")`            |
| `EnvKey`      | every other family with `{env}`                                   | `EnvKey("reward/{env}", "gcd")` |

`parse` also reads the names that metrics had before (`RENAMED`), and returns None for a key of another family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestration.telemetry.keys import lookup, present_name


@dataclass(frozen=True, slots=True)
class EvalKey:
    """Names a pass@k of one environment; `temperature` is None for the alias at the first temperature.

    >>> EvalKey.parse("eval/countdown/pass@16/T=0.3")
    EvalKey(env='countdown', k=16, temperature=0.3)
    >>> str(EvalKey("gym/gcd", 1))
    'eval/gym/gcd/pass@1'
    """

    env: str
    k: int
    temperature: float | None = None

    @classmethod
    def parse(cls, key: str) -> EvalKey | None:
        match = lookup(present_name(key))
        if match is None or "k" not in match[1]:
            return None
        heat = match[1].get("temperature")
        return cls(match[1]["env"], int(match[1]["k"]), None if heat is None else float(heat))

    def __str__(self) -> str:
        return f"eval/{self.env}/{self.metric}"

    @property
    def metric(self) -> str:
        """Returns the key without its environment, such as "pass@16" or "pass@16/T=0.3"."""
        return f"pass@{self.k}" + ("" if self.temperature is None else f"/T={self.temperature:g}")


@dataclass(frozen=True, slots=True)
class QuantileKey:
    """Names a reported quantile of a distribution, "ratio" or "gap".

    >>> QuantileKey.parse("gap/q99.9")
    QuantileKey(distribution='gap', percent=99.9)
    """

    distribution: str
    percent: float

    @classmethod
    def parse(cls, key: str) -> QuantileKey | None:
        match = lookup(present_name(key))
        if match is None or "percent" not in match[1]:
            return None
        return cls(match[0].partition("/")[0], float(match[1]["percent"]))

    def __str__(self) -> str:
        return f"{self.distribution}/q{self.percent:g}"


@dataclass(frozen=True, slots=True)
class TermKey:
    """Names a term of the reward, over all environments (`env` None) or in one of them.

    >>> TermKey.parse("term/verdict/gym/gcd")
    TermKey(term='verdict', env='gym/gcd')
    """

    term: str
    env: str | None = None

    @classmethod
    def parse(cls, key: str) -> TermKey | None:
        match = lookup(present_name(key))
        if match is None or "term" not in match[1]:
            return None
        return cls(match[1]["term"], match[1].get("env"))

    def __str__(self) -> str:
        return f"term/{self.term}" + ("" if self.env is None else f"/{self.env}")


@dataclass(frozen=True, slots=True)
class EnvKey:
    """Names a metric of one environment; `family` is its entry in `KEYS`.

    >>> EnvKey.parse("reply/length/gym/gcd")
    EnvKey(family='response/length/{env}', env='gym/gcd')
    >>> str(EnvKey("eval/{env}/distinct_correct", "countdown"))
    'eval/countdown/distinct_correct'
    """

    family: str
    env: str

    @classmethod
    def parse(cls, key: str) -> EnvKey | None:
        match = lookup(present_name(key))
        # A family with a second field beside the environment has a class of its own.
        return cls(match[0], match[1]["env"]) if match is not None and match[1].keys() == {"env"} else None

    def __str__(self) -> str:
        return self.family.replace("{env}", self.env)


DISTINCT = "eval/{env}/distinct_correct"


def environment_of(key: str) -> str | None:
    """Returns the environment a key of any family names; None for a key that names none."""
    match = lookup(present_name(key))
    return match[1].get("env") if match else None


def short_evals(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the evaluation metrics of a row at the first temperature, without their prefix.

    >>> short_evals({"loss": 0.1, "eval/gcd/pass@1": 0.5, "eval/gcd/pass@1/T=0.3": 0.6, "eval/gcd/distinct_correct": 2.0})
    {'gcd/pass@1': 0.5, 'gcd/distinct_correct': 2.0}
    """
    out = {}
    for key, value in row.items():
        pass_key = EvalKey.parse(key)
        if pass_key is not None and pass_key.temperature is None:
            out[f"{pass_key.env}/{pass_key.metric}"] = value
        elif (env_key := EnvKey.parse(key)) is not None and env_key.family == DISTINCT:
            out[f"{env_key.env}/distinct_correct"] = value
    return out
