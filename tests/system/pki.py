"""pki.py - certificates for the tests, made with the openssl command: authorities and what they sign."""
import subprocess
from pathlib import Path


def _openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder; `pem` is its own certificate."""

    def __init__(self, folder, name):
        self.folder = Path(folder) / name
        self.folder.mkdir()
        self.pem = self.folder / "ca.pem"
        self._key = self.folder / "ca.key"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                 "-keyout", self._key, "-out", self.pem, "-days", "2", "-subj", f"/CN={name}")

    def sign(self, name, subject=None, sans="IP:127.0.0.1,DNS:localhost", expired=False):
        """(certificate, key) for `subject`, good for two days, or for two days of a year ago."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                 key, "-out", request, "-subj", f"/CN={name}" if subject is None else subject)
        extensions.write_text(f"subjectAltName={sans}\n" if sans else "")
        serial = str(abs(hash((name, str(self.folder)))) + 1)
        if expired:  # x509 -days knows no begin before now; the ca command does
            self._sign_in_the_past(request, cert, extensions)
        else:
            _openssl("x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self._key, "-out",
                     cert, "-days", "2", "-extfile", extensions, "-set_serial", serial)
        return cert, key

    def _sign_in_the_past(self, request, cert, extensions):
        (self.folder / "index.txt").write_text("")
        (self.folder / "serial").write_text("01\n")
        config = self.folder / "ca.conf"
        config.write_text(f"[ca]\ndefault_ca=it\n[it]\ndir={self.folder}\n"
                          f"database={self.folder}/index.txt\nserial={self.folder}/serial\n"
                          f"new_certs_dir={self.folder}\ndefault_md=sha256\npolicy=any\n"
                          "[any]\ncommonName=supplied\n")
        _openssl("ca", "-batch", "-config", config, "-cert", self.pem, "-keyfile", self._key,
                 "-in", request, "-out", cert, "-startdate", "20200101000000Z",
                 "-enddate", "20200103000000Z", "-extfile", extensions, "-notext")
