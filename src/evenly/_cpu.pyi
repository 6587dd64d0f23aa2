# The compiled kernels: addresses and numbers in (csrc/bindings.cpp).

def forward(
    outer: int, batch: int, group: int, inner: int, channels: int, stride: int, dtype: int, kind: int, arg: float,
    x: int, residual: int, weight: int, bias: int, mask: int, mask_elements: bool, weighs: bool, zeroes: bool,
    y: int, bits: int, mean: int, m2: int, rstd: int, count: int, eps: float, centered: bool, measure: bool,
    apply: bool, threads: int, running_mean: int, running_var: int, batches: int, skipped: int, factor: float,
    unbiased: bool, skip_nonfinite: bool, /,
) -> bool: ...  # fmt: skip
def backward(
    outer: int, batch: int, group: int, inner: int, channels: int, stride: int, dtype: int, kind: int, arg: float,
    dy: int, x: int, residual: int, bits: int, weight: int, bias: int, mask: int, mask_elements: bool, weighs: bool,
    zeroes: bool, mean: int, rstd: int, counts: int, count: float, sum_g: int, sum_gx: int, dweight: int, dbias: int,
    dx: int, dresidual: int, centered: bool, measured: bool, sum: bool, input: bool, threads: int, /,
) -> bool: ...  # fmt: skip

class Pair:
    def __init__(
        self, outer: int, batch: int, group: int, inner: int, channels: int, stride: int, dtype: int, kind: int,
        arg: float, eps: float, centered: bool, /,
    ) -> None: ...  # fmt: skip
    def walks(self) -> bool: ...
    def forward(
        self, x: int, weight: int, bias: int, y: int, mean: int, rstd: int, threads: int, running_mean: int,
        running_var: int, batches: int, skipped: int, factor: float, unbiased: bool, skip_nonfinite: bool, /,
    ) -> bool: ...  # fmt: skip
    def given(
        self, x: int, weight: int, bias: int, y: int, mean: int, var: int, rstd: int, threads: int, /
    ) -> bool: ...
    def backward(
        self, dy: int, x: int, weight: int, bias: int, mean: int, rstd: int, dweight: int, dbias: int, dx: int,
        measured: bool, threads: int, /,
    ) -> bool: ...  # fmt: skip

def isa() -> str: ...
def isas() -> list[str]: ...
def use_isa(name: str, /) -> bool: ...
def advise_huge(address: int, bytes: int, /) -> None: ...
