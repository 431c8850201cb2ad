"""jaxgpt/optim/clip.py in PyTorch."""

import torch

CLIP_EPS = 1e-6


def global_norm(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    """On a CPU by rows: there torch adds up the squares of a tensor one by one, and the norm of a large one is low."""
    tensors = list(grads.values())
    if tensors[0].device.type == "cpu":
        tensors = [torch.linalg.vector_norm(tensor, dim=-1) for tensor in tensors]
    return torch.nn.utils.get_total_norm(tensors)


def clip_by_global_norm(grads: dict[str, torch.Tensor], norm: torch.Tensor, max_norm: float) -> dict[str, torch.Tensor]:
    """In place."""
    if not max_norm:
        return grads
    scale = torch.clamp(max_norm / (norm + CLIP_EPS), max=1.0)
    torch._foreach_mul_(list(grads.values()), scale)
    return grads
