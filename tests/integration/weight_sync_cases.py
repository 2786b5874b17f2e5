"""Runs the cases of test_weight_sync.py in a process of their own: vLLM takes the process over (threads, process groups).

Each case builds a tiny random Hugging Face model, serves it, changes it and compares log-probs after every update.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from integration.weight_sync_bench import MAX_LEN, TIMEOUT, TOLERANCE, bench, in_thread, prompts, requests_for, sendable

from actors.inference import Aborted, Completion, EngineDead, Request, ResponseFailed, SamplingParams
from learner.policy import Policy
from learner.weights.network import listen
from learner.weights.protocol import WeightSyncError, make_manifest, make_rendezvous
from learner.weights.publisher import Publisher


def many_updates(folder: str, family: str, tied: bool, updates: int = 20, **options: Any) -> dict[str, float]:
    """Compares engine scores and sampled log-probs with the twin's after every update. options: of the bench."""
    sequences = [*prompts(1, 2), *prompts(1, 3), *prompts(2, 40), *prompts(1, MAX_LEN)]
    with bench(folder, family, tied, **options) as b:
        assert tied == ("lm_head.weight" not in dict(sendable(b.model)))
        worst = {"score": b.worst_score(sequences), "sample": 0.0}
        moved = 0.0
        for _ in range(updates):
            before = b.logprobs(sequences[-1])
            b.perturb()
            moved = max(moved, float((b.logprobs(sequences[-1]) - before).abs().max()))
            b.update()
            requests = requests_for(4, SamplingParams(8, temperature=0.7), seed=b.version)
            responses = b.sample(requests)
            assert {(r.version_min, r.version_max) for r in responses} == {(b.version, b.version)}
            worst["score"] = max(worst["score"], b.worst_score(sequences))
            worst["sample"] = max(worst["sample"], b.worst_sample(requests, responses))
            assert max(worst.values()) <= TOLERANCE, f"update {b.version}: {worst}"
        assert moved > 0.1, "the perturbation is too small to see a stale weight by"
        assert b.engine.stats().updates == updates
    return worst


def updates_in_precision(folder: str, family: str, tied: bool, mode: str, updates: int = 3) -> dict[str, float]:
    """Standard deviation of engine minus trainer log-probs over all updates, in nats: the trainer in the engine's `mode`, and
    with its head's product taken in the other precision. `mixed`: a trainer in fp32 sends to an engine in bf16.

    But for `mixed`, the layers are silenced: rounding in them, different in every kernel, is as large as the head's.
    """
    sequences = prompts(12, 60)
    head = mode == "bf16-fp32head"
    gaps: dict[str, list[float]] = {"same": [], "other head": []}
    with bench(folder, family, tied, dtype="bfloat16", fp32_head=head) as b:
        for _ in range(updates):
            cast(b.model, torch.float32)
            b.perturb()
            if mode != "mixed":
                cast(silence_layers(b.model), torch.bfloat16)
            b.update()
            twin = cast(copy.deepcopy(b.model), torch.bfloat16)
            scores = [x for row in b.engine.sequence_logprobs(sequences) for x in row]
            for name, fp32_head in (("same", head), ("other head", not head)):
                expected = trainer_scores(Policy(copy.deepcopy(twin), fp32_head=fp32_head), sequences)
                gaps[name] += [a - e for a, e in zip(scores, expected, strict=True)]
    return {name: float(torch.tensor(gap).std()) for name, gap in gaps.items()}


def silence_layers(model: Any) -> Any:
    """Makes every layer add nothing to the embedding, and the last norm only normalise."""
    one = 0.0 if "Gemma" in type(model).__name__ else 1.0  # Gemma's norms multiply by 1 + weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(one)
    return model


def cast(model: Any, dtype: torch.dtype) -> Any:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def trainer_scores(policy: Policy, sequences: Sequence[Sequence[int]]) -> list[float]:
    scores: list[float] = []
    for ids in sequences:
        tokens, n = torch.tensor([list(ids)]), len(ids) - 1
        with torch.no_grad():
            scores += policy(tokens, torch.arange(n + 1)[None], torch.arange(n), tokens[0, 1:], 1.0)[0].tolist()
    return scores


def sampling_rules(folder: str) -> dict[str, float]:
    """Checks temperature, top_p, greedy, stop tokens, seeds, prefix cache and refusals on one engine."""
    with bench(folder, "qwen3", True) as b:
        worst = {}
        for sampling in (
            SamplingParams(16),
            SamplingParams(16, 1.3),
            SamplingParams(16, 0.5),
            SamplingParams(16, 1.0, 0.7),
        ):
            requests = requests_for(32, sampling)
            responses = b.sample(requests)
            assert all(r.finish == "length" and len(r.response_ids) == len(r.logprobs) == 16 for r in responses)
            worst[f"T={sampling.temperature} p={sampling.top_p}"] = b.worst_sample(requests, responses)
            # The same requests, other company: half as many, in another order, and one by one.
            again = b.sample(requests[::-2])
            assert [r.response_ids for r in again] == [r.response_ids for r in responses[::-2]]
            assert b.sample(requests[3:4])[0].response_ids == responses[3].response_ids
        assert max(worst.values()) <= TOLERANCE, worst
        same = [Request(f"s{i}", prompts(1, 9)[0], SamplingParams(16), seed=i) for i in range(8)]
        assert len({r.response_ids for r in b.sample(same)}) == 8, "different seeds give different responses"

        greedy = requests_for(8, SamplingParams(6, temperature=0.0))
        for request, response in zip(greedy, b.sample(greedy), strict=True):
            table = b.logprobs((*request.prompt_ids, *response.response_ids))[len(request.prompt_ids) - 1 :]
            assert table.argmax(dim=-1).tolist() == list(response.response_ids)

        # Token 1 is the model's own end of sequence: it ends a response only where the request says so.
        stops = set(range(1, 20))
        stopping = requests_for(32, SamplingParams(30, stop_token_ids=tuple(stops)))
        for response in b.sample(stopping):
            assert not stops.intersection(response.response_ids[:-1])
            assert (response.finish == "stop") == (response.response_ids[-1] in stops)
        free = b.sample(requests_for(32, SamplingParams(60)))
        assert all(r.finish == "length" and len(r.response_ids) == 60 for r in free)
        assert any(1 in r.response_ids for r in free), "no response met the end token: the check is empty"

        shared = prompts(1, 80)[0]  # longer than a cache block: sampled first, so that scoring could find it cached
        b.sample([Request("warm", shared, SamplingParams(8), 0)])
        assert b.worst_score([shared, (*shared, 5, 6, 7)]) <= TOLERANCE
        assert b.engine.sequence_logprobs([[5]]) == [[]]

        refusals = {
            "r0 needs 90 prompt + 8 response = 98 tokens, more than max_model_len 96": Request(
                "r0", prompts(1, 90)[0], SamplingParams(8), 0
            ),
            "outside the vocabulary 0..63": Request("r0", (3, 64), SamplingParams(8), 0),
            "the prompt of r0 is empty": Request("r0", (), SamplingParams(8), 0),
        }
        for sentence, request in refusals.items():
            message = error_of(ValueError, lambda request=request: b.engine.submit([request], print))
            assert sentence in message, message
        assert "97 tokens, more than max_model_len 96" in error_of(
            ValueError, lambda: b.engine.sequence_logprobs([prompts(1, 97)[0]])
        )
    return worst


def groups_share_their_prompt(folder: str) -> dict[str, int]:
    """Counts the tokens of a group's prompts that were not computed again, before and after an update, and with a later group."""
    size, length = 8, 80
    with bench(folder, "qwen3", True) as b:
        prompt = prompts(1, length)[0]
        group = [Request(f"g{i}", prompt, SamplingParams(8), seed=i) for i in range(size)]
        counts: dict[str, int] = {}

        def sample(name: str) -> list[Completion]:
            before = b.engine.stats().cached_tokens
            responses = b.sample(group)
            counts[name] = b.engine.stats().cached_tokens - before
            assert b.worst_sample(group, responses) <= TOLERANCE, name
            return responses

        first = sample("a group")
        assert [r.response_ids for r in sample("the group again")] == [r.response_ids for r in first]
        b.perturb(0.2)
        b.update()
        changed = sample("after an update")  # its log-probs are the new weights': nothing of the old prefix was read
        assert [r.response_ids for r in changed] != [r.response_ids for r in first]
        assert b.engine.stats().prompt_tokens == 3 * size * length
    return counts


def update_in_flight(folder: str) -> int:
    """Checks that tokens before an update come from the old weights and later ones from the new; returns where it changed."""
    with bench(folder, "llama", False) as b:
        old = hf.AutoModelForCausalLM.from_pretrained(Path(folder) / "llama-False", dtype=torch.float32).eval()
        first_done, long_done = threading.Event(), Future()
        short = Request("short", prompts(1, 9)[0], SamplingParams(12), 0)
        long = Request("long", prompts(1, 9)[0], SamplingParams(80), 1)

        def on_done(response: Completion | BaseException) -> None:
            if isinstance(response, Completion) and response.id == "short":
                b.perturb(0.2)  # on the engine's thread: it makes no token while the twin changes
                changed.append(in_thread(b.update))
                first_done.set()
                started.wait(TIMEOUT)
            else:
                long_done.set_result(response)

        changed: list[Future] = []
        started = threading.Event()
        original = b.engine.receive_weights

        def receive(manifest, timeout_s):
            waiting = in_thread(lambda: original(manifest, timeout_s))
            started.set()
            return waiting.result(TIMEOUT)

        b.engine.receive_weights = receive
        b.engine.submit([short, long], on_done)
        assert first_done.wait(TIMEOUT)
        response = long_done.result(TIMEOUT)
        changed[0].result(TIMEOUT)
        assert (response.version_min, response.version_max) == (0, 1)
        tokens = (*long.prompt_ids, *response.response_ids)
        wrong = []
        for model in (old, b.model):
            table = b.logprobs(tokens, model)[len(long.prompt_ids) - 1 :]
            expected = table.gather(1, torch.tensor(response.response_ids)[:, None])[:, 0]
            wrong.append((torch.tensor(response.logprobs) - expected).abs() > TOLERANCE)
        split = int(wrong[0].int().argmax())
        assert 12 <= split < len(response.response_ids)
        assert not wrong[0][:split].any()
        assert not wrong[1][split:].any()
        assert wrong[1][:split].any()
        after = requests_for(8, SamplingParams(8))
        assert b.worst_sample(after, b.sample(after)) <= TOLERANCE
    return split


def asleep(folder: str) -> dict[str, int]:
    """Sleeps with responses under way, is sent weights asleep, sleeps and wakes with the same ones. On a CPU vLLM frees no memory,
    and does all the rest. Returns how many prompt tokens were found in the cache, by when."""
    sequences = [*prompts(2, 3, seed=1), *prompts(2, 40, seed=1)]  # with no prefix of the group's
    group = [Request(f"g{i}", prompts(1, 80)[0], SamplingParams(4), seed=i) for i in range(4)]
    found: dict[str, int] = {}
    with bench(folder, "qwen3", True) as b:

        def sample(when: str) -> list[Completion]:
            before = b.engine.stats().cached_tokens
            responses = b.sample(group)
            found[when] = b.engine.stats().cached_tokens - before
            return responses

        first = sample("awake")
        ended: list[Completion | BaseException] = []
        b.engine.submit([Request("long", prompts(1, 5)[0], SamplingParams(MAX_LEN - 5), seed=1)], ended.append)
        b.engine.sleep()
        assert [type(end) for end in ended] == [Aborted]
        for memory in ("weights", "kv_cache"):
            b.engine.wake(memory)
        assert sample("after a sleep") == first
        b.engine.sleep()
        b.perturb()
        b.update()  # nobody has woken it
        b.engine.wake("kv_cache")
        assert b.worst_score(sequences) <= TOLERANCE
        responses = sample("after a sleep and an update")
        assert b.worst_sample(group, responses) <= TOLERANCE
        assert {r.version_min for r in responses} == {1}
        assert sample("awake again") == responses
    return found


def failures(folder: str) -> list[str]:
    """Breaks transfers: responses in flight end with the error, and a later complete transfer heals the engine."""
    messages = []
    with bench(folder, "qwen2", True) as b:
        b.perturb()
        tensors = sendable(b.model)
        incomplete = make_manifest(tensors[:-3], 1, 2**14)
        broken = in_thread(lambda: b.engine.receive_weights(incomplete, TIMEOUT))
        b.publisher.publish(incomplete, tensors[:-3])
        messages.append(error_of(WeightSyncError, lambda: broken.result(TIMEOUT)))
        assert "load of version 1: the manifest has nothing for model." in messages[-1], messages[-1]

        manifest = make_manifest(tensors, 2, 2**14)
        flying: Future = Future()
        b.engine.submit([Request("r", prompts(1, 9)[0], SamplingParams(80), 0)], flying.set_result)
        torn = in_thread(lambda: b.engine.receive_weights(manifest, TIMEOUT))
        halfway = [*tensors[:5], ("nonsense", torch.zeros(1))]
        messages.append(error_of(WeightSyncError, lambda: b.publisher.publish(manifest, halfway)))
        messages.append(error_of(WeightSyncError, lambda: torn.result(TIMEOUT)))
        assert isinstance(flying.result(TIMEOUT), ResponseFailed)
        assert b.engine.stats().in_flight == 0

        listener = listen("127.0.0.1")
        learner, generator = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "gloo", 1)
        joined = in_thread(lambda: b.engine.connect_weights(generator, TIMEOUT))
        b.publisher = Publisher(learner, TIMEOUT, listener=listener)
        joined.result(TIMEOUT)
        b.version = 2
        b.update()
        assert b.worst_score(prompts(3, 40)) <= TOLERANCE
        after = requests_for(8, SamplingParams(8))
        assert b.worst_sample(after, b.sample(after)) <= TOLERANCE

        lonely = make_manifest(tensors, 4)
        messages.append(error_of(WeightSyncError, lambda: b.engine.receive_weights(lonely, 0.5)))
        assert "generator 0 during start of version 4" in messages[-1], messages[-1]

        # An exception on the engine's thread reaches everyone who waits, and later callers.
        end: Future = Future()

        def explode(response: Completion | BaseException) -> None:
            raise KeyError("a callback's own bug")

        b.engine.submit(
            [Request("bad", prompts(1, 9)[0], SamplingParams(2), 0)],
            explode,
        )
        try:
            b.engine.submit([Request("other", prompts(1, 9)[0], SamplingParams(80), 0)], end.set_result)
            assert isinstance(end.result(TIMEOUT), EngineDead)
        except EngineDead:
            pass
        b.engine.close()
        messages.append(error_of(EngineDead, lambda: b.engine.sequence_logprobs([[1, 2]])))
        assert "a callback's own bug" in messages[-1], messages[-1]
    return messages


def error_of(kind: type[BaseException], work) -> str:
    try:
        work()
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} was not raised")
