"""check_build.py SOURCE BUILD: what can be known of the CUDA build without a GPU.

Builds kernels and GPU programs for sm_90a with warnings as errors, reads registers, stack and
instructions of every kernel from the machine code, and runs the programs to see what they say
without a device. Exit status 77, with the reason: there is no nvcc, or no cuobjdump to look with.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

# Kernels that a step spends its time in: no local memory, no spills. And what their inner loops
# must be made of.
HOT = {
    "LinearDecodeKernel": "HGMMA",
    "LinearPrefillKernel": "HGMMA",
    "ExpertKernel": "HGMMA",
    "AttentionDecodeKernel": "HMMA",
    "AttentionPrefillKernel": "HMMA",
    "RmsNormKernel": None,
    "RopeKernel": None,
    "SumSlotsKernel": None,
    "SelectExpertsKernel": None,
    "GroupByExpertKernel": None,
}
# Threads of a block, for those where registers could keep it from starting at all.
THREADS = {"LinearPrefillKernel": 256, "ExpertKernel": 384, "SampleKernel": 1024}
REGISTERS_OF_A_MULTIPROCESSOR = 65536


def is_named(mangled, kernel):
    """A mangled name has each part's length before it."""
    return f"{len(kernel)}{kernel}" in mangled


def fail(message, output=""):
    print(output[-6000:])
    sys.exit(f"FAILED: {message}")


def run(*command, **options):
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def find_cuobjdump():
    candidates = [shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    for folder in sys.path:
        candidates.append(os.path.join(folder, "triton/backends/nvidia/bin/cuobjdump"))
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def check_resources(text):
    """Registers and local memory of each kernel; returns how many hot ones were seen."""
    seen = dict.fromkeys(HOT, 0)
    name = None
    for line in text.splitlines():
        if match := re.match(r"\s*Function (\S+):", line):
            name = match.group(1)
        elif name and "REG:" in line:
            use = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", line)}
            for kernel in HOT:
                if not is_named(name, kernel):
                    continue
                seen[kernel] += 1
                if use["STACK"] or use["LOCAL"]:
                    fail(f"{name} uses local memory: {line.strip()}")
            for kernel, threads in THREADS.items():
                if is_named(name, kernel) and use["REG"] * threads > REGISTERS_OF_A_MULTIPROCESSOR:
                    fail(f"{name} has {use['REG']} registers for {threads} threads")
            print(f"  {use['REG']:4} registers  {use['STACK']:4} bytes of stack  {name[:110]}")
            name = None
    for kernel, count in seen.items():
        if count == 0:
            fail(f"no {kernel} in the library: is its name still the same?", text[:2000])
    return sum(seen.values())


def check_instructions(text):
    """The matrix instructions of each hot kernel, and no loads from local memory."""
    found = {}
    name = None
    for line in text.splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            name = match.group(1)
            found[name] = set()
        elif name:
            found[name].update(re.findall(r"\b(HGMMA|HMMA|LDL|STL)\b", line))
    checked = 0
    for name, instructions in found.items():
        for kernel, wanted in HOT.items():
            if wanted is None or not is_named(name, kernel):
                continue
            checked += 1
            if wanted not in instructions:
                fail(f"{name} has no {wanted}, only {sorted(instructions)}")
            if instructions & {"LDL", "STL"}:
                fail(f"{name} touches local memory")
    if checked == 0:
        fail("no machine code was found", text[:2000])
    return checked


def main():
    source, build = map(pathlib.Path, sys.argv[1:3])
    if shutil.which("nvcc") is None:
        print("SKIPPED: no nvcc on PATH, so the CUDA kernels are not compiled here")
        sys.exit(77)
    configured = run("cmake", "--preset", "gpu", "-B", str(build), cwd=source)
    if configured.returncode != 0:
        fail("the gpu preset does not configure", configured.stdout)
    built = run("cmake", "--build", str(build), "-j", "2")
    if built.returncode != 0:
        fail("the gpu preset does not build", built.stdout)

    # Without a device the programs say why and leave with a code of their own.
    program = build / "tests/gpu/gpu_parity"
    said = run(str(program), "--quick")
    if said.returncode == 77:
        if not re.search(r"SKIPPED: no CUDA device: (no NVIDIA driver|the NVIDIA driver)", said.stdout):
            fail("without a device gpu_parity does not say what is missing", said.stdout)
        print(said.stdout.strip())
        script = run(
            str(source / "tests/gpu/run.sh"),
            str(build / "out"),
            cwd=source,
            env={**os.environ, "SHOAL_GPU_BUILD": str(build)},
        )
        if script.returncode != 77 or "SKIPPED: no CUDA device" not in script.stdout:
            fail(f"run.sh leaves with {script.returncode} where there is no device", script.stdout)
    elif said.returncode != 0:
        fail("parity on this machine's GPU", said.stdout)

    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("SKIPPED: built, but there is no cuobjdump to read registers and instructions with")
        sys.exit(77)
    library = str(build / "kernels/libshoal_cuda.a")
    count = check_resources(run(cuobjdump, "--dump-resource-usage", library).stdout)
    checked = check_instructions(run(cuobjdump, "--dump-sass", library).stdout)
    print(f"{count} hot kernels without local memory, {checked} with their matrix instructions")


main()
