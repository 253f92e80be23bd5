#!/usr/bin/env python3
"""What nvcc makes of the CUDA kernels: no spills, the instructions that they are written for, and
registers within their limits.

usage: check_build.py [--arch 80 90 ...] [--all] [--only FILE.cu ...] [--figures]

Needs nvcc and nvdisasm (PATH, or the PyPI package nvidia-cuda-nvdisasm in .venv), no GPU.  Without
them it says what is missing and ends with 77, which is "skipped".  Every warning is an error.
--all compiles every file for every architecture of the build; --figures prints a table.
"""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "cuda"
SKIPPED = 77
ARCHS = ("80", "90", "100")
HOPPER = "90a"  # of files named *_wgmma.cu, which are for no other
REGISTERS = 65536  # of a multiprocessor, on all of ARCHS

# (file, kernel, instructions that it must have, registers of a thread at most).  HMMA.16816: tensor
# cores; HGMMA: the same for a warp group; LDSM: ldmatrix; LDGSTS: cp.async; .128: 16 bytes at once.
BF16, F16 = r"HMMA\.16816\.F32\.BF16", r"HMMA\.16816\.F32$"
TILES = (r"LDSM\.16\.M88\.4", r"LDGSTS.E.*\.128")
EXPECTED = [
    ("attention_mma.cu", "attention_kernelI4bf16", (BF16, *TILES, "LDSM.16.MT88.4"), 255),
    ("attention_mma.cu", "attention_kernelI3f16", (F16, *TILES, "LDSM.16.MT88.4"), 255),
    ("attention_wgmma.cu", "attention_wgmma_kernelI4bf16",
     (r"HGMMA\.64x128x16\.F32\.BF16", TILES[1]), 255),
    ("attention_wgmma.cu", "attention_wgmma_kernelI3f16",
     (r"HGMMA\.64x128x16\.F32$", TILES[1]), 255),
    ("columns_mma.cu", "sums_mma_kernelI4bf16", (BF16, *TILES), 168),
    ("columns_mma.cu", "sums_mma_kernelI3f16", (F16, *TILES), 168),
    ("columns_mma.cu", "parts_mma_kernelI4bf16", (BF16, *TILES), 168),
    ("columns_mma.cu", "parts_mma_kernelI3f16", (F16, *TILES), 168),
    ("columns.cu", "parts_kernel", (), 128),
    ("columns.cu", "sums_kernel", (), 64),
    ("linear_rows.cu", "mma_kernelI4bf16", (BF16,), 192),
    ("linear_rows.cu", "mma_kernelI3f16", (F16,), 192),
    ("linear_rows.cu", "mma_kernel.*Lb1", (r"LDG.E.*\.128",), 192),  # rows that are aligned
    ("linear_rows.cu", "f32_kernel.*Lb1", (r"LDG.E.*\.128",), 64),
    ("decode_attention.cu", "split_kernel", (r"LDG.E.*\.128",), 128),
    ("decode_attention_mma.cu", "split_mma_kernelI4bf16", (BF16, *TILES, "LDSM.16.MT88.4"), 224),
    ("decode_attention_mma.cu", "split_mma_kernelI3f16", (F16, *TILES, "LDSM.16.MT88.4"), 224),
    ("kv_append.cu", "append_kernelI(4bf|3f)", (r"LDG.E.*\.64", r"STG.E.*\.64"), 64),
    ("rope.cu", "rope_kernelI(4bf|3f)", (r"LDG.E.*\.64", r"STG.E.*\.64"), 64),
    ("rmsnorm.cu", "rmsnorm_kernel.*Lb1", (r"LDG.E.*\.128",), 40),
    ("kv.cu", "gather_kernel", (r"LDG.E.*\.128", r"STG.E.*\.128"), 40),
]


def find_nvdisasm():
    bins = (ROOT / ".venv").glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm")
    return shutil.which("nvdisasm") or next((str(path) for path in bins), None)


def jobs_of(sources, archs):
    """(source, arch) to compile."""
    return [(source, HOPPER if source.stem.endswith("_wgmma") else arch)
            for arch in archs for source in sources
            if arch == "90" or not source.stem.endswith("_wgmma")]


def compile_file(source, arch, folder):
    """(cubin, what ptxas said); ends the program if nvcc does not like the file."""
    cubin = Path(folder) / f"{source.stem}_{arch}.cubin"
    done = subprocess.run(
        ["nvcc", "-std=c++20", "-O3", "-fmad=false", f"-I{ROOT}", f"-I{KERNELS / 'ptx'}",
         "-Werror", "all-warnings", "-Xptxas=-v,-warn-spills,-warn-lmem-usage",
         "-Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas", f"-arch=sm_{arch}", "-cubin",
         "-o", cubin, source], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{source.name} for sm_{arch}: nvcc:\n{done.stdout}{done.stderr}")
    return cubin, done.stdout + done.stderr


def resources(said):
    """{kernel: {registers, spills}} of ptxas's report."""
    out = {}
    for name, body in re.findall(r"Compiling entry function '(\w+)'(.*?)Used (?=\d)", said, re.S):
        used = re.search(re.escape(f"'{name}'") + r".*?Used (\d+) registers", said, re.S)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, "
                           r"(\d+) bytes spill loads", body)
        out[name] = {"registers": int(used[1]), "spills": sum(map(int, spills.groups()))}
    return out


def instructions(nvdisasm, cubin):
    """{kernel: [instructions]}"""
    text = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True,
                          check=True).stdout
    out, here = {}, None
    for line in text.splitlines():
        section = re.match(r"//-+ \.text\.(\w+)", line)
        if section:
            here = out.setdefault(section[1], [])
        found = re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", line)
        if found and here is not None:
            here.append(found[1])
    return out


def shown(name):
    """split_kernel<bf16, 4> of a mangled name."""
    done = subprocess.run(["c++filt", "-p", name], capture_output=True, text=True)
    return re.sub(r"^void ", "", done.stdout.strip()) if done.returncode == 0 else name


def check(source, arch, kernels):
    """Sentences about what is wrong; kernels: {name: {registers, spills, code}}."""
    wrong = [f"{shown(name)}: {k['spills']} bytes of stack or spills"
             for name, k in kernels.items() if k["spills"]]
    for file, pattern, needed, most in EXPECTED:
        if file != source.name:
            continue
        matching = {n: k for n, k in kernels.items() if re.search(pattern, n)}
        if not matching:
            wrong.append(f"no kernel is named {pattern}")
        for name, k in matching.items():
            wrong += [f"{shown(name)}: no {what}" for what in needed
                      if not any(re.match(what, code) for code in k["code"])]
            if k["registers"] > most:
                wrong.append(f"{shown(name)}: {k['registers']} registers, at most {most}")
    return [f"{source.name} for sm_{arch}: {what}" for what in wrong]


def print_figures(source, arch, kernels):
    for name, k in sorted(kernels.items()):
        count = {what: sum(bool(re.match(what, code)) for code in k["code"])
                 for what in ("HG?MMA", "LDSM", r"LDGSTS.*\.128", r"LDG\..*\.128", r"STG.*\.128")}
        warps = min(64, REGISTERS // (32 * (k["registers"] + 7 & ~7)))
        print(f"| sm_{arch} | {source.stem} | {shown(name)} | {k['registers']} | {warps} | "
              + " | ".join(str(n) for n in count.values()) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["80", "90"])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="FILE.cu", help="no other files")
    parser.add_argument("--figures", action="store_true")
    args = parser.parse_args()
    nvdisasm = find_nvdisasm()
    missing = [name for name, path in (("nvcc", shutil.which("nvcc")), ("nvdisasm", nvdisasm))
               if not path]
    if missing:
        print(f"skipped: {' and '.join(missing)} cannot be found")
        return SKIPPED
    files = {KERNELS / file for file, *_ in EXPECTED}
    sources = [source for source in sorted(KERNELS.glob("*.cu") if args.all else files)
               if not args.only or source.name in args.only]
    jobs = jobs_of(sources, ARCHS if args.all else args.arch)
    wrong, n = [], 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for (source, arch), (cubin, said) in zip(
                jobs, pool.map(lambda job: compile_file(*job, folder), jobs)):
            code = instructions(nvdisasm, cubin)
            kernels = {name: {**found, "code": code.get(name, [])}
                       for name, found in resources(said).items()}
            n += len(kernels)
            wrong += check(source, arch, kernels)
            if args.figures:
                print_figures(source, arch, kernels)
    print("\n".join(wrong))
    print(f"{n} kernels of {len(jobs)} files, {len(wrong)} faults")
    return 1 if wrong or n == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
