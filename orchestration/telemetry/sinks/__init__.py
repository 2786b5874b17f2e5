"""Writes a run's numbers to the run folder, the terminal, Prometheus and experiment trackers.

The loop talks to ONE sink, a `FanOut`; it never asks which sinks are behind it.

| file | what | chosen as |
|---|---|---|
| base.py        | `Sink`, what all of them are; `FanOut`, which passes every call to each | |
| build.py       | the sinks of a run by name | |
| jsonl.py       | metrics.jsonl and samples.jsonl in the run folder, written and read | "jsonl" |
| live.py        | a dashboard in the terminal | "console" |
| plain.py       | one readable line an iteration | "console" without a terminal |
| prometheus.py  | gauges of Ray, which Prometheus scrapes | "prometheus" |
| status.py      | status.json and events.log: where the run stands now, for `isentrope status` | always |
| mlflow.py      | MLflow, a server or files in RUN/mlflow | "mlflow" |
| tensorboard.py | event files in RUN/tensorboard | "tensorboard" |
| tracker_run.py | what trackers share: which run of theirs a run goes on with, and how far it is there | |
| wandb.py       | Weights & Biases, online or offline | "wandb" |
"""
