"""Part `maths` of check.py: log-probs, exact entropy and their gradients against float64, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Say = Callable[..., None]  # (what, found, ok)


def maths(say: Say) -> None:
    import torch

    from learner.logprobs import token_logprobs

    generator = torch.Generator().manual_seed(0)
    n, d, v = 3000, 256, 5000
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, d, generator=generator, dtype=torch.float64) / d**0.5 * 2
    targets = torch.randint(v, (n,), generator=generator)
    up = torch.randn(2, n, generator=generator, dtype=torch.float64)

    def reference(h: Any, w: Any) -> tuple[list[Any], list[Any]]:
        h, w = h.double().requires_grad_(), w.double().requires_grad_()
        log_p = (h @ w.T / 0.9).log_softmax(-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        logp = log_p.gather(-1, targets[:, None])[:, 0]
        grads = torch.autograd.grad((up[0] * logp + up[1] * entropy).sum(), (h, w))
        return [logp.detach(), entropy.detach()], list(grads)

    def far(a: Any, b: Any) -> float:
        return float((a.double().cpu() - b).norm() / b.norm())

    for dtype, fp32_head, limit in (
        (torch.float32, False, 1e-5),
        (torch.bfloat16, True, 1e-4),  # the inputs are rounded for both; the product is float32
        (torch.bfloat16, False, 2e-2),
        (torch.float16, False, 3e-3),
    ):
        h, w = (x.to(dtype) for x in (hidden, weight))
        values, grads = reference(h, w)
        h, w = (x.cuda().requires_grad_() for x in (h, w))
        logp, entropy, *_ = token_logprobs(h, w, targets.cuda(), temperature=0.9, fp32_head=fp32_head)
        got = torch.autograd.grad((up[0].cuda().float() * logp + up[1].cuda().float() * entropy).sum(), (h, w))
        worst = [far(a, b) for a, b in zip([logp, entropy], values, strict=True)]
        name = str(dtype).removeprefix("torch.") + ("-fp32head" if fp32_head else "")
        say(f"{name}: log-prob, entropy against float64", f"{worst[0]:.1e}, {worst[1]:.1e}", max(worst) < limit)
        worst = [far(a, b) for a, b in zip(got, grads, strict=True)]
        rounding = 0.0 if dtype == torch.float32 else 1e-2  # the gradient itself is in the type
        say(f"{name}: gradients of hidden, weight", f"{worst[0]:.1e}, {worst[1]:.1e}", max(worst) < limit + rounding)
