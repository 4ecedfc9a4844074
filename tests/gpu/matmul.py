"""The matrix ceiling of this GPU: the median rate of an 8192^3 bf16 product on random data, in
TFLOP/s, by whatever library PyTorch has. Prints the number last."""

import torch

n = 8192
a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
b = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
for _ in range(3):
    a @ b
times = []
for _ in range(15):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    a @ b
    end.record()
    torch.cuda.synchronize()
    times.append(begin.elapsed_time(end) / 1e3)
print(f"{2 * n**3 / sorted(times)[len(times) // 2] / 1e12:.1f}")
