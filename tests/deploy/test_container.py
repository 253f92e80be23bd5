"""The root file system of the image: complete, small, read-only, for any user."""
import os
import subprocess

import pytest

from deployment import BUILD, ROOT

ROOTFS = ROOT / "deploy" / "container" / "rootfs.sh"
PROGRAMS = ["winnow", "winnow-coordinator", "winnow-worker"]
NVIDIA = ("libcu", "libnccl")  # of a build with CUDA; from a toolkit that may be no package


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory):
    out = tmp_path_factory.mktemp("image") / "rootfs"
    subprocess.run([ROOTFS, BUILD / "bin", out], check=True, capture_output=True)
    return out


def files(rootfs):
    return [p for p in rootfs.rglob("*") if p.is_file() and not p.is_symlink()]


def test_it_is_small_and_holds_no_shell(rootfs):
    own = [p for p in files(rootfs) if not p.name.startswith(NVIDIA)]
    assert sum(p.stat().st_size for p in own) < 120e6
    programs = [p.name for p in files(rootfs) if os.access(p, os.X_OK) and ".so" not in p.name]
    assert sorted(programs) == PROGRAMS


def test_it_tells_versions_and_licences(rootfs):
    told = rootfs / "usr/share/winnow"
    version = (told / "version.txt").read_text().split()
    packages = dict(line.split() for line in (told / "packages.txt").read_text().splitlines())
    assert version[0] == "winnow-coordinator" and version[1][0].isdigit()
    assert "libc6:amd64" in packages
    for name in packages:
        if name.startswith(NVIDIA):
            continue
        assert packages[name] != "-"
        assert (told / "licences" / name.split(":")[0]).stat().st_size > 0


@pytest.mark.parametrize("uid,gid", [(65532, 65532), (1000700000, 0)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_runs_as_any_user_on_a_read_only_root(rootfs, program, uid, gid):
    if os.geteuid() != 0:
        pytest.skip("needs root: chroot and another user id")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec",
         'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; '
         'exec chroot --userspec="$2:$3" --groups= "$1" "/usr/bin/$4" --version',
         "sh", str(rootfs), str(uid), str(gid), program],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(program)
