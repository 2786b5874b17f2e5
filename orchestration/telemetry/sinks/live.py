"""Shows a dashboard in the terminal: where the run stands, what it earns, and whether entropy is at its target.

The picture keeps its height from one refresh to the next, which is what keeps it from flickering, and is redrawn in
place below whatever else is printed. Signals are left alone: Ctrl-C reaches the loop, whose `close` (or, failing that,
the end of the process) gives the cursor back.
"""

import atexit
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.telemetry.sinks.base import Row, RunInfo, Sample
from orchestration.telemetry.sinks.plain import PlainSink
from orchestration.telemetry.typed_keys import EnvKey, EvalKey, short_evals
from orchestration.thresholds import OFF_TARGET

STAGES = ("generate", "verify", "train", "sync")
HISTORY = 512  # iterations a sparkline can look back
EVAL_LINES = 6  # fixed, as is EVENT_LINES: a picture that grows would scroll
EVENT_LINES = 3
SPARK_WIDTH = 36
MAX_WIDTH = 112


class LiveSink:
    """Shows the dashboard; on a console without a terminal (or with a "dumb" one) it behaves as a `PlainSink`.

    `clock` is injected so that a test, and a picture of it, do not depend on the time.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console()
        self.clock = clock
        self.run = RunInfo("run", Path(), 0)
        self.row: Row = {}
        self.evals: dict[str, float] = {}
        self.history: dict[str, deque[float]] = {key: deque(maxlen=HISTORY) for key in ("reward/mean", "entropy/exact")}
        self.events: deque[str] = deque(maxlen=EVENT_LINES)
        self.phases: dict[str, tuple[float, float]] = {}
        self.began = self.done_here = 0.0
        self.status = "starting"
        self._live: Live | None = None
        self._plain: PlainSink | None = None

    # ------------------------------------------------------------ the protocol

    def start(self, run: RunInfo) -> None:
        self.run, self.began, self.status = run, self.clock(), "running"
        self.row = {"iteration": float(run.resumed_at or 0)}
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            self._plain = PlainSink(self.console.file)
            self._plain.start(run)
            return
        if self._live is not None:  # the run goes on from a checkpoint in this process
            return
        # `transient` stays off: the last picture is the summary a person scrolls back to.
        self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4)
        self._live.start()
        # A run that dies without close() must not leave the terminal without a cursor; stop() twice does no harm.
        atexit.register(self._live.stop)

    def progress(self, phase: str, done: float, total: float) -> None:
        # No refresh here: thousands of calls an iteration cost nothing, the refresh thread shows the latest one.
        self.phases[phase] = (done, total)
        self.status = phase

    def iteration(self, row: Row) -> None:
        if self._plain:
            self._plain.iteration(row)
            return
        self.row = dict(row)
        for key, values in self.history.items():
            if key in row:
                values.append(row[key])
        self.evals.update(short_evals(row))
        self.done_here += 1
        self.phases = {}

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        if self._plain:
            self._plain.event(text)
            return
        self.events.append(text)

    def close(self, status: str) -> None:
        if self._plain:
            self._plain.close(status)
            return
        self.status = status
        self.phases = {}
        if self._live:
            self._live.stop()
            atexit.unregister(self._live.stop)
            self._live = None

    # ------------------------------------------------------------ the picture

    def render(self) -> RenderableType:
        """Draws the present picture; called by the refresh thread, so it only reads."""
        body = Group(self._progress(), Text(), self._numbers(), Text(), self._results(), Text(), *self._news())
        title = Text.assemble((self.run.name, "bold"), f"  {self.status}")
        # Room at the right edge: where the terminal echoes "^C" it must not wrap, or the next redraw is a line off.
        width = min(self.console.width - 4, MAX_WIDTH)
        return Panel(body, title=title, title_align="left", border_style="dim", padding=(1, 2), width=width)

    def _progress(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=10, style="dim")
        table.add_column(width=SPARK_WIDTH)
        table.add_column(no_wrap=True)
        done, total = self.row.get("iteration", 0.0), self.run.iterations
        passed = self.clock() - self.began
        left = passed / self.done_here * (total - done) if self.done_here else math.nan
        times = f"{_clock(passed)} passed" + (f", {_clock(left)} left" if math.isfinite(left) and left > 0 else "")
        table.add_row("iteration", _bar(done, total), f"{done:.0f}/{total}  {times}")
        # copy(): the loop's thread adds stages while the refresh thread draws.
        stages = self.phases.copy()
        for name in STAGES:
            at, of = stages.get(name, (0.0, 0.0))
            took = self.row.get(f"time/{name}", math.nan)
            last = f"last {took:.1f} s" if math.isfinite(took) else ""
            table.add_row(name, _bar(at, of), f"{at:,.0f}/{of:,.0f}  {last}" if of else last)
        return table

    def _numbers(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=10, style="dim")
        table.add_column(width=SPARK_WIDTH, no_wrap=True)
        table.add_column(no_wrap=True)
        reward, exact = (spark_text(list(self.history[key]), SPARK_WIDTH) for key in ("reward/mean", "entropy/exact"))
        table.add_row("reward", Text(reward, "green"), self._value("reward/mean", ".3f"))
        table.add_row("entropy", Text(exact, "cyan"), self._entropy())
        table.add_row("coefficient", self._value("entropy/coefficient", ".4g"), self._coefficient())
        table.add_row("tokens/s", self._value("tokens/per_second", ",.0f"), "")
        return table

    def _entropy(self) -> Text:
        text, target = self._value("entropy/exact", ".3f"), self.row.get("entropy/target", math.nan)
        if math.isfinite(target):
            text.append(f"  target {target:.3f}", "dim")
        # Of the entropy under control, which may be that of the correct responses only.
        off = -self.row.get("entropy/error", math.nan)
        if math.isfinite(off):
            text.append(f"  {off:+.1%}", "yellow" if abs(off) > OFF_TARGET else "green")
        return text

    def _coefficient(self) -> Text:
        text, share = Text(), self.row.get("entropy/affected", math.nan)
        if math.isfinite(share):
            text.append(f"touches {share:.1%} of tokens", "dim")
        if self.row.get("entropy/saturated", 0.0) > 0.0:
            text.append("  at its bound", "bold red")
        return text

    def _value(self, key: str, style: str) -> Text:
        if key not in self.row:
            return Text("-", "dim")
        value = self.row[key]
        return Text(format(value, style), "" if math.isfinite(value) else "bold red")

    def _results(self) -> Table:
        """The latest evaluation in two columns, always EVAL_LINES / 2 lines high."""
        table = Table.grid(padding=(0, 2))
        for width in (30, 10, 30, 10):
            table.add_column(width=width, no_wrap=True, style="dim" if width == 30 else "")
        cells = [(key, f"{value:.3f}") for key, value in headline(self.evals.copy())]
        cells = (cells + [("", "")] * EVAL_LINES)[:EVAL_LINES]
        for left, right in zip(cells[::2], cells[1::2], strict=True):
            # Text, not str: an environment's name in [brackets] is not markup.
            table.add_row(*(Text(word) for word in (*left, *right)))
        return table

    def _news(self) -> list[Text]:
        events = [Text(text, "dim", no_wrap=True, overflow="ellipsis") for text in list(self.events)]
        return events + [Text()] * (EVENT_LINES - len(events))


def headline(evals: Mapping[str, float]) -> list[tuple[str, float]]:
    """Picks pass@1, the pass@k of the largest k and the distinct solutions of each environment, out of `short_evals`."""
    passes = [key for name in evals if (key := EvalKey.parse(f"eval/{name}")) is not None]
    distinct = [key for name in evals if (key := EnvKey.parse(f"eval/{name}")) is not None]
    out = []
    for env in dict.fromkeys(key.env for key in (*passes, *distinct)):
        ks = [key.k for key in passes if key.env == env]
        names = [f"{env}/pass@{k}" for k in sorted({min(ks), max(ks)})] if ks else []
        out += [(name, evals[name]) for name in (*names, f"{env}/distinct_correct") if name in evals]
    return out


def spark_text(values: Sequence[float], width: int = 32) -> str:
    """Draws the last `width` values as block characters, with a gap where a value is not finite."""
    shown = list(values)[-width:]
    kept = [v for v in shown if math.isfinite(v)]
    if not kept:
        return ""
    low, span = min(kept), max(kept) - min(kept)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(
        blocks[min(7, int((v - low) / span * 8)) if span > 0.0 else 3] if math.isfinite(v) else " " for v in shown
    )


def _bar(done: float, total: float) -> ProgressBar:
    # A total of zero would divide by zero inside the bar: an empty bar stands for a stage that has not begun.
    return ProgressBar(total=total or 1.0, completed=min(done, total), width=SPARK_WIDTH)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
