"""Breaks the division into micro-batches and attention without a mask, one formula at a time (tests/mutation/runner.py)."""

from __future__ import annotations

from mutation.entries import Mutation, entries

_AT = "tests/learner/microbatches/"
PACKED = (
    f"{_AT}test_packed_attention.py -k attention_without or borders or another_mask or layers_that or blocks or window"
)
SHARED = f"{_AT}test_shared_prefix.py -k branch or row or positions or chunks"

MICROBATCH_MUTATIONS: tuple[Mutation, ...] = (
    *entries(
        "microbatches/partition",
        f"{_AT}test_partition.py",
        ("a part costs nothing by itself", "(best[i] + overhead)", "best[i]"),
        ("an overhead a row", "sizes[:most] * costs[i] + (best[i] + overhead)", "sizes[:most] * (costs[i] + overhead) + best[i]"),
        ("rows as long as the last", "sizes[:most] * costs[i]", "sizes[:most] * costs[-1]"),
        ("one row more than fits", "max(1, slots // max(1, lengths[i]))", "max(1, slots // max(1, lengths[i]) + 1)"),
        ("one row less than fits", "max(1, slots // max(1, lengths[i]))", "max(1, slots // max(1, lengths[i]) - 1)"),
        (
            "no bound on the slots",
            "min(count - i, max(1, slots // max(1, lengths[i])))",
            "count - i",
        ),
        ("slots of the shortest row", "slots // max(1, lengths[i])", "slots // max(1, lengths[-1])"),
        ("the most expensive division", "better = total < best[ends]", "better = (total > best[ends]) | np.isinf(best[ends])"),
        ("the last part of all", "np.copyto(begins[ends], i, where=better)", "np.copyto(begins[ends], i)"),
        ("the last cost of all", "np.copyto(best[ends], total, where=better)", "np.copyto(best[ends], total)"),
        ("parts from the end", "return parts[::-1]", "return parts"),
        ("attention costs nothing", "length * (1.0 + (prefix + length) / QUADRATIC)", "float(length)"),
        ("attention costs half", "(1.0 + (prefix + length) / QUADRATIC)", "(1.0 + (prefix + length) / (2 * QUADRATIC))"),
    ),
    *entries(
        "microbatches/units",
        f"{_AT}test_units.py",
        ("a prefix to its last token", "max(0, len(m.prompt) - 1)", "len(m.prompt)"),
        ("a prompt of one token is shared", "if units and prefix and own", "if units and own"),
        ("more than a micro-batch holds", "last.slots + own <= slots and ", ""),
        ("ranks of any work", "min(divisions, key=", "max(divisions, key="),
        ("a prompt on one rank", "for share in FINENESS]", "for share in (1e9,)]"),
        ("a mask of any size", "own * m.tokens <= MASK_PAIRS", "True"),
        ("a branch without its prefix costs less", "row_cost(own, prefix)", "row_cost(own)"),
        ("the whole trajectory's slots", "last.slots + own, last.cost", "last.slots + m.tokens, last.cost"),
        ("the rank with most to do", "key=lambda r: (load[r], ", "key=lambda r: (-load[r], "),
    ),
    *entries(
        "microbatches/shared_prefix",
        SHARED,
        ("branches see what comes", "seen = own & (back >= 0)", "seen = own"),
        ("branches see each other", "(owner[:, None] == q_owner[..., None]) |", "(owner[:, None] >= 0) |"),
        ("branches do not see their prefix", " | (owner == _PREFIX)[:, None]", ""),
        ("padding is seen", "np.full((len(call), deep), _NOBODY)", "np.full((len(call), deep), _PREFIX)"),
        ("no window in branches", "(seen if window is None else seen & (back < window))", "seen"),
        ("a window one token wider", "(back < window)", "(back <= window)"),
        ("positions without the prefix", "position = row[0].shared + np.concatenate", "position = np.concatenate"),
        ("another's prefix", "            prefix = begin\n", "            pass\n"),
        ("prefixes of two lengths in a row", " and branch.shared == row[0].shared", ""),
        ("a row for each branch", "room = max(branch.shared, FEWEST_QUERIES)", "room = 0"),
        ("queries without a bound", "room = max(branch.shared, FEWEST_QUERIES)", "room = 10**9"),
        ("a call for each row", "own * keys + CALL**2", "-1"),
        ("one call for all rows", "own * keys + CALL**2", "10**12"),
    ),
    *entries(
        "microbatches/packed_attention",
        SHARED,
        ("branches are whole", "device, tuple(starts.tolist()))", "device)"),
        ("another mask is taken for borders", "if row is None or list(row.borders[:-1]) != begins.tolist():", "if row is None:"),
        ("the prefix to its end", "(at < prefix[owner][:, None])", "(at <= prefix[owner][:, None])"),
        ("whole ones of other branches", "(whole[owner][:, None] == whole[owner]) & ", ""),
    ),
    *entries(
        "microbatches/packed_attention",
        PACKED,
        (
            "a window one token wider",
            "return (at[:, None] >= at) & (at[:, None] - at < self.window)",
            "return (at[:, None] >= at) & (at[:, None] - at <= self.window)",
        ),
        ("a window for longer trajectories alone", "or length <= self.window:", "or length <= self.window + 1:"),
        (
            "a window shows what comes",
            "return (at[:, None] >= at) & (at[:, None] - at < self.window)",
            "return at[:, None] - at < self.window",
        ),
        ("trajectories see each other", "own = owner[:, None] == owner", "own = owner[:, None] >= 0"),
        ("the mask without its window", "(seen if self.window is None else", "(seen if True else"),
        ("borders one token late", "right=True)", "right=False)"),
        ("every length a call of its own", "overhead=CALL**2)", "overhead=0.0)"),
        ("one call for all lengths", "overhead=CALL**2)", "overhead=1e12)"),
        ("a pair costs as a token", "[float(n) ** 2 for n in falling]", "[float(n) for n in falling]"),
        ("rows of several sequences are packed", "attention_mask is None and batch_size == 1", "attention_mask is None"),
        ("rows that are not packed", "packed = not allow_is_causal_skip and not use_vmap", "packed = not use_vmap"),
        ("a row behind a cache", "if packed and q_length == kv_length and", "if packed and"),
        ("what comes is not looked at", "later = sees(at[:-1], at[1:]).any() | (", "later = ("),
        (
            "another mask is not noticed",
            "later = sees(at[:-1], at[1:]).any() | (sees(last, first) != within).any()",
            "later = sees(at[:-1], at[1:]).any()",
        ),
        ("a wider window is not noticed", "later | sees(far[inside], first[inside]).any() |", "later |"),
        ("a narrower window is not noticed", " | ~sees(far[inside] - 1, first[inside]).all()", ""),
        ("blocks see what comes", "is_causal=band is None", "is_causal=False"),
        ("the model's scale is lost", "is_causal=band is None, scale=scale", "is_causal=band is None, scale=None"),
        ("dropout is lost", 'plain = not kwargs.get("dropout") and all(', "plain = all("),
        ("a bias is lost", 'for name in ("position_bias", "cache"))', 'for name in ("cache",))'),
        ("a cache is lost", 'for name in ("position_bias", "cache"))', 'for name in ("position_bias",))'),
    ),
)  # fmt: skip
