"""check_build.py SOURCE BUILD: what can be known of the CUDA build without a GPU.

Builds kernels and GPU programs with warnings as errors for sm_90a, the first and the newest other
architecture (the cuda-all preset builds them all), reads registers, stack and instructions of every
kernel from the machine code, and runs the programs to see what they say without a device. Exit
status 77, with the reason: there is no nvcc, or no cuobjdump to look with.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

ARCHITECTURES = ["sm_80", "sm_90a", "sm_120"]
WGMMA = "sm_90a"  # Where products are HGMMA; elsewhere the same kernels hold HMMA.

# Kernels that a step spends its time in: no local memory, no spills. And what their inner loops
# must be made of.
PRODUCT = "HGMMA or HMMA"
HOT = {
    "LinearDecodeKernel": PRODUCT,
    "LinearPrefillKernel": PRODUCT,
    "ExpertKernel": PRODUCT,
    "AttentionDecodeKernel": "HMMA",
    "AttentionPrefillKernel": "HMMA",
    "RmsNormKernel": None,
    "RopeKernel": None,
    "SumSlotsKernel": None,
    "SelectExpertsKernel": None,
    "GroupByExpertKernel": None,
}
REGISTERS_OF_A_MULTIPROCESSOR = 65536


def threads_of(name):
    """Threads of a block, for kernels where registers could keep it from starting at all."""
    if expert := re.search(r"12ExpertKernelI\S+?ELb[01]ELi(\d)E", name):
        return 128 * int(expert.group(1))  # kGroups follows kIsGateUp.
    return 256 if is_named(name, "LinearPrefillKernel") else 1024 if is_named(name, "SampleKernel") else 32


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


def functions(text):
    """(architecture, kernel's mangled name, lines) of each function that cuobjdump shows."""
    architecture, name, lines = None, None, []
    for line in text.splitlines():
        new_code = re.match(r"arch = (sm_\w+)", line)
        new_function = re.match(r"\s*Function\s?:?\s?(\S+?):?$", line)
        if new_code or new_function:
            if name:
                yield architecture, name, lines
            name, lines = new_function and new_function.group(1), []
            architecture = new_code.group(1) if new_code else architecture
        elif name:
            lines.append(line)
    if name:
        yield architecture, name, lines


def check_resources(text):
    """Registers and local memory of each kernel; returns how many hot ones were seen."""
    seen = {(architecture, kernel): 0 for architecture in ARCHITECTURES for kernel in HOT}
    for architecture, name, lines in functions(text):
        use = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", "".join(lines))}
        for kernel in HOT:
            if not is_named(name, kernel):
                continue
            seen[architecture, kernel] += 1
            if use["STACK"] or use["LOCAL"]:
                fail(f"{name} for {architecture} uses local memory: {use}")
        if use["REG"] * threads_of(name) > REGISTERS_OF_A_MULTIPROCESSOR:
            fail(f"{name} for {architecture} has {use['REG']} registers for {threads_of(name)} threads")
        print(f"  {architecture:7} {use['REG']:4} registers  {use['STACK']:4} bytes of stack  {name[:110]}")
    for (architecture, kernel), count in seen.items():
        if count == 0:
            fail(f"no {kernel} for {architecture}: is its name still the same?", text[:2000])
    return sum(seen.values())


def check_instructions(text):
    """The matrix instructions of each hot kernel, and no loads from local memory."""
    checked = dict.fromkeys(ARCHITECTURES, 0)
    for architecture, name, lines in functions(text):
        found = set(re.findall(r"\b(HGMMA|HMMA|LDL|STL)\b", "\n".join(lines)))
        for kernel, wanted in HOT.items():
            if wanted is None or not is_named(name, kernel):
                continue
            if wanted == PRODUCT:
                wanted = "HGMMA" if architecture == WGMMA else "HMMA"
            checked[architecture] += 1
            if wanted not in found:
                fail(f"{name} for {architecture} has no {wanted}, only {sorted(found)}")
            if found & {"LDL", "STL"}:
                fail(f"{name} for {architecture} touches local memory")
    if 0 in checked.values():
        fail(f"machine code was not found for all architectures: {checked}", text[:2000])
    return sum(checked.values())


def main():
    source, build = map(pathlib.Path, sys.argv[1:3])
    if shutil.which("nvcc") is None:
        print("SKIPPED: no nvcc on PATH, so the CUDA kernels are not compiled here")
        sys.exit(77)
    codes = ";".join(name.replace("sm_", "") + "-real" for name in ARCHITECTURES)
    configured = run(
        "cmake", "--preset", "gpu", "-B", str(build), f"-DCMAKE_CUDA_ARCHITECTURES={codes}", cwd=source
    )
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
